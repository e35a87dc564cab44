"""Train the denoiser on galaxy shards, on Ray Train."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from diffusers.training_utils import EMAModel
from matplotlib.figure import Figure
from ray.data import Dataset
from ray.train import Checkpoint, DataConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from galray.core.cluster import Progress, Scaling, say, train_run
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import EmptyInputError, nearest
from galray.core.manifest import Manifest, publish, standing
from galray.core.schema import ANSWER_INDEX
from galray.core.tracking import ReportToRun, track
from galray.data.batches import DecodeGalaxies, Emphasise, decoded_once, read_galaxies
from galray.diffusion.codec import PixelCodec
from galray.diffusion.conditions import drop_questions
from galray.diffusion.denoiser import PRESETS as DENOISERS
from galray.diffusion.denoiser import Denoiser, DenoiserConfig, GalaxyPipeline, build_denoiser
from galray.diffusion.objective import Diffusion, FlowMatching
from galray.diffusion.synthesize import RECIPES, paint_grid

CHECKPOINTS = "checkpoints"
STATE_FILE = "state.pt"
_COLUMNS = ("galaxy_id", "votes", "classifications", "label", "image")
_CODEC_GALAXIES = 1024
_NOISE_LEVELS = 4
_ADAM_BETAS = (0.9, 0.99)  # gradients of other noise levels come every step: forget them sooner


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JobConfig):
    """How to train a denoiser."""

    galaxies: str = "{root}/galaxies"
    output: str = "{root}/denoiser"
    denoiser: DenoiserConfig = field(default_factory=lambda: DENOISERS["64px"])
    objective: FlowMatching | Diffusion = field(default_factory=FlowMatching)
    scaling: Scaling = field(default_factory=Scaling)
    steps: int = 20_000
    batch_size: int = 64
    """Galaxies in a step, over all workers."""
    learning_rate: float = 3e-4
    """Reached after the warm-up; falls to a fiftieth along a cosine."""
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    """Largest decay of the moving average of weights that is published; it warms up from 0."""
    p_question: float = 0.3
    """Probability that a question is hidden from the denoiser."""
    p_all: float = 0.1
    """Probability that all are hidden: what guidance is measured against."""
    emphasis: tuple[str, ...] = ()
    """Answers that mark the galaxies to show more often, such as smooth dust_lane."""
    emphasis_repeats: int = 1
    """How often an epoch shows them."""
    bfloat16: bool = True
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "emphasis_repeats"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} must be at least 1.")
        for name in ("p_question", "p_all", "ema_decay"):
            require(0 <= getattr(self, name) <= 1, f"--{name.replace('_', '-')} must lie in [0, 1].")
        for name in self.emphasis:
            require(name in ANSWER_INDEX, f"--emphasis: {name!r} is no answer{nearest(name, ANSWER_INDEX)}.")
        require(
            self.batch_size % self.scaling.workers == 0,
            f"--batch-size {self.batch_size} is no multiple of --scaling.workers {self.scaling.workers}.",
        )

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a fiftieth at the last step."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        fall = 0.51 + 0.49 * math.cos(math.pi * min(step / self.steps, 1.0))
        return self.learning_rate * warm * fall


def train(config: TrainConfig) -> Manifest:
    """Train the conditional diffusion model on the training split of galaxy shards.

    Raises
    ------
    InputError
        The galaxies are not published, or none of them is for training.
    PublishError
        The output already stands.
    """
    output, galaxies = config.location(config.output), config.location(config.galaxies)
    done = standing(output, "denoiser", config.resume)
    if done:
        say(f"train: {output.uri} stands")
        return done
    parents = {galaxies.uri: Manifest.read(galaxies, "galaxies").fingerprint}
    with (
        track("train", config) as run,
        publish(output, "denoiser", config.resolved(), parents) as publication,
    ):
        dataset = _training_set(config)
        codec = _fit_codec(config, dataset)
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"config": config, "mean": codec.mean.tolist(), "std": codec.std.tolist()},
            datasets={"train": dataset},
            dataset_config=DataConfig(datasets_to_split=["train"]),
            scaling_config=config.scaling.ray(),
            run_config=train_run(CHECKPOINTS, output, config.scaling, [ReportToRun(run)]),
        )
        checkpoint = trainer.fit().checkpoint
        assert checkpoint is not None  # the last step always reports one
        pipeline = _published_pipeline(config, codec, checkpoint)
        with tempfile.TemporaryDirectory() as folder:
            pipeline.save_pretrained(folder)
            publication.add_folder(Path(folder))
        publication.counts["steps"] = config.steps
        publication.lineage = {"trained_on": parents, "splits": ["train"]}
        run.figure(_sample_figure(pipeline), "samples.png")
    (output / CHECKPOINTS).delete()
    say(f"train: {config.steps} steps -> {output.uri}")
    return Manifest.read(output)


def _training_set(config: TrainConfig) -> Dataset:
    galaxies = read_galaxies(config.location(config.galaxies), "train", _COLUMNS)
    if config.emphasis:
        emphasise = Emphasise(config.emphasis, config.emphasis_repeats)
        galaxies = galaxies.map_batches(emphasise, batch_format="pyarrow")
    decode = DecodeGalaxies(config.denoiser.size_px)
    return decoded_once(galaxies.map_batches(decode, batch_format="pyarrow", batch_size=256))


def _fit_codec(config: TrainConfig, dataset: Dataset) -> PixelCodec:
    shape = {"size_px": config.denoiser.size_px, "fold": config.denoiser.fold}
    batches = dataset.limit(_CODEC_GALAXIES).iter_torch_batches(batch_size=256)
    return PixelCodec.fit((batch["image"] for batch in batches), **shape)


@dataclass
class TrainingState:
    """All that a training run is: saved and restored as one."""

    denoiser: Denoiser
    ema: EMAModel
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def new(cls, config: TrainConfig, codec: PixelCodec) -> TrainingState:
        torch.manual_seed(config.seed)
        denoiser = build_denoiser(config.denoiser, codec, config.objective)
        trained = [p for p in denoiser.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=config.learning_rate, betas=_ADAM_BETAS, weight_decay=config.weight_decay
        )
        ema = EMAModel(trained, decay=config.ema_decay, use_ema_warmup=True, power=0.75)
        return cls(denoiser, ema, optimizer)

    def save(self, folder: str) -> None:
        state = {
            "denoiser": self.denoiser.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, Path(folder, STATE_FILE))

    def restore(self, checkpoint: Checkpoint) -> None:
        with checkpoint.as_directory() as folder:
            # weights_only: a checkpoint from a bucket must not run code here
            state = torch.load(Path(folder, STATE_FILE), weights_only=True, map_location="cpu")
        self.denoiser.load_state_dict(state["denoiser"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def train_loop(settings: dict[str, Any]) -> None:
    """Train on one worker of a Ray Train run; `settings` holds the config and the codec's statistics."""
    config: TrainConfig = settings["config"]
    torch.set_num_threads(config.scaling.threads)
    state = TrainingState.new(config, _codec(config, settings["mean"], settings["std"]))
    latest = ray.train.get_checkpoint()
    if latest is not None:
        state.restore(latest)
    device = get_device()
    state.ema.to(device)
    model = prepare_model(state.denoiser)
    progress = Progress("train", config.steps, "steps") if _rank() == 0 else None
    if progress:
        progress.start_at(state.step)
    log = StepLog(config)
    for batch in _batches(config, state.step):
        metrics = train_step(config, state, model, batch, device)
        log.add(metrics)
        if progress:
            progress.advance(1, f"loss {log.loss:.3f}")
        if state.step % config.log_every == 0 or state.step == config.steps:
            _report(config, state, log)
        if state.step == config.steps:
            break


def _codec(config: TrainConfig, mean: Any, std: Any) -> PixelCodec:
    flat = (torch.tensor(values).flatten().tolist() for values in (mean, std))
    return PixelCodec.from_statistics(*flat, size_px=config.denoiser.size_px, fold=config.denoiser.fold)


def _rank() -> int:
    return ray.train.get_context().get_world_rank()


def _batches(config: TrainConfig, first_step: int) -> Iterator[dict[str, Tensor]]:
    """Yield this worker's batches, epoch after epoch."""
    shard = ray.train.get_dataset_shard("train")
    assert shard is not None  # the trainer is given it
    epoch = first_step
    while True:
        count = 0
        for batch in shard.iter_torch_batches(
            batch_size=config.batch_size // config.scaling.workers,
            drop_last=True,
            local_shuffle_buffer_size=16 * config.batch_size,
            local_shuffle_seed=config.seed + epoch,
        ):
            count += 1
            yield batch
        if not count:
            raise EmptyInputError(
                f"{config.galaxies} has fewer training galaxies than one batch. Lower --batch-size."
            )
        epoch += 1


def train_step(
    config: TrainConfig, state: TrainingState, model: torch.nn.Module, batch: dict[str, Tensor], device: Any
) -> dict[str, Tensor]:
    """Take one step of AdamW on a batch; returns its loss, times and gradient norm."""
    # Every draw follows from seed, rank and step, so that a resumed run draws what it would have drawn.
    generator = torch.Generator().manual_seed((config.seed * 1009 + _rank()) * 1_000_003 + state.step)
    votes = drop_questions(batch["votes"], config.p_question, config.p_all, generator).to(device)
    latents = state.denoiser.codec.encode(batch["image"].to(device))
    # Drawn for the batch of all workers, of which this one takes its rows.
    everyone = torch.Generator().manual_seed(config.seed * 1_000_003 + state.step)
    draws = config.objective.draw((config.batch_size, *latents.shape[1:]), everyone, device)
    draws = draws.rows(slice(_rank() * len(latents), (_rank() + 1) * len(latents)))
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate_at(state.step)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
        loss = config.objective.loss(model, latents, draws, votes)
    state.optimizer.zero_grad(set_to_none=True)
    loss.per_galaxy.mean().backward()
    norm = clip_grad_norm_(model.parameters(), config.gradient_clip)
    state.optimizer.step()
    state.ema.step(p for p in state.denoiser.parameters() if p.requires_grad)
    state.step += 1
    return {"loss": loss.per_galaxy.detach(), "t": loss.t, "gradient_norm": norm.detach()}


class StepLog:
    """Gather what happened since the last report."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.loss = float("nan")
        self._clear()

    def _clear(self) -> None:
        self._since_s = time.monotonic()
        self._steps: list[dict[str, Tensor]] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        latest = float(metrics["loss"].mean())
        self.loss = latest if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * latest
        self._steps.append(metrics)

    def flush(self, step: int) -> dict[str, float]:
        """Return the means since the last flush, the loss by noise level too, and begin anew."""
        loss = torch.cat([m["loss"] for m in self._steps])
        level = (torch.cat([m["t"] for m in self._steps]) * _NOISE_LEVELS).long().clamp(max=_NOISE_LEVELS - 1)
        elapsed_s = time.monotonic() - self._since_s
        report = {
            "step": step,
            "loss": float(loss.mean()),
            "gradient_norm": float(torch.stack([m["gradient_norm"] for m in self._steps]).mean()),
            "learning_rate": self._config.learning_rate_at(step),
            "images_per_s": len(self._steps) * self._config.batch_size / elapsed_s,
        }
        for k in range(_NOISE_LEVELS):
            low, high = k / _NOISE_LEVELS, (k + 1) / _NOISE_LEVELS
            if (level == k).any():
                report[f"loss_t_{low:.2f}_{high:.2f}"] = float(loss[level == k].mean())
        self._clear()
        return report


def _report(config: TrainConfig, state: TrainingState, log: StepLog) -> None:
    """Report to Ray Train, with a checkpoint when one is due."""
    metrics = log.flush(state.step)
    due = state.step % config.checkpoint_every < config.log_every or state.step == config.steps
    if not due or _rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        state.save(folder)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _published_pipeline(config: TrainConfig, codec: PixelCodec, checkpoint: Checkpoint) -> GalaxyPipeline:
    """Return the averaged weights as a pipeline."""
    state = TrainingState.new(config, codec)
    state.restore(checkpoint)
    state.ema.copy_to(p for p in state.denoiser.parameters() if p.requires_grad)
    return GalaxyPipeline.from_denoiser(state.denoiser.eval())


def _sample_figure(pipeline: GalaxyPipeline) -> Figure:
    return paint_grid(pipeline, RECIPES["one_of_each"], per_request=6, num_steps=12)


_DEBUG = TrainConfig(
    denoiser=replace(DENOISERS["debug"], size_px=32),
    steps=20,
    batch_size=16,
    warmup_steps=5,
    log_every=5,
    checkpoint_every=10,
)

PRESETS = {
    "64px": Preset("64 px from scratch on pixels: hours on two cores, minutes on a GPU", TrainConfig()),
    "laptop": Preset(
        "what make quickstart trains: minutes on two cores",
        TrainConfig(
            denoiser=DENOISERS["64px-quick"],
            objective=FlowMatching(logit_mean=0.5),
            steps=650,
            batch_size=32,
            learning_rate=1.5e-3,
            warmup_steps=40,
            weight_decay=0.0,
            ema_decay=0.985,
            p_question=0.1,
            emphasis=("smooth", "dust_lane"),
            emphasis_repeats=20,
            checkpoint_every=200,
        ),
    ),
    "debug": Preset("seconds on a CPU, to see that everything runs", _DEBUG),
}
