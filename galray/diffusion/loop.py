"""The training loop: what one worker of a Ray Train run does.

All randomness of a step follows from the seed and the step's number, and is drawn for the whole batch,
of which a worker takes its share. So a run that was interrupted, or went on with another number of workers,
takes the steps that it would have taken.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import torch
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from galray.core.cluster import Progress, checkpoint_of, latest_checkpoint, say
from galray.core.precision import in_bfloat16
from galray.core.schema import N_ANSWERS
from galray.core.tracking import Run
from galray.core.workers import is_first, of_all_workers, rank_of
from galray.data.stream import CachedGalaxies, TrainingStream, loader
from galray.diffusion.conditions import drop_questions
from galray.diffusion.objective import Draws
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.state import TrainingState, restore_trained
from galray.diffusion.synthesize import RECIPES, paint_grid

if TYPE_CHECKING:
    from galray.diffusion.start import Statistics
    from galray.diffusion.train import TrainConfig

STOPPED = "stopped"
NOISE_LEVELS = 4
_WORST_LOSS = 1e9  # Ray keeps metrics as JSON, which has no infinity


def train_loop(
    config: TrainConfig, galaxies: CachedGalaxies, statistics: Statistics | None, run: Run
) -> None:
    """Train on one worker of a Ray Train run; `statistics` are those of the galaxies' latents."""
    torch.set_num_threads(config.scaling.threads)
    device = get_device()
    denoiser = config.untrained(statistics).to(device)
    if device.type == "cpu" and in_bfloat16(config.precision, device) and not config.stable_diffusion:
        denoiser.attend_plainly()
    state = TrainingState.new(config, denoiser)
    if config.compile:
        denoiser.unet.compile()
    model = denoiser if config.scaling.shard else prepare_model(denoiser, move_to_device=False)
    latest = latest_checkpoint()
    if latest is not None:
        state.restore(latest)
        if is_first():
            say(f"train: goes on from the checkpoint after step {state.step}")
    _run_steps(config, state, model, galaxies, partial(_show_samples, config, statistics, run))


def _run_steps(
    config: TrainConfig,
    state: TrainingState,
    model: nn.Module,
    galaxies: CachedGalaxies,
    show: Callable[[TrainingState], None],
) -> None:
    progress = Progress("train", config.steps, "steps") if is_first() else None
    if progress:
        progress.start_at(state.step)
    log, saved_in_time = StepLog(config), False
    for batch in log.waiting_for(batches(config, galaxies, state.step)):
        metrics = train_step(config, state, model, batch)
        if not metrics["finite"] and config.on_nonfinite == "stop":
            # Not raised: it would be tried again, as if a machine had failed. What was learnt is kept.
            stopped = {"step": state.step, "loss": _WORST_LOSS, STOPPED: _what_stopped(state, metrics, batch)}
            state.step -= 1
            report(state, stopped, due=True)
            return
        log.add(metrics)
        if progress:
            progress.advance(1, f"loss {log.loss:.3f}")
        last = state.step == config.steps
        if config.sample_every and (last or state.step % config.sample_every == 0):
            show(state)
        if last or state.step % config.log_every == 0:
            # A node that will be taken away is told of in advance: keep what has been learnt, once.
            warned = not saved_in_time and ray.train.get_preemption_info() is not None
            saved_in_time = saved_in_time or warned
            report(state, log.flush(state), due=last or warned or config.checkpoint_due(state.step))
        if last:
            return


def batches(config: TrainConfig, galaxies: CachedGalaxies, first_step: int) -> Iterator[dict[str, Tensor]]:
    """Yield this worker's share of every batch from a step on."""
    stream = TrainingStream(galaxies, config.batch_size, config.seed, first_step, *rank_of())
    return iter(loader(stream, config.loader_processes, pin_memory=get_device().type == "cuda"))


def train_step(
    config: TrainConfig, state: TrainingState, model: nn.Module, batch: dict[str, Tensor]
) -> dict[str, Any]:
    """Take one step of AdamW; returns the losses, noise levels and gradient norm, and if all is finite."""
    device = next(model.parameters()).device
    draws = StepDraws.of(config, state, device)
    latents = state.denoiser.codec.latents(batch["cached"].to(device), draws.orientation, draws.posterior)
    votes = batch["votes"].to(device).masked_fill(draws.hidden, float("nan"))
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate_at(state.step)
    with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(config.precision, device)):
        loss = config.objective.loss(model, latents, draws.objective, votes)
    state.optimizer.zero_grad(set_to_none=True)
    # Workers' gradients are averaged: so weighted, that is the mean over the batch however it is shared out.
    (loss.per_galaxy.sum() * (draws.workers / config.batch_size)).backward()
    norm = _full(clip_grad_norm_(model.parameters(), config.gradient_clip))
    finite = bool(norm.isfinite())
    if finite:
        state.optimizer.step()
        state.update_average(config.ema_decay)
    else:
        state.skipped += 1
    state.step += 1
    return {"loss": loss.per_galaxy.detach(), "t": loss.t, "gradient_norm": norm, "finite": finite}


def _full(norm: Tensor) -> Tensor:
    return getattr(norm, "full_tensor", lambda: norm)().detach()  # sharded weights have a sharded norm


@dataclass(frozen=True)
class StepDraws:
    """What chance decides of one step, for this worker's share of the batch.

    Attributes
    ----------
    hidden : Tensor of bool, shape (b, 37)
        Votes that the denoiser does not see.
    orientation : Tensor of int64, shape (b,)
        One of the square's eight symmetries: galaxies have no up or down.
    objective : objective.Draws
    posterior : Tensor of float32, shape (b, C, h, w), or None
        Where in a learnt codec's posterior the latents are taken; pixels have none.
    workers : int
    """

    hidden: Tensor
    orientation: Tensor
    objective: Draws
    posterior: Tensor | None
    workers: int

    @classmethod
    def of(cls, config: TrainConfig, state: TrainingState, device: torch.device) -> StepDraws:
        generator = torch.Generator(device).manual_seed(config.seed * 1_000_003 + state.step)
        count, codec = config.batch_size, state.denoiser.codec
        rank, workers = rank_of()
        shape, share = (count, *codec.latent_shape), slice(rank, None, workers)
        seen = torch.zeros(count, N_ANSWERS, device=device)
        hidden = drop_questions(seen, config.p_question, config.p_all, generator).isnan()
        orientation = torch.randint(0, codec.orientations, (count,), generator=generator, device=device)
        drawn = config.objective.draw(shape, generator, device)
        sampled = codec.cached_dtype.is_floating_point
        posterior = torch.randn(shape, generator=generator, device=device)[share] if sampled else None
        return cls(
            hidden[share],
            orientation[share],
            drawn.rows(share),
            posterior,
            workers,
        )


class StepLog:
    """Gather what happened since the last report."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.loss = float("nan")
        self._clear()

    def _clear(self) -> None:
        self._since_s = time.monotonic()
        self._waited_s = 0.0
        self._steps: list[dict[str, Any]] = []

    def waiting_for(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Pass batches on, and take the time that each was waited for."""
        while True:
            asked_s = time.monotonic()
            batch = next(batches)
            self._waited_s += time.monotonic() - asked_s
            yield batch

    def add(self, metrics: dict[str, Any]) -> None:
        """Take note of a step."""
        latest = float(metrics["loss"].mean())
        self.loss = latest if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * latest
        self._steps.append(metrics)

    def flush(self, state: TrainingState) -> dict[str, float]:
        """Return the means since the last flush, the loss by noise level too, and begin anew."""
        loss, t = (of_all_workers(torch.cat([m[name] for m in self._steps])) for name in ("loss", "t"))
        level = (t * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)
        elapsed_s = time.monotonic() - self._since_s
        report = {
            "step": state.step,
            "loss": float(loss.mean()),
            "gradient_norm": float(torch.stack([m["gradient_norm"] for m in self._steps]).mean()),
            "learning_rate": self._config.learning_rate_at(state.step),
            "images_per_s": len(self._steps) * self._config.batch_size / elapsed_s,
            "data_wait_fraction": self._waited_s / elapsed_s,
            "skipped_steps": state.skipped,
        }
        for k in range(NOISE_LEVELS):
            low, high = k / NOISE_LEVELS, (k + 1) / NOISE_LEVELS
            if (level == k).any():
                report[f"loss_t_{low:.2f}_{high:.2f}"] = float(loss[level == k].mean())
        self._clear()
        return report


def report(state: TrainingState, metrics: dict[str, Any], due: bool) -> None:
    """Report to Ray Train, with a checkpoint when one is due; its upload goes on beside the next steps."""
    if not due:
        ray.train.report(metrics)
        return
    # The first worker's alone has a file in it; Ray removes it once it is uploaded.
    folder = tempfile.mkdtemp(prefix="galray-checkpoint-") if is_first() else ""
    state.save(folder)
    figures = {} if STOPPED in metrics else metrics  # who goes on tries that step anew
    ray.train.report(
        metrics,
        checkpoint=checkpoint_of(Path(folder), figures) if folder else None,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
    )


def _show_samples(config: TrainConfig, statistics: Statistics | None, run: Run, state: TrainingState) -> None:
    """Track what the averaged weights paint now, at fixed seeds and conditions."""
    average = state.average
    gathered = state.averaged_weights() if config.scaling.shard else {}
    if not is_first():
        return
    if gathered:
        average = config.untrained(statistics).to(get_device()).eval()
        restore_trained(average, gathered)
    figure = paint_grid(
        GalaxyPipeline.from_denoiser(average), RECIPES["one_of_each"], per_request=6, num_steps=12
    )
    run.figure(figure, f"samples/step-{state.step:07d}.png")


def _what_stopped(state: TrainingState, metrics: dict[str, Any], batch: dict[str, Tensor]) -> str:
    """Name the step, the galaxies of its batch, worst first, and the last good checkpoint."""
    finite = of_all_workers(metrics["loss"].isfinite().tolist())
    ids = of_all_workers(batch["galaxy_id"].tolist())
    bad = [galaxy_id for galaxy_id, good in zip(ids, finite, strict=True) if not good]
    return (
        f"Step {state.step}: the loss or its gradient is not finite. "
        f"Galaxies with such a loss: {', '.join(map(str, bad)) or 'none, the gradient overflowed'}; "
        f"the whole batch: {', '.join(map(str, ids))}. "
        f"The state before it, after step {state.step - 1}, is kept. "
        "Lower --learning-rate, look at these galaxies, or give --on-nonfinite skip; then --resume."
    )
