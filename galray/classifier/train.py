"""Train the classifier on real galaxies, with or without synthetic ones, on Ray Train."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from ray.train import Result, UserCallback
from ray.train.torch import TorchTrainer
from torch import nn

from galray.classifier import network
from galray.classifier.approval import Approver
from galray.classifier.augment import Augmentation
from galray.classifier.backbones import check_fit, load_pretrained
from galray.classifier.decision import DECISION_FILE
from galray.classifier.examples import Examples
from galray.classifier.judging import PREDICTIONS_FILE, figures, judge
from galray.classifier.loop import MODEL, fit_loop
from galray.classifier.losses import BalanceMethod
from galray.classifier.network import ClassifierConfig
from galray.classifier.targets import find_target
from galray.core.cluster import Scaling, last_checkpoint, say, train_run
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import TrainingError
from galray.core.manifest import Manifest, ancestry, publish, standing
from galray.core.precision import Precision
from galray.core.storage import Location
from galray.core.tracking import ReportToRun, Run, flatten, track
from galray.data.labelled import Labelled
from galray.data.lineage import JUDGED_SPLITS, refuse_other_labels, refuse_seen, trained_on

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(JobConfig):
    """How to train a classifier, and on what."""

    galaxies: str = "{root}/galaxies"
    """Real galaxies: their splits train, choose the threshold, and judge."""
    labelled: str = ""
    """Table of the training galaxy_ids of which something may be known, such as labels.csv; empty for all.
    A column label gives labels; where it gives none, the galaxy's own votes and label are used."""
    synthetic: str = ""
    """Synthetic galaxies to learn from as well; empty for real ones only."""
    approved_by: str = ""
    """Learn only from synthetic galaxies in which this published classifier sees what was asked for."""
    augmentation_ratio: float = 0.1
    """Synthetic galaxies for each real one, in every batch."""
    min_real_share: float = 0.2
    """Least share of real galaxies in a batch: a ratio that would leave fewer is refused."""
    output: str = "{root}/classifier"
    cache: str = "{root}/cache"
    """Where decoded images are kept, for this and later trainings."""
    target: str = "dust_lane_early_type"
    """What to find: a built-in target, or name=expression over GZ2 answers. Empty: no rare target, the
    morphology classes alone."""
    votes: bool = False
    """Learn the volunteers' votes too, each question as surely as it was asked often."""
    backbone: str = "resnet-small"
    pretrained: str = ""
    """Start from this network instead, a local folder or hub id of transformers with safetensors."""
    start_from: str = ""
    """Start from the backbone of this published classifier instead."""
    size_px: int = 64
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    """Focal loss looks away from galaxies that are told apart already."""
    focal_exponent: float = 2.0
    balance: BalanceMethod = "pos-weight"
    """What makes up for rarity: weights of the target's positives, draws by class, or shifted logits."""
    replacement: bool = False
    """Draw galaxies with replacement, as class-balanced does, instead of each once an epoch: few labels teach
    more so."""
    max_pos_weight: float = 20.0
    """Most that one galaxy of the target weighs against one that is not."""
    prior: Literal["trained", "natural"] = "trained"
    """Shares that outputs assume: those of the training, or of the validation galaxies, as in a survey."""
    epochs: int = 30
    batch_size: int = 64
    """Real galaxies in a step, over all workers."""
    learning_rate: float = 1e-3
    """Reached after the warm-up; falls along a cosine to a hundredth."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    """Largest decay of the moving average of weights that is judged and published; it warms up from 0."""
    precision: Precision = "auto"
    """bfloat16 where the hardware computes in it, which is faster; float32 elsewhere."""
    validate_every: int = 1
    """Epochs between two judgements; a checkpoint is kept at each."""
    turns: bool = True
    """Judge galaxies in their eight symmetries too, at the end, as a scan with turns is tuned on."""
    seed: int = 0
    scaling: Scaling = field(default_factory=Scaling)
    loader_processes: int = 0
    """Processes of a worker that read ahead: 1 beside a GPU, 0 beside a CPU."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            require(getattr(self, name) >= 1, f"--{_dashed(name)} is {getattr(self, name)}; give at least 1.")
        for name in ("min_real_share", "warmup", "ema_decay"):
            require(0 <= getattr(self, name) <= 1, f"--{_dashed(name)} must lie in [0, 1].")
        require(
            self.augmentation_ratio >= 0,
            f"--augmentation-ratio is {self.augmentation_ratio}; give 0 or more.",
        )
        require(
            self.batch_size % self.scaling.workers == 0,
            f"--batch-size {self.batch_size} is no multiple of --scaling.workers {self.scaling.workers}.",
        )
        require(
            self.real_share >= self.min_real_share,
            f"--augmentation-ratio {self.augmentation_ratio:g} leaves real galaxies {self.real_share:.3g} "
            f"of a batch, less than --min-real-share {self.min_real_share:g}. Lower one of them.",
        )
        require(
            not self.approved_by or bool(self.synthetic),
            "--approved-by says which --synthetic galaxies; give them.",
        )
        require(not (self.pretrained and self.start_from), "Give --pretrained or --start-from, not both.")
        require(not self.scaling.shard, "--scaling.shard divides large networks; a classifier fits a worker.")
        require(self.loader_processes in (0, 1), "--loader-processes is 0 or 1.")
        self.network()

    def network(self) -> ClassifierConfig:
        """Return the network's configuration; refuses an unknown backbone or target."""
        targets = (find_target(self.target),) if self.target else ()
        return ClassifierConfig(self.backbone, self.size_px, targets=targets, votes=self.votes)

    @property
    def synthetic_per_step(self) -> int:
        """Synthetic galaxies that a step adds to the real ones, over all workers."""
        return round(self.batch_size * self.augmentation_ratio) if self.synthetic else 0

    @property
    def real_share(self) -> float:
        """Share of real galaxies in a batch."""
        return self.batch_size / (self.batch_size + self.synthetic_per_step)

    @property
    def focal_gamma(self) -> float:
        """The exponent of the focal loss; 0 is the cross-entropy."""
        return self.focal_exponent if self.loss == "focal" else 0.0

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Linear warm-up, then a cosine down to a hundredth."""
        warm = min(1.0, (step + 1) / max(self.warmup * steps, 1))
        return self.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * step / steps))

    def read_labelled(self) -> Labelled | None:
        """Read the list of galaxies whose labels may be used; None for all."""
        return Labelled.read(self.location(self.labelled)) if self.labelled else None

    def starting_backbone(self) -> nn.Module | None:
        """Open the network to start from; None for a new one.

        Raises
        ------
        InputError
            It is not there, or no such network.
        ConfigError
            It does not take images of this size, or gives no pooled features.
        """
        if self.pretrained:
            return load_pretrained(self.pretrained, self.size_px)
        if not self.start_from:
            return None
        backbone = network.open_published(self.location(self.start_from)).backbone
        check_fit(backbone, f"--start-from {self.start_from}", self.size_px)
        return backbone

    def approver(self) -> Approver | None:
        """Return who must recognise synthetic galaxies, if anyone must."""
        return Approver(self.location(self.approved_by)) if self.approved_by else None


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def classify(config: ClassifyConfig) -> Manifest:
    """Train the classifier, of a rare target or of classes alone, and judge it on galaxies it never saw.

    Raises
    ------
    LineageError
        A model behind the synthetic galaxies has seen galaxies that judge this one.
    InputError
        Galaxies that are not published, or too few of them.
    """
    output = config.location(config.output)
    done = standing(output, "classifier", config.resume)
    if done:
        say(f"classify: {output.uri} stands")
        return done
    parents = check_lineage(config)
    with (
        track("classify", config) as run,
        publish(output, "classifier", config.resolved(), parents) as publication,
    ):
        result = fit(config, output, [ReportToRun(run)])
        with last_checkpoint(result, output) as folder:
            predictions = pq.read_table(folder / PREDICTIONS_FILE)
            settings = network.settings_of(folder / MODEL)
            decision, report = judge(predictions, settings)
            publication.add_folder(folder / MODEL)
            publication.write(PREDICTIONS_FILE, (folder / PREDICTIONS_FILE).read_bytes())
        if decision:
            publication.write(DECISION_FILE, decision.to_json())
        publication.write("metrics.json", json.dumps(report, indent=1))
        publication.lineage = trained_on(parents, config.read_labelled())
        _log_judgement(run, report, predictions, settings)
    (output / CHECKPOINTS).delete()
    for split in JUDGED_SPLITS:
        say(f"classify: on {split} galaxies {report[split]['text']}")
    return Manifest.read(output)


def check_lineage(config: ClassifyConfig) -> dict[str, str]:
    """Return the parents' fingerprints, having made sure that nothing that judges was learnt from.

    Splits follow from galaxy ids alone, so it is enough that every model in the ancestry of the synthetic
    galaxies, of the approver and the start was trained on training splits; where labels are hidden, without
    them.
    """
    galaxies, labelled = config.location(config.galaxies), config.read_labelled()
    parents = {galaxies.uri: Manifest.read(galaxies, "galaxies").fingerprint}
    if labelled:
        parents |= labelled.parents
    models = [(uri, "classifier") for uri in (config.approved_by, config.start_from)]
    for uri, kind in [(config.synthetic, "synthetic"), *models]:
        if not uri:
            continue
        place = config.location(uri)
        history = ancestry(place)
        refuse_seen(history, JUDGED_SPLITS, "this classifier")
        refuse_other_labels(history, labelled, "this classifier")
        parents[place.uri] = Manifest.read(place, kind).fingerprint
    if approver := config.approver():
        approver.check_tells(config.network())
    return parents


def fit(config: ClassifyConfig, storage: Location, callbacks: list[UserCallback]) -> Result:
    """Run the training on Ray Train; the last checkpoint holds the model and its predictions.

    Trainings that run beside each other, as trials of a search do, must find their caches computed: call
    `Examples.of` before them.

    Raises
    ------
    EmptyInputError
        The galaxies leave nothing to learn.
    TrainingError
        The loss stopped being a number.
    """
    trainer = TorchTrainer(
        # Bound, and no train_loop_config: that, Ray's controller would open too, and import all of this.
        partial(fit_loop, config, Examples.of(config)),
        scaling_config=config.scaling.ray(),
        run_config=train_run(CHECKPOINTS, storage, config.scaling, callbacks),
    )
    result = trainer.fit()
    reached = (result.metrics or {}).get("step", 0)
    if reached < config.epochs:
        raise TrainingError(
            f"The loss was not finite after epoch {reached} of {config.epochs}. Lower --learning-rate or "
            "--gradient-clip; then --resume."
        )
    return result


def _log_judgement(
    run: Run, report: dict[str, Any], predictions: pa.Table, settings: ClassifierConfig
) -> None:
    for split in JUDGED_SPLITS:
        run.metrics({f"{split}.{name}": value for name, value in flatten(report[split]).items()})
    for name, figure in figures(predictions, settings).items():
        run.figure(figure, name)


PRESETS = {
    "laptop": Preset(
        "a small network for 64 px cutouts: a minute or two on two cores", ClassifyConfig(epochs=6)
    ),
    "classes": Preset(
        "morphology classes alone, at 64 px: a reference that judges synthetic galaxies",
        ClassifyConfig(target="", epochs=8, output="{root}/reference"),
    ),
    "128px": Preset(
        "morphology classes at 128 px, for the best accuracy: under two hours on two cores",
        ClassifyConfig(
            target="",
            backbone="resnet-18-half",
            size_px=128,
            epochs=36,
            learning_rate=2e-3,
            ema_decay=0.9995,
            validate_every=4,
        ),
    ),
    "debug": Preset(
        "seconds on a CPU, to see that everything runs",
        ClassifyConfig(
            backbone="resnet-tiny",
            size_px=32,
            epochs=2,
            batch_size=32,
            scaling=Scaling(threads_per_worker=1),  # threads of so small a network wait for each other
        ),
    ),
}
