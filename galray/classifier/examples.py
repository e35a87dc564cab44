"""Galaxy shards -> what the classifier learns from and is judged on: images, classes and targets, cached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.data import Dataset

from galray.classifier.backbones import PRETRAINED
from galray.classifier.labels import LABEL_COLUMNS, PrepareGalaxies
from galray.classifier.losses import Balance, ClassBalance, Draw, balance, evenly
from galray.classifier.network import ClassifierConfig
from galray.classifier.votes import N_QUESTIONS
from galray.core.cluster import say
from galray.core.errors import EmptyInputError
from galray.core.manifest import Manifest
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location
from galray.data.batches import read_galaxies
from galray.data.cache import cached
from galray.data.labelled import Labelled
from galray.data.lineage import JUDGED_SPLITS
from galray.data.stream import CachedGalaxies, Column, joined

if TYPE_CHECKING:
    from galray.classifier.train import ClassifyConfig

_IMAGES_AT_ONCE = 256


def label_columns(config: ClassifierConfig) -> dict[str, Column]:
    """Return what is cached of labels; without a target there are none to cache."""
    columns = {"morphology": Column((), "int64")}
    if config.targets:
        columns["targets"] = Column((len(config.targets),), "int8")
    if config.votes:
        columns["votes"] = Column((N_ANSWERS,), "float32")
        columns["volunteers"] = Column((N_QUESTIONS,), "float32")
    return columns


@dataclass(frozen=True)
class Examples:
    """What one training learns from, how, and what judges it.

    Attributes
    ----------
    network : ClassifierConfig
        With the shares that the published outputs assume.
    balance : Balance
    draw : Draw or None
        How likely real galaxies are drawn; None shows each once an epoch.
    real : CachedGalaxies
    synthetic : CachedGalaxies or None
    judged : mapping
        Split -> its galaxies.
    """

    network: ClassifierConfig
    balance: Balance
    draw: Draw | None
    real: CachedGalaxies
    synthetic: CachedGalaxies | None
    judged: Mapping[str, CachedGalaxies]

    @classmethod
    def of(cls, config: ClassifyConfig) -> Examples:
        """Cache what a configuration asks for, unless it stands, and measure its classes.

        Raises
        ------
        EmptyInputError
            The galaxies leave nothing to learn, or nothing to judge by; see `refuse_one_sided`.
        """
        settings = with_architecture(config)
        real = _real(config, settings, "train")
        judged = {split: _real(config, settings, split) for split in JUDGED_SPLITS}
        synthetic = _synthetic(config, settings) if config.synthetic_per_step else None
        labels = labels_of(real)
        draw = drawing(config, labels)
        measured = measure_balance(
            config, settings, labels, labels_of(synthetic) if synthetic else None, draw
        )
        shares = measured.assumed
        if config.prior == "natural":
            natural = labels_of(judged["validation"])
            shares = balance(natural, len(settings.classes), "none").assumed
        settings = replace(settings, class_shares=shares.classes, prevalence=shares.prevalence)
        return cls(settings, measured, draw, real, synthetic, judged)


def with_architecture(config: ClassifyConfig) -> ClassifierConfig:
    """Return the network's configuration, with the architecture of the one that it starts from."""
    settings, start = config.network(), config.starting_backbone()
    if start is None:
        return settings
    known: Any = start.config
    return replace(settings, backbone=PRETRAINED, architecture=known.to_dict())


def _real(config: ClassifyConfig, settings: ClassifierConfig, split: str) -> CachedGalaxies:
    """Cache a split of the real galaxies; what is hidden from training judges all the same."""
    galaxies, key = config.location(config.galaxies), {"split": split}
    if split != "train":
        return _cached(config, galaxies, "galaxies", PrepareGalaxies(settings), settings, key)
    labelled = config.read_labelled()
    if labelled:
        key["labelled"] = labelled.fingerprint
    prepare = PrepareGalaxies(settings, only_known=True)
    return _cached(config, galaxies, "galaxies", prepare, settings, key, labelled)


def _synthetic(config: ClassifyConfig, settings: ClassifierConfig) -> CachedGalaxies:
    """Cache the synthetic galaxies; those that an approver refuses are counted, and left out."""
    synthetic, approver = config.location(config.synthetic), config.approver()
    prepare = PrepareGalaxies(settings, only_known=True, approver=approver)
    if not approver:
        return _cached(config, synthetic, "synthetic", prepare, settings, {})
    try:
        approved = _cached(
            config, synthetic, "synthetic", prepare, settings, {"approver": approver.fingerprint}
        )
    except EmptyInputError as error:
        raise EmptyInputError(
            f"--approved-by {approver.classifier.uri} recognises none of {synthetic.uri}. Look "
            "at some of them; paint others, or learn from all."
        ) from error
    painted = Manifest.read(synthetic, "synthetic").counts["rows_out"]
    say(f"classify: {approver.classifier.uri} recognises {len(approved)} of {painted} synthetic galaxies")
    return approved


def _cached(
    config: ClassifyConfig,
    galaxies: Location,
    kind: str,
    prepare: PrepareGalaxies,
    settings: ClassifierConfig,
    key: Mapping[str, str],
    labelled: Labelled | None = None,
) -> CachedGalaxies:
    def prepared() -> Dataset:
        rows = read_galaxies(galaxies, key.get("split"), (*LABEL_COLUMNS, "image"), kind, labelled)
        return rows.map_batches(prepare.__call__, batch_format="pyarrow", batch_size=_IMAGES_AT_ONCE)

    columns = {"image": Column((settings.size_px, settings.size_px, 3), "uint8"), **label_columns(settings)}
    told = {
        "classes": [asdict(c) for c in settings.classes],
        "targets": [asdict(t) for t in settings.targets],
    }
    try:
        return cached(galaxies, config.location(config.cache), columns, prepared, {**key, **told})
    except EmptyInputError as error:
        which = f"{key['split']} galaxy" if "split" in key else "galaxy"
        raise EmptyInputError(
            f"{galaxies.uri} has no {which} of which anything is known that could be learnt or judged. "
            "Ingest more galaxies, with votes or labels."
        ) from error


def labels_of(galaxies: CachedGalaxies) -> dict[str, np.ndarray]:
    """Read ``morphology`` int64 [n] and ``targets`` int8 [n, targets] of cached galaxies."""
    names = [name for name in ("morphology", "targets") if name in galaxies.columns]
    rows = galaxies.read(galaxies.blocks, names)
    empty = np.empty((len(rows["galaxy_id"]), 0), np.int8)
    return {"morphology": rows["morphology"], "targets": rows.get("targets", empty)}


def drawing(config: ClassifyConfig, labels: Mapping[str, np.ndarray]) -> Draw | None:
    """Return how real galaxies are drawn with replacement; None where each comes once an epoch."""
    if config.balance == "class-balanced":
        return ClassBalance.of(labels, len(config.network().classes))
    return evenly if config.replacement else None


def measure_balance(
    config: ClassifyConfig,
    settings: ClassifierConfig,
    real: Mapping[str, np.ndarray],
    synthetic: Mapping[str, np.ndarray] | None,
    draw: Draw | None,
) -> Balance:
    """Weigh classes and targets against each other, as they will come in the mixed batches.

    Raises
    ------
    EmptyInputError
        The training galaxies leave nothing to learn; see `refuse_one_sided`.
    """
    parts, count = [real], len(real["morphology"])
    drawn = draw(real) if draw else np.ones(count)
    weights = [drawn * (count / max(drawn.sum(), 1e-9))]
    if synthetic:
        parts.append(synthetic)
        painted = len(synthetic["morphology"])
        weights.append(np.full(painted, count * config.synthetic_per_step / config.batch_size / painted))
    mixed = joined(parts)
    refuse_one_sided(mixed, settings, config.galaxies)
    return balance(
        mixed,
        len(settings.classes),
        config.balance,
        max_pos_weight=config.max_pos_weight,
        weights=np.concatenate(weights),
    )


def refuse_one_sided(labels: Mapping[str, np.ndarray], settings: ClassifierConfig, where: str) -> None:
    """Refuse galaxies from which nothing can be learnt.

    Raises
    ------
    EmptyInputError
        None is known to be of the target, or none is known not to be; without a target: fewer than
        two classes have galaxies.
    """
    morphology, targets = labels["morphology"], labels["targets"]
    positives, negatives = ((targets == value).sum() for value in (1, 0))
    if settings.targets and not (positives and negatives):
        raise EmptyInputError(
            f"{where}: of {len(targets)} training galaxies {positives} are known to be "
            f"{settings.target_names[0]} and {negatives} are known not to be. Both are needed: ingest "
            "galaxies with votes, choose another --target, or add --synthetic galaxies."
        )
    classes = len(np.unique(morphology[morphology >= 0]))
    if not settings.targets and classes < 2:
        raise EmptyInputError(
            f"{where}: its {len(morphology)} training galaxies are of {classes} known morphology class(es), "
            f"and two are needed. Ingest galaxies with votes, or with labels such as "
            f"{settings.class_names[0]}."
        )
