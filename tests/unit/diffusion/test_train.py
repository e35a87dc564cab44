"""The training configuration, the schedule, and what is logged of a step."""

from dataclasses import replace
from itertools import pairwise

import pytest

from galray.core.cluster import Scaling
from galray.core.config import parse
from galray.core.errors import ConfigError
from galray.diffusion.objective import PAPER
from galray.diffusion.train import PRESETS, TrainConfig


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
        ({"emphasis": ("dustlane:2",)}, "'dustlane' is no answer .*'dust_lane'"),
        ({"log_every": 30}, "--checkpoint-every 500 is no multiple of --log-every 30"),
        ({"batch_size": 2, "scaling": Scaling(workers=4)}, "--batch-size 2 leaves some"),
        ({"batch_size": 0}, "--batch-size"),
    ],
)
def test_contradictions_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_learning_rate_can_stay() -> None:
    config = TrainConfig(steps=1000, warmup_steps=10, learning_rate=1e-5, final_learning_rate=1.0)
    assert {config.learning_rate_at(step) for step in range(10, 1000)} == {1e-5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stable_diffusion": "here"}, "Stable Diffusion predicts no flow"),
        ({"lora_rank": 8}, "--lora-rank and --train-text-encoder are for fine-tuning"),
        ({"stable_diffusion": "a", "autoencoder": "b", "objective": PAPER}, "leave --autoencoder out"),
    ],
)
def test_starts_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_the_command_line_keeps_a_preset_s_objective() -> None:
    config = parse(PRESETS, "", ["paper", "--objective.min-snr-gamma", "5"])
    assert config.objective == replace(PAPER, min_snr_gamma=5.0)
    assert (config.batch_size, config.steps, config.denoiser.size_px) == (16, 10_000, 424)
