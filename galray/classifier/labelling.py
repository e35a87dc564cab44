"""A classifier's confident answers -> labels of galaxies of which nothing is known (Lee 2013)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from galray.classifier.answers import answers
from galray.classifier.judging import of_split, read_predictions, said
from galray.classifier.network import ClassifierConfig, Probabilities, published_settings
from galray.classifier.targets import UNKNOWN
from galray.core.cells import votes_array
from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.intervals import Rate
from galray.core.manifest import Manifest, ancestry, publish, standing, write_parquet
from galray.core.shards import whole_table
from galray.core.storage import Location
from galray.core.tracking import track
from galray.data.batches import read_galaxies
from galray.data.labelled import LABELS, LIST_FILE, Labelled
from galray.data.lineage import JUDGED_SPLITS, refuse_seen, trained_on

_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class LabelConfig(JobConfig):
    """Which galaxies a classifier labels, and how sure it must be."""

    galaxies: str = "{root}/galaxies"
    """Training galaxies get a label that have neither votes nor one, or none that the classifier knew."""
    classifier: str = "{root}/classifier"
    """It says whether they are of its rare target; where it has none, of which class."""
    confidence: float = 0.95
    """Probability, as the classifier gives it, from which on its answer counts. One that learnt from few
    galaxies is surer than it is right: how often it is, among validation galaxies, is told."""
    output: str = "{root}/labels"

    def __post_init__(self) -> None:
        require(0.5 < self.confidence < 1, f"--confidence {self.confidence} must lie between 0.5 and 1.")


def label(config: LabelConfig) -> Manifest:
    """Publish a list for ``--labelled``: galaxies with labels of their own, and those that now get one.

    Raises
    ------
    LineageError
        The classifier, or a model behind it, has seen galaxies that judge.
    InputError
        Galaxies or a classifier that are not published.
    """
    output = config.location(config.output)
    done = standing(output, LABELS, config.resume)
    if done:
        say(f"label: {output.uri} stands with {done.counts['given']} labels given")
        return done
    galaxies, classifier = config.location(config.galaxies), config.location(config.classifier)
    parents = {galaxies.uri: Manifest.read(galaxies, "galaxies").fingerprint}
    teacher = Manifest.read(classifier, "classifier")
    parents[classifier.uri] = teacher.fingerprint
    refuse_seen(ancestry(classifier), JUDGED_SPLITS, "what learns from these labels")
    truth = teacher.lineage.get("labelled")
    labelled = Labelled.read(config.location(truth)) if truth else None
    with track("label", config) as run, publish(output, LABELS, config.resolved(), parents) as publication:
        give = GiveLabels.of(classifier, config.confidence)
        right = rightness(read_predictions(classifier), give.settings, config.confidence)
        table = _looked_at(galaxies, labelled, give)
        listed = table.filter(pc.field("own") | pc.field("label").is_valid())
        publication.add(write_parquet(output, LIST_FILE, listed.select(["galaxy_id", "label"])))
        publication.counts |= _counts(table) | {
            "validation_right": right.count,
            "validation_sure": right.total,
        }
        publication.lineage = trained_on(parents, labelled)
        run.metrics(publication.counts)
    counts = publication.counts
    told = f"{counts['own']} galaxies are known, {counts['given']} get a label, {counts['unsure']} none"
    say(f"label: {told} -> {output.uri}/{LIST_FILE}")
    if right.total:
        say(f"label: right for {right} of the validation galaxies of which it is as sure")
    else:
        say("label: of no validation galaxy whose truth is known it is as sure")
    return Manifest.read(output)


def _looked_at(galaxies: Location, labelled: Labelled | None, give: GiveLabels) -> pa.Table:
    columns = ("galaxy_id", "votes", "classifications", "label", "image")
    rows = read_galaxies(galaxies, "train", columns, labelled=labelled)
    given = rows.map_batches(give.__call__, batch_format="pyarrow", batch_size=_IMAGES_AT_ONCE)
    return whole_table(given).sort_by("galaxy_id")


def _counts(table: pa.Table) -> dict[str, int]:
    own, given = int(table["own"].to_numpy().sum()), Counter(table["label"].drop_null().to_pylist())
    of_label = {f"given.{name}": count for name, count in sorted(given.items())}
    return {"own": own, "given": given.total(), "unsure": len(table) - own - given.total(), **of_label}


@dataclass(frozen=True)
class GiveLabels:
    """Label the galaxies of a block of which nothing is known; cheap to send to workers.

    Attributes
    ----------
    classifier : Location
    settings : ClassifierConfig
        The classifier's.
    confidence : float
    """

    classifier: Location
    settings: ClassifierConfig
    confidence: float

    @classmethod
    def of(cls, classifier: Location, confidence: float) -> GiveLabels:
        return cls(classifier, published_settings(classifier), confidence)

    def __call__(self, galaxies: pa.Table) -> pa.Table:
        """Return ``galaxy_id``, ``own``, whether something is known of it, and ``label``, given or null."""
        own = ~np.isnan(votes_array(galaxies)).all(axis=1) | galaxies["label"].is_valid().to_numpy()
        label: np.ndarray = np.full(len(galaxies), None, object)
        unknown = np.flatnonzero(~own)
        if len(unknown):
            found = answers(self.classifier, galaxies.take(unknown))
            label[unknown] = confident(found, self.settings, self.confidence)
        columns = {"galaxy_id": galaxies["galaxy_id"], "own": own, "label": pa.array(label, pa.string())}
        return pa.table(columns)


def confident(found: Probabilities, settings: ClassifierConfig, confidence: float) -> np.ndarray:
    """Return the labels that probabilities of at least `confidence` give, or None: object, shape (n,)."""
    if settings.targets:
        name, yes = settings.targets[0].name, found.targets[:, 0]
        names, sure, place = (f"not_{name}", name), np.maximum(yes, 1 - yes), (yes > 0.5).astype(int)
    else:
        names = settings.class_names
        sure, place = found.morphology.max(axis=1), found.morphology.argmax(axis=1)
    return np.where(sure >= confidence, np.array(names, object)[place], np.full(len(sure), None, object))


def rightness(predictions: pa.Table, settings: ClassifierConfig, confidence: float) -> Rate:
    """Return for how many of the validation galaxies whose truth is known a label would be right."""
    rows = of_split(predictions, "validation")
    target = settings.targets[0].name if settings.targets else ""
    names = np.array([f"not_{target}", target] if target else settings.class_names, object)
    truth = rows["truth" if target else "morphology"].to_numpy()
    label = confident(said(rows), settings, confidence)
    sure = (truth != UNKNOWN) & np.array([one is not None for one in label], bool)
    return Rate(int((names[truth[sure]] == label[sure]).sum()), int(sure.sum()))


PRESETS = {"confident": Preset("labels where the classifier is sure; for --labelled", LabelConfig())}
