"""Train the classifier on real galaxies, with or without synthetic ones, on Ray Train."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
import torch
from ray.data import DataIterator, Dataset
from ray.train import Checkpoint, DataConfig, Result, UserCallback
from ray.train.torch import TorchTrainer, get_device, prepare_model
from torch import Tensor

from galray.classifier import network
from galray.classifier.decision import DECISION_FILE
from galray.classifier.examples import LABEL_COLUMNS, PrepareGalaxies
from galray.classifier.judging import JUDGED_SPLITS, curve_figure, judge, of_split, validation_metrics
from galray.classifier.network import Balance, Classifier, ClassifierConfig
from galray.classifier.targets import find_target
from galray.core.cluster import Progress, Scaling, say, train_run
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import EmptyInputError, LineageError
from galray.core.manifest import Manifest, ancestry, publish, standing
from galray.core.storage import Location
from galray.core.tracking import ReportToRun, Run, flatten, track
from galray.data.batches import decoded_once, read_galaxies

CHECKPOINTS = "checkpoints"
PREDICTIONS_FILE = "predictions.parquet"
MODEL = "model"
_EVALUATION_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(JobConfig):
    """How to train a classifier, and on what."""

    galaxies: str = "{root}/galaxies"
    """Real galaxies: their splits train, choose the threshold, and judge."""
    synthetic: str = ""
    """Synthetic galaxies to learn from as well; empty for real ones only."""
    augmentation_ratio: float = 0.1
    """Synthetic galaxies for each real one, in every batch."""
    output: str = "{root}/classifier"
    target: str = "dust_lane_early_type"
    """What to find: a built-in target, or name=expression over GZ2 answers. Empty: no rare target, the
    morphology classes alone."""
    backbone: str = "resnet-small"
    size_px: int = 64
    epochs: int = 30
    batch_size: int = 64
    """Real galaxies in a step, over all workers."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    max_pos_weight: float = 20.0
    """Most that one galaxy of the target weighs against one that is not."""
    bfloat16: bool = True
    seed: int = 0
    scaling: Scaling = field(default_factory=Scaling)

    def __post_init__(self) -> None:
        require(self.epochs >= 1, f"--epochs is {self.epochs}; give at least 1.")
        require(
            self.augmentation_ratio >= 0,
            f"--augmentation-ratio is {self.augmentation_ratio}; give 0 or more.",
        )
        require(
            self.batch_size % self.scaling.workers == 0,
            f"--batch-size {self.batch_size} is no multiple of --scaling.workers {self.scaling.workers}.",
        )
        self.network()

    def network(self) -> ClassifierConfig:
        """Return the network's configuration; refuses an unknown backbone or target."""
        targets = (find_target(self.target),) if self.target else ()
        return ClassifierConfig(self.backbone, self.size_px, targets=targets)

    @property
    def synthetic_per_worker(self) -> int:
        """Synthetic galaxies that one worker adds to each batch."""
        if not self.synthetic:
            return 0
        return round(self.batch_size * self.augmentation_ratio / self.scaling.workers)


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
        assert result.checkpoint is not None  # the last epoch always reports one
        with result.checkpoint.as_directory() as folder:
            predictions = pq.read_table(Path(folder, PREDICTIONS_FILE))
            decision, report = judge(predictions, network.load(Path(folder, MODEL)).config)
            publication.add_folder(Path(folder, MODEL))
            publication.write(PREDICTIONS_FILE, Path(folder, PREDICTIONS_FILE).read_bytes())
        if decision:
            publication.write(DECISION_FILE, decision.to_json())
        publication.write("metrics.json", json.dumps(report, indent=1))
        publication.lineage = {"trained_on": parents, "splits": ["train"]}
        _log_judgement(run, report, predictions)
    (output / CHECKPOINTS).delete()
    for split in JUDGED_SPLITS:
        say(f"classify: on {split} galaxies {report[split]['text']}")
    return Manifest.read(output)


def check_lineage(config: ClassifyConfig) -> dict[str, str]:
    """Return the parents' fingerprints, having made sure that nothing that judges was learnt from.

    Splits follow from galaxy ids alone, so it is enough that every model in the ancestry of the
    synthetic galaxies was trained on training splits.
    """
    galaxies = config.location(config.galaxies)
    parents = {galaxies.uri: Manifest.read(galaxies, "galaxies").fingerprint}
    if not config.synthetic:
        return parents
    synthetic = config.location(config.synthetic)
    refuse_seen(ancestry(synthetic), JUDGED_SPLITS, "this classifier")
    return parents | {synthetic.uri: Manifest.read(synthetic, "synthetic").fingerprint}


def refuse_seen(manifests: Mapping[str, Manifest], splits: Sequence[str], judged: str) -> None:
    """Refuse models that have seen galaxies of the splits which are to judge.

    Raises
    ------
    LineageError
        Names the first of them.
    """
    for uri, manifest in manifests.items():
        seen = set(manifest.lineage.get("splits", ())) & set(splits)
        if seen:
            raise LineageError(
                f"{uri} ({manifest.kind}) has seen {', '.join(sorted(seen))} galaxies, which judge {judged}. "
                "Train it on the training split only, and make what follows from it again."
            )


def fit(config: ClassifyConfig, storage: Location, callbacks: list[UserCallback]) -> Result:
    """Run the training on Ray Train; the last checkpoint holds the model and its predictions."""
    network_config = config.network()
    weights = measure_balance(config, network_config)
    network_config = replace(network_config, prevalence=weights.assumed_prevalence)
    prepare = _preparation(network_config)
    datasets: dict[str, Any] = {
        split: _prepared(config.location(config.galaxies), "galaxies", split, prepare)
        for split in ("train", *JUDGED_SPLITS)
    }
    if config.synthetic_per_worker:
        datasets["synthetic"] = _prepared(config.location(config.synthetic), "synthetic", None, prepare)
    trainer = TorchTrainer(
        fit_loop,
        train_loop_config={"config": config, "network": network_config, "balance": weights},
        datasets=datasets,
        dataset_config=DataConfig(datasets_to_split=["train", "synthetic"]),
        scaling_config=config.scaling.ray(),
        run_config=train_run(CHECKPOINTS, storage, config.scaling, callbacks),
    )
    return trainer.fit()


def _prepared(location: Location, kind: str, split: str | None, prepare: PrepareGalaxies) -> Dataset:
    galaxies = read_galaxies(location, split, (*LABEL_COLUMNS, "image"), kind)
    return decoded_once(galaxies.map_batches(prepare, batch_format="pyarrow", batch_size=256))


def _preparation(config: ClassifierConfig) -> PrepareGalaxies:
    return PrepareGalaxies(config.size_px, config.classes, config.targets)


def measure_balance(config: ClassifyConfig, network_config: ClassifierConfig) -> Balance:
    """Weigh the target's galaxies against the others, as they will come in the mixed batches.

    Raises
    ------
    EmptyInputError
        The training galaxies leave nothing to learn; see `refuse_one_sided`.
    """
    real = _labels(read_galaxies(config.location(config.galaxies), "train", LABEL_COLUMNS), network_config)
    parts = [real]
    if config.synthetic_per_worker:
        synthetic = read_galaxies(config.location(config.synthetic), None, LABEL_COLUMNS, "synthetic")
        painted = _labels(synthetic, network_config)
        added = round(len(real["targets"]) * config.augmentation_ratio)
        rows = np.resize(np.arange(len(painted["targets"])), added)
        parts.append({name: values[rows] for name, values in painted.items()})
    mixed = {name: np.concatenate([part[name] for part in parts]) for name in real}
    refuse_one_sided(mixed, network_config, config.galaxies)
    return network.balance(
        mixed["morphology"],
        mixed["targets"],
        len(network_config.classes),
        max_pos_weight=config.max_pos_weight,
    )


def refuse_one_sided(labels: Mapping[str, np.ndarray], network_config: ClassifierConfig, where: str) -> None:
    """Refuse galaxies from which nothing can be learnt.

    Raises
    ------
    EmptyInputError
        None is known to be of the target, or none is known not to be; without a target: fewer than
        two classes have galaxies.
    """
    morphology, targets = labels["morphology"], labels["targets"]
    positives, negatives = ((targets == value).sum() for value in (1, 0))
    if network_config.targets and not (positives and negatives):
        raise EmptyInputError(
            f"{where}: of {len(targets)} training galaxies {positives} are known to be "
            f"{network_config.target_names[0]} and {negatives} are known not to be. Both are needed: ingest "
            "galaxies with votes, choose another --target, or add --synthetic galaxies."
        )
    classes = len(np.unique(morphology[morphology >= 0]))
    if not network_config.targets and classes < 2:
        raise EmptyInputError(
            f"{where}: its {len(morphology)} training galaxies are of {classes} known morphology class(es), "
            f"and two are needed. Ingest galaxies with votes, or with labels such as "
            f"{network_config.class_names[0]}."
        )


def _labels(galaxies: Dataset, network_config: ClassifierConfig) -> dict[str, np.ndarray]:
    label = _preparation(network_config).labels
    found = galaxies.map_batches(label, batch_format="pyarrow", batch_size=4096)
    batches = list(found.iter_batches(batch_size=None, batch_format="numpy"))
    if not batches:
        raise EmptyInputError("There is no training galaxy. Ingest more galaxies.")
    return {name: np.concatenate([batch[name] for batch in batches]) for name in ("morphology", "targets")}


def fit_loop(settings: dict[str, Any]) -> None:
    """Train on one worker of a Ray Train run."""
    config: ClassifyConfig = settings["config"]
    torch.set_num_threads(config.scaling.threads)
    torch.manual_seed(config.seed)
    model = Classifier(settings["network"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    first_epoch = _restore(model, optimizer, ray.train.get_checkpoint())
    wrapped = prepare_model(model)
    is_first = ray.train.get_context().get_world_rank() == 0
    progress = Progress("classify", config.epochs, "epochs") if is_first else None
    for epoch in range(first_epoch, config.epochs):
        loss = _train_epoch(config, wrapped, optimizer, settings["balance"], epoch)
        last = epoch + 1 == config.epochs
        report = {"step": epoch + 1, "loss": loss}
        if not is_first:
            ray.train.report(report)
            continue
        predictions = predict_splits(model, config.bfloat16, JUDGED_SPLITS if last else ("validation",))
        report |= validation_metrics(predictions, model.config)
        _report(report, model, optimizer, predictions)
        if progress:
            progress.advance(1, f"loss {loss:.3f}, {_headline(report)}")


def _headline(report: dict[str, float]) -> str:
    name = "average_precision" if "average_precision" in report else "accuracy"
    return f"{name.replace('_', ' ')} {report[name]:.3f}"


def _train_epoch(
    config: ClassifyConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    balance: Balance,
    epoch: int,
) -> float:
    """Train on every real galaxy once; returns the mean loss."""
    device, losses = get_device(), []
    model.train()
    _set_learning_rate(optimizer, config, epoch)
    for step, batch in enumerate(mixed_batches(config, epoch)):
        seed = (config.seed * 1009 + epoch) * 1_000_003 + step
        images = network.augment(batch["image"], torch.Generator().manual_seed(seed)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
            outputs = model(images)
        loss = network.loss(outputs, batch["morphology"].to(device), batch["targets"].to(device), balance)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    if not losses:
        raise EmptyInputError(
            f"{config.galaxies} has fewer training galaxies than a batch. Lower --batch-size."
        )
    return float(torch.stack(losses).mean())


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: ClassifyConfig, epoch: int) -> None:
    """A cosine over the epochs, down to a hundredth."""
    share = 0.505 + 0.495 * math.cos(math.pi * epoch / config.epochs)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * share


def mixed_batches(config: ClassifyConfig, epoch: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches of real galaxies, each with its share of synthetic ones."""
    real = _shuffled(_shard("train"), config.batch_size // config.scaling.workers, config.seed + epoch)
    if not config.synthetic_per_worker:
        yield from real
        return
    painted = _endless(_shard("synthetic"), config.synthetic_per_worker, config.seed + epoch)
    for batch, extra in zip(real, painted, strict=False):
        yield {name: torch.cat([batch[name], extra[name]]) for name in batch}


def _shard(name: str) -> DataIterator:
    shard = ray.train.get_dataset_shard(name)
    assert shard is not None  # the trainer is given it
    return shard


def _shuffled(shard: DataIterator, batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    return iter(
        shard.iter_torch_batches(
            batch_size=batch_size,
            drop_last=True,
            local_shuffle_buffer_size=32 * batch_size,
            local_shuffle_seed=seed,
        )
    )


def _endless(shard: DataIterator, batch_size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    for epoch in count(seed):
        yield from _shuffled(shard, batch_size, epoch)


def predict_splits(model: Classifier, bfloat16: bool, splits: tuple[str, ...]) -> pa.Table:
    """Score the real galaxies that judge: one row each, with what is true of them."""
    tables = [
        _predict_batch(model, bfloat16, split, batch)
        for split in splits
        for batch in _shard(split).iter_torch_batches(batch_size=_EVALUATION_BATCH)
    ]
    model.train()
    return pa.concat_tables(tables)


def _predict_batch(model: Classifier, bfloat16: bool, split: str, batch: dict[str, Tensor]) -> pa.Table:
    probabilities = network.predict(model, batch["image"].cpu(), bfloat16=bfloat16)
    columns = {
        "galaxy_id": batch["galaxy_id"].cpu().numpy(),
        "split": [split] * len(batch["galaxy_id"]),
        "morphology": batch["morphology"].cpu().numpy(),
        "morphology_predicted": probabilities.morphology.argmax(axis=1),
    }
    if model.config.targets:
        columns |= {"truth": batch["targets"][:, 0].cpu().numpy(), "score": probabilities.targets[:, 0]}
    return pa.table(columns)


def _restore(model: Classifier, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint | None) -> int:
    """Load a checkpoint, if there is one; returns the epoch to go on with."""
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        model.load_state_dict(network.load(Path(folder, MODEL)).state_dict())
        state = torch.load(Path(folder, "optimizer.pt"), weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    return state["epochs"]


def _report(
    report: dict[str, float], model: Classifier, optimizer: torch.optim.Optimizer, predictions: pa.Table
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        network.save(model, Path(folder, MODEL))
        torch.save(
            {"optimizer": optimizer.state_dict(), "epochs": report["step"]}, Path(folder, "optimizer.pt")
        )
        pq.write_table(predictions, Path(folder, PREDICTIONS_FILE))
        ray.train.report(report, checkpoint=Checkpoint.from_directory(folder))


def _log_judgement(run: Run, report: dict[str, Any], predictions: pa.Table) -> None:
    for split in JUDGED_SPLITS:
        run.metrics({f"{split}.{name}": value for name, value in flatten(report[split]).items()})
    if "truth" in predictions.column_names:
        by_split = {split: of_split(predictions, split) for split in JUDGED_SPLITS}
        run.figure(curve_figure(by_split), "curves.png")


PRESETS = {
    "laptop": Preset(
        "a small network for 64 px cutouts: a minute or two on two cores", ClassifyConfig(epochs=8)
    ),
    "classes": Preset(
        "morphology classes alone, at 64 px: a reference that judges synthetic galaxies",
        ClassifyConfig(target="", epochs=8),
    ),
    "debug": Preset(
        "seconds on a CPU, to see that everything runs",
        ClassifyConfig(backbone="resnet-tiny", size_px=32, epochs=2, batch_size=32),
    ),
}
