"""The training configuration, the schedule, and what is logged of a step."""

from itertools import pairwise

import pytest
import torch

from galray.core.errors import ConfigError
from galray.diffusion.train import PRESETS, StepLog, TrainConfig


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=1000, warmup_steps=100, learning_rate=1e-3)
    rates = [config.learning_rate_at(step) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3, rel=0.03)
    assert 90 <= rates.index(max(rates)) <= 110
    assert rates[1000] == pytest.approx(2e-5)
    assert all(later <= earlier for earlier, later in pairwise(rates[110:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1"),
        ({"p_all": 1.5}, "--p-all must lie in"),
        ({"emphasis": ("dustlane",)}, "'dustlane' is no answer .*'dust_lane'"),
        ({"batch_size": 0}, "--batch-size"),
    ],
)
def test_contradictions_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_step_log_splits_loss_by_noise_level() -> None:
    log = StepLog(PRESETS["debug"].config)
    norm = torch.tensor(2.0)
    low = {"loss": torch.tensor([1.0, 3.0]), "t": torch.tensor([0.1, 0.2]), "gradient_norm": norm}
    log.add(low)
    log.add({"loss": torch.tensor([5.0, 7.0]), "t": torch.tensor([0.9, 1.0]), "gradient_norm": norm})
    report = log.flush(step=2)
    assert report["loss"] == 4.0
    assert report["loss_t_0.00_0.25"] == 2.0
    assert report["loss_t_0.75_1.00"] == 6.0
    assert "loss_t_0.25_0.50" not in report
    assert report["gradient_norm"] == 2.0
    log.add(low)
    assert log.flush(step=3)["loss"] == 2.0
