"""One worker's steps: what chance decides, what a checkpoint holds, what is not finite."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train import Checkpoint

from galray.core.schema import N_ANSWERS
from galray.diffusion import loop
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.loop import StepDraws, StepLog, train_step
from galray.diffusion.state import TrainingState
from galray.diffusion.train import PRESETS, TrainConfig

CONFIG: TrainConfig = PRESETS["debug"].config
CPU = torch.device("cpu")


@pytest.fixture
def state() -> TrainingState:
    return TrainingState.new(CONFIG, CONFIG.start.denoiser(CONFIG.seed, None))


def batch_of(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    shape = (CONFIG.batch_size, CONFIG.denoiser.size_px, CONFIG.denoiser.size_px, 3)
    return {
        "galaxy_id": torch.arange(CONFIG.batch_size),
        "votes": torch.rand(CONFIG.batch_size, N_ANSWERS, generator=generator),
        "cached": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
    }


def take_steps(state: TrainingState, first: int, last: int) -> list[float]:
    taken = [train_step(CONFIG, state, state.denoiser, batch_of(step)) for step in range(first, last)]
    return [float(metrics["loss"].mean()) for metrics in taken]


def test_draws_follow_from_the_step(state: TrainingState) -> None:
    first, again = (StepDraws.of(CONFIG, state, CPU) for _ in range(2))
    torch.testing.assert_close(first.objective.noise, again.objective.noise, rtol=0, atol=0)
    torch.testing.assert_close(first.hidden, again.hidden, rtol=0, atol=0)
    state.step += 1
    later = StepDraws.of(CONFIG, state, CPU)
    assert not torch.equal(first.objective.noise, later.objective.noise)
    assert not torch.equal(first.orientation, later.orientation)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_share_the_draws_of_the_batch(
    state: TrainingState, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = StepDraws.of(CONFIG, state, CPU)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: workers)
    for rank in range(workers):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        share = StepDraws.of(CONFIG, state, CPU)
        torch.testing.assert_close(share.objective.noise, whole.objective.noise[rank::workers])
        torch.testing.assert_close(share.orientation, whole.orientation[rank::workers])


def test_a_restored_run_takes_the_same_steps(state: TrainingState, tmp_path: Path) -> None:
    take_steps(state, 0, 3)
    state.save(str(tmp_path))
    whole = take_steps(state, 3, 6)
    restored = TrainingState.new(CONFIG, CONFIG.start.denoiser(7, None))
    restored.restore(Checkpoint.from_directory(str(tmp_path)))
    assert restored.step == 3
    assert take_steps(restored, 3, 6) == whole
    for one, two in zip(state.average.parameters(), restored.average.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_the_average_follows_slower_than_the_weights(state: TrainingState) -> None:
    start = [p.detach().clone() for p in state.denoiser.parameters()]
    take_steps(state, 0, 4)

    @torch.no_grad()
    def moved(denoiser: Denoiser) -> float:
        pairs = zip(denoiser.parameters(), start, strict=True)
        return sum(float((p - q).square().sum()) for p, q in pairs)

    assert 0 < moved(state.average) < moved(state.denoiser)


def test_what_is_not_finite_changes_nothing(state: TrainingState) -> None:
    take_steps(state, 0, 1)
    before = [p.clone() for p in state.denoiser.parameters()]
    broken = batch_of(1)
    broken["votes"][3] = torch.inf
    metrics = train_step(CONFIG, state, state.denoiser, broken)
    assert not metrics["finite"]
    assert (state.step, state.skipped) == (2, 1)
    for now, then in zip(state.denoiser.parameters(), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
    assert train_step(CONFIG, state, state.denoiser, batch_of(2))["finite"]


def test_the_message_names_the_galaxies(state: TrainingState) -> None:
    state.step = 14
    batch = batch_of(0)
    loss = torch.ones(CONFIG.batch_size)
    loss[[2, 5]] = torch.nan
    text = loop._what_stopped(state, {"loss": loss}, batch)
    assert "Step 14" in text
    assert "such a loss: 2, 5;" in text
    assert "after step 13, is kept" in text


def test_step_log_splits_loss_by_noise_level(state: TrainingState) -> None:
    log = StepLog(CONFIG)
    norm = torch.tensor(2.0)
    low: dict[str, Any] = {
        "loss": torch.tensor([1.0, 3.0]),
        "t": torch.tensor([0.1, 0.2]),
        "gradient_norm": norm,
    }
    log.add(low)
    log.add({"loss": torch.tensor([5.0, 7.0]), "t": torch.tensor([0.9, 1.0]), "gradient_norm": norm})
    report = log.flush(state)
    assert report["loss"] == 4.0
    assert report["loss_t_0.00_0.25"] == 2.0
    assert report["loss_t_0.75_1.00"] == 6.0
    assert "loss_t_0.25_0.50" not in report
    assert report["gradient_norm"] == 2.0
    assert 0 <= report["data_wait_fraction"] <= 1
    log.add(low)
    assert log.flush(state)["loss"] == 2.0
