"""Train the denoiser on galaxy shards, on Ray Train."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import ray
import torch
import tyro
from ray.train import Result
from ray.train.torch import TorchTrainer

from galray.core.cluster import Scaling, last_checkpoint, say, train_run
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import TrainingError
from galray.core.manifest import Manifest, publish, standing
from galray.core.precision import Precision
from galray.core.storage import Location
from galray.core.tracking import ReportToRun, Run, track
from galray.data.batches import EmphasisRule
from galray.data.labelled import Labelled
from galray.data.lineage import trained_on
from galray.data.stream import CachedGalaxies, TrainingStream
from galray.diffusion.cache import cached_galaxies
from galray.diffusion.codec import Codec
from galray.diffusion.denoiser import PRESETS as DENOISERS
from galray.diffusion.denoiser import Denoiser, DenoiserConfig
from galray.diffusion.loop import STOPPED, train_loop
from galray.diffusion.memory import training_memory
from galray.diffusion.objective import PAPER, Diffusion, FlowMatching
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.pretrained import merge_adapters
from galray.diffusion.start import Start, Statistics, check_start
from galray.diffusion.state import read_state, restore_trained

CHECKPOINTS = "checkpoints"
_STATISTICS_GALAXIES = 1024


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JobConfig):
    """How to train a denoiser."""

    galaxies: str = "{root}/galaxies"
    output: str = "{root}/denoiser"
    labelled: str = ""
    """Table of the galaxy_ids of which something may be known, such as labels.csv; empty for all. A column
    label gives labels; where it gives none, the galaxy's own votes and label are used."""
    cache: str = "{root}/cache"
    """Where what the codec sees of the galaxies is kept, for this and later trainings."""
    denoiser: DenoiserConfig = field(default_factory=lambda: DENOISERS["64px"])
    """Shape of a new network; whatever is trained, images are resampled to its size_px."""
    objective: tyro.conf.AvoidSubcommands[FlowMatching | Diffusion] = field(default_factory=FlowMatching)
    """What is learnt: the preset chooses between flow matching and diffusion in steps."""
    start_from: str = ""
    """Go on from this published denoiser, such as one that saw no votes; none begins a new network."""
    stable_diffusion: str = ""
    """Fine-tune this Stable Diffusion, a local folder or hub id, instead of training a new network."""
    autoencoder: str = ""
    """Train a new network on the latents of this autoencoder, a local folder or hub id."""
    orientations: int = 1
    """Orientations of each galaxy that an autoencoder's cache holds; pixels have all 8 for nothing."""
    lora_rank: int = 0
    """Train low-rank adapters instead of the whole of Stable Diffusion's network."""
    train_text_encoder: bool = False
    """Train its text encoder too."""
    scaling: Scaling = field(default_factory=Scaling)
    steps: int = 20_000
    batch_size: int = 64
    """Galaxies in a step, over all workers."""
    learning_rate: float = 3e-4
    """Reached after the warm-up; falls along a cosine."""
    final_learning_rate: float = 0.02
    """Share of the learning rate that is left at the last step; 1 keeps it constant."""
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
    """Galaxies to show several times an epoch, such as smooth+dust_lane:20 cigar_shaped:5."""
    precision: Precision = "auto"
    """bfloat16 where the hardware computes in it, which is faster; float32 elsewhere."""
    compile: bool = False
    """Compile the network: faster on GPUs, after minutes of compiling."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: larger batches, a third slower."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite leads to; skipped steps are counted."""
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    sample_every: int = 1000
    """Paint a grid of galaxies for MLflow every so many steps, and at the end; 0 never."""
    loader_processes: int = 0
    """Processes of a worker that read ahead; 1 where the cache lies in a bucket, 0 beside a CPU."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')} must be at least 1.")
        for name in ("p_question", "p_all", "ema_decay", "final_learning_rate"):
            require(0 <= getattr(self, name) <= 1, f"--{name.replace('_', '-')} must lie in [0, 1].")
        for rule in self.emphasis:
            EmphasisRule.parse(rule)
        assert self.start  # made here, so that what contradicts itself is refused
        require(
            self.batch_size >= self.scaling.workers,
            f"--batch-size {self.batch_size} leaves some of --scaling.workers {self.scaling.workers} idle.",
        )
        require(
            self.checkpoint_every % self.log_every == 0,
            f"--checkpoint-every {self.checkpoint_every} is no multiple of --log-every {self.log_every}.",
        )
        require(
            self.loader_processes in (0, 1),
            "--loader-processes is 0 or 1: one reads the whole stream ahead, two would each read all of it.",
        )

    @property
    def start(self) -> Start:
        """What the training starts from."""
        return Start(
            self.denoiser,
            self.objective,
            self.stable_diffusion,
            self.autoencoder,
            self.orientations,
            self.lora_rank,
            self.train_text_encoder,
            self.location(self.start_from).uri if self.start_from else "",
        )

    def untrained(self, statistics: Statistics | None) -> Denoiser:
        """Return the denoiser before its first step, on the CPU."""
        denoiser = self.start.denoiser(self.seed, statistics)
        if self.gradient_checkpointing:
            denoiser.unet.enable_gradient_checkpointing()
        return denoiser

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to the share that is left at the last step."""
        warm = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        fallen = 0.5 - 0.5 * math.cos(math.pi * min(step / self.steps, 1.0))
        return self.learning_rate * warm * (1 - (1 - self.final_learning_rate) * fallen)

    def checkpoint_due(self, step: int) -> bool:
        """Say whether the state after a step is kept."""
        return step % self.checkpoint_every == 0


def train(config: TrainConfig) -> Manifest:
    """Train the conditional diffusion model on the training split of galaxy shards.

    Raises
    ------
    InputError
        The galaxies are not published, or too few of them are for training.
    PublishError
        The output already stands.
    TrainingError
        The loss stopped being a number.
    """
    output, galaxies = config.location(config.output), config.location(config.galaxies)
    done = standing(output, "denoiser", config.resume)
    if done:
        say(f"train: {output.uri} stands")
        return done
    parents = {galaxies.uri: Manifest.read(galaxies, "galaxies").fingerprint}
    labelled = Labelled.read(config.location(config.labelled)) if config.labelled else None
    if labelled:
        parents |= labelled.parents
    parents |= check_start(config.start.start_from, labelled)
    with (
        track("train", config) as run,
        publish(output, "denoiser", config.resolved(), parents) as publication,
    ):
        codec = config.start.codec()
        caches = config.location(config.cache)
        cached = cached_galaxies(
            galaxies,
            caches,
            codec,
            emphasis=config.emphasis,
            labelled=labelled,
            scaling=config.scaling,
        )
        statistics = fit_statistics(config, codec, cached)
        check_memory(config, statistics)
        result = fit(config, output, cached, statistics, run)
        with last_checkpoint(result, output) as folder:
            pipeline = averaged_pipeline(config.untrained(statistics), folder)
        with tempfile.TemporaryDirectory() as folder:
            pipeline.save_pretrained(folder)
            publication.add_folder(Path(folder))
        publication.counts["steps"] = config.steps
        publication.lineage = trained_on(parents, labelled)
        if config.p_all == 1:  # it has seen images alone
            publication.lineage["labelled"] = ""
    (output / CHECKPOINTS).delete()
    say(f"train: {config.steps} steps -> {output.uri}")
    return Manifest.read(output)


def fit_statistics(config: TrainConfig, codec: Codec, cached: CachedGalaxies) -> Statistics | None:
    """Return mean and deviation of some training galaxies' latents, where the network is new to them."""
    if not config.start.fits_statistics:
        return None
    size = min(_STATISTICS_GALAXIES, len(cached))
    batch = next(iter(TrainingStream(cached, size, config.seed)))
    fitted = codec.fit_statistics([torch.from_numpy(batch["cached"])])
    return fitted.mean, fitted.std


def check_memory(config: TrainConfig, statistics: Statistics | None) -> None:
    """Refuse a batch that a GPU of the cluster cannot hold, before training takes any.

    Raises
    ------
    ConfigError
        It names the largest batch that fits.
    """
    if config.scaling.use_gpu:
        share = -(-config.batch_size // (config.scaling.min_workers or config.scaling.workers))
        memory = training_memory(config.untrained(statistics), bfloat16=config.precision != "float32")
        memory.require_fits(share, ray.get(_gpu_bytes.remote()))


@ray.remote(num_gpus=1, max_calls=1)
def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def fit(
    config: TrainConfig, output: Location, cached: CachedGalaxies, statistics: Statistics | None, run: Run
) -> Result:
    """Run the training on Ray Train, from its last checkpoint where there is one.

    Raises
    ------
    TrainingError
        The loss stopped being a number.
    """
    trainer = TorchTrainer(
        # Bound, and no train_loop_config: that, Ray's controller would open too, and import all of this.
        partial(train_loop, config, cached, statistics, run),
        scaling_config=config.scaling.ray(),
        run_config=train_run(CHECKPOINTS, output, config.scaling, [ReportToRun(run)]),
    )
    result = trainer.fit()
    if result.metrics and STOPPED in result.metrics:
        raise TrainingError(result.metrics[STOPPED])
    return result


def averaged_pipeline(denoiser: Denoiser, checkpoint: Path) -> GalaxyPipeline:
    """Return the averaged weights of a checkpoint's folder as a pipeline."""
    restore_trained(denoiser, read_state(checkpoint)["average"])
    merge_adapters(denoiser.unet)
    return GalaxyPipeline.from_denoiser(denoiser.eval())


_DEBUG = TrainConfig(
    denoiser=replace(DENOISERS["debug"], size_px=32),
    scaling=Scaling(threads_per_worker=1),  # threads of so small a network wait for each other
    steps=20,
    batch_size=16,
    warmup_steps=5,
    log_every=5,
    checkpoint_every=10,
)

_PAPER = TrainConfig(
    denoiser=replace(DENOISERS["64px"], size_px=424),
    objective=PAPER,
    stable_diffusion="stable-diffusion-v1-5/stable-diffusion-v1-5",
    train_text_encoder=True,
    steps=10_000,
    batch_size=16,
    learning_rate=1e-5,
    final_learning_rate=1.0,
    warmup_steps=0,
    p_question=0.0,
    scaling=Scaling(use_gpu=True),
    loader_processes=1,
)

_LAPTOP = TrainConfig(
    denoiser=DENOISERS["64px-quick"],
    objective=FlowMatching(logit_mean=1.3),  # noisy times most: shapes and colours before details
    steps=450,
    batch_size=16,  # in few minutes on a CPU, twice the steps learn more than twice the galaxies in each
    learning_rate=1.5e-3,
    warmup_steps=40,
    weight_decay=0.0,
    ema_decay=0.985,
    p_question=0.1,
    emphasis=("smooth+dust_lane:20",),
    checkpoint_every=180,
)

PRESETS = {
    "64px": Preset("64 px from scratch on pixels: hours on two cores, minutes on a GPU", TrainConfig()),
    "laptop": Preset("what make quickstart trains: minutes on two cores", _LAPTOP),
    "gz5": Preset(
        "the clean sample's five classes at 64 px: an hour and a half on two cores that compute in bfloat16",
        replace(
            _LAPTOP,
            # Noisier times still, where the sampler begins: there a galaxy's brightness is settled.
            objective=FlowMatching(logit_mean=1.5, logit_std=1.6),
            scaling=Scaling(workers=2),  # of a thread each: threads of one wait for each other at every layer
            steps=17_000,
            batch_size=32,
            learning_rate=1e-3,
            warmup_steps=100,
            weight_decay=0.01,
            ema_decay=0.999,
            emphasis=("cigar_shaped:5",),
        ),
    ),
    "paper": Preset("GalaxySD's recipe: Stable Diffusion 1.5 at 424 px, for one GPU", _PAPER),
    "stable-diffusion": Preset(
        "ours beside it: no signal left at the last step, Min-SNR weights, all orientations, parts left open",
        replace(
            _PAPER,
            objective=Diffusion(),
            orientations=8,
            train_text_encoder=False,
            final_learning_rate=0.02,
            warmup_steps=200,
            p_question=0.3,
        ),
    ),
    "debug": Preset("seconds on a CPU, to see that everything runs", _DEBUG),
}
