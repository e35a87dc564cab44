"""The augmentation study: does it help to learn from synthetic galaxies, and with how many labels?

A cell is a setting, a seed and a method. Each of its steps, from the list of labels to the classifier, is
the job of the same name, which publishes its output and skips what stands; so the study is a loop, a killed
one is gone on with by running it again, and each job spreads over the cluster by itself. Cells come one after
another for that reason: two at a time would each have half of the cores.

A denoiser is trained only on what its setting may see: all images of the training split, the votes and labels
of the galaxies on the setting's list, and what a classifier that learnt from those is sure of. What all of
them go on from has seen images alone; it paints the variations of the galaxies on the list.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from galray.classifier.decision import Decision
from galray.classifier.judging import Calibration, of_split, probabilities, read_predictions
from galray.classifier.labelling import label
from galray.classifier.labels import LABEL_COLUMNS
from galray.classifier.network import ClassifierConfig, published_settings
from galray.classifier.train import classify
from galray.core.cluster import say
from galray.core.errors import EmptyInputError
from galray.core.manifest import Manifest, publish, standing, write_parquet
from galray.core.shards import whole_table
from galray.core.storage import Location
from galray.core.tracking import track
from galray.data.batches import read_galaxies
from galray.data.labelled import LIST_FILE
from galray.data.lineage import JUDGED_SPLITS
from galray.diffusion.synthesize import synthesize
from galray.diffusion.train import TrainConfig, train
from galray.evaluation.report import FIGURES
from galray.search.comparison import Judged, macro_f1
from galray.search.experiment import PRESETS, Labels, StudyConfig
from galray.search.methods import METHODS, PAINTED, VARIATIONS
from galray.search.outcome import Outcome, outcome
from galray.search.settings import Setting, class_names, classes_of, label_of, labelled_ids
from galray.search.study_report import study_report, table_of

__all__ = ["PRESETS", "StudyConfig", "study"]

_SHARE_EXPONENTS = (1.0, 0.5, 0.0)  # of the classes' shares: the survey's, halfway, equal ones


def study(config: StudyConfig) -> Manifest:
    """Compare classifiers that learn from synthetic galaxies with the best of those that do not.

    Raises
    ------
    EmptyInputError
        No training galaxy has a known class.
    """
    output = config.location(config.output)
    done = standing(output, "study", config.resume)
    if done:
        say(f"study: {output.uri} stands")
        return done
    galaxies = config.location(config.galaxies)
    parents = {galaxies.uri: Manifest.read(galaxies, "galaxies").fingerprint}
    with track("study", config) as run, publish(output, "study", config.resolved(), parents) as publication:
        known = training_labels(config)
        outcomes = [run_setting(config, known, setting) for setting in config.all_settings]
        report = study_report(config, outcomes)
        texts = {
            "report.md": report.markdown(),
            "report.html": report.html(),
            "figures.csv": table_of(outcomes).to_csv(index=False),
        }
        pictures = {f"{FIGURES}/{p.name}": p.png for section in report.sections for p in section.pictures}
        for name, content in {**{name: text.encode() for name, text in texts.items()}, **pictures}.items():
            publication.write(name, content)
            run.file(name, content)
        publication.counts["cells"] = sum(len(one.judged) * len(config.seeds) for one in outcomes)
        publication.lineage = {"judged_on": ["validation", "test"]}
        run.metrics(
            {f"difference.{one.setting.key}": one.difference.value for one in outcomes if one.difference}
        )
    for verdict in report.verdicts:
        say(f"study: {verdict.word}: {verdict.goal}: {verdict.found}")
    say(f"study: {output.uri}/report.html")
    return Manifest.read(output)


def run_setting(config: StudyConfig, known: pa.Table, setting: Setting) -> Outcome:
    """Run all cells of one setting and judge them."""
    cells = {seed: run_seed(config, publish_labels(config, known, setting, seed)) for seed in config.seeds}
    methods = [name for name in config.methods if all(name in of_seed for of_seed in cells.values())]
    read = {name: [read_judged(config, cells[seed][name]) for seed in config.seeds] for name in methods}
    validation, test = (
        {name: [of_seed[split] for of_seed in of_method] for name, of_method in read.items()}
        for split in JUDGED_SPLITS
    )
    return outcome(config, setting, validation, test)


def run_seed(config: StudyConfig, labels: Labels) -> dict[str, Location]:
    """Train every method's classifier with these labels; returns where each stands."""
    methods = config.possible(labels)
    say(f"study: {labels.setting}, seed {labels.seed}: {labels.labelled} labels, {len(methods)} methods")
    real, augmented = (
        [name for name in methods if METHODS[name].augmented is kind] for kind in (False, True)
    )
    trained = {name: teach(config, labels, name) for name in real}
    wanted = {METHODS[name].synthetic for name in augmented}
    if wanted:
        learn_to_paint(config, config.pretraining())
    if VARIATIONS in wanted:
        synthesize(config.varying(labels))
    if PAINTED in wanted:
        teacher = config.denoiser_teacher if config.denoiser_teacher in real else ""
        learn_to_paint(config, config.finetuning(labels_with(config, labels, teacher)))
        synthesize(config.painting(labels))
    return trained | {name: teach(config, labels, name) for name in augmented}


def learn_to_paint(config: StudyConfig, training: TrainConfig) -> None:
    """Train a denoiser; its cache, of all images, goes, for each has its own."""
    train(training)
    config.location(training.cache).delete()


def teach(config: StudyConfig, labels: Labels, name: str) -> Location:
    """Train one method's classifier; returns where it stands."""
    learnt = labels_with(config, labels, METHODS[name].teacher)
    training = config.classification(learnt, name)
    classify(training)
    return config.location(training.output)


def labels_with(config: StudyConfig, labels: Labels, teacher: str) -> Labels:
    """Add to labels what a method's classifier is sure of; none adds nothing."""
    if not teacher:
        return labels
    labelling = config.labelling(labels, teacher)
    counts, place = label(labelling).counts, config.location(labelling.output)
    target = config.classify.target
    given = {name: counts.get(f"given.{label_of(name, target)}", 0) for name in labels.counts}
    return labels.with_given((place / LIST_FILE).uri, given)


def publish_labels(config: StudyConfig, known: pa.Table, setting: Setting, seed: int) -> Labels:
    """Choose the galaxies whose labels a setting may use, and publish their list unless it stands.

    Parameters
    ----------
    known : pyarrow.Table
        The training galaxies, as `training_labels` returns them.
    """
    place = config.location(config.list_place(setting, seed))
    ids, classes = known["galaxy_id"].to_numpy(), classes_of(known, config.classify.target)
    names = class_names(config.classify.target)
    chosen = labelled_ids(ids, classes, names, setting, seed)
    if not len(chosen):
        raise EmptyInputError(f"{config.galaxies} has no training galaxy of {', '.join(names)}. Ingest some.")
    of_chosen = classes[np.isin(ids, chosen)]
    counts = {name: int((of_chosen == index).sum()) for index, name in enumerate(names)}
    if standing(place, "labelled", resume=True) is None:
        source = config.location(config.galaxies)
        parents = {source.uri: Manifest.read(source).fingerprint}
        with publish(place, "labelled", {**config.resolved(), "resume": True}, parents) as publication:
            publication.add(write_parquet(place, LIST_FILE, pa.table({"galaxy_id": chosen})))
            publication.counts |= counts
    uri = "" if setting.per_class is None else (place / LIST_FILE).uri
    return Labels(setting, seed, uri, counts, len(ids))


def training_labels(config: StudyConfig) -> pa.Table:
    """Return what is known of the training galaxies, without their images."""
    return whole_table(read_galaxies(config.location(config.galaxies), "train", LABEL_COLUMNS))


def read_judged(config: StudyConfig, classifier: Location) -> dict[str, Judged]:
    """Read what a published classifier made of the galaxies of each split that judges."""
    predictions = read_predictions(classifier).sort_by("galaxy_id")
    splits = {split: of_split(predictions, split) for split in JUDGED_SPLITS}
    if not config.classify.target:
        return judged_classes(splits, published_settings(classifier))
    threshold = Decision.read(classifier).threshold
    return {split: judged_target(rows, threshold) for split, rows in splits.items()}


def judged_classes(splits: Mapping[str, pa.Table], settings: ClassifierConfig) -> dict[str, Judged]:
    """Return what a classifier names, at those class shares of which validation galaxies gain most.

    How likely a class is before its galaxy is seen, a method of balancing decides along the way; here all
    methods choose it alike, calibrated on validation galaxies: as in the survey, equal, or halfway.

    Parameters
    ----------
    splits : mapping of str to pyarrow.Table
        By split, as classifiers publish their predictions; galaxies of unknown class are left out.
    settings : ClassifierConfig
    """
    calibration = Calibration.of(splits["validation"], settings)

    def named(rows: pa.Table, exponent: float) -> Judged:
        ids, classes = (rows[name].to_numpy() for name in ("galaxy_id", "morphology"))
        seen = calibration.at_shares(probabilities(rows), exponent, calibration.class_temperature)
        known = classes >= 0
        return Judged(ids[known], classes[known], seen.argmax(axis=1)[known], None, len(settings.classes))

    best = max(_SHARE_EXPONENTS, key=lambda exponent: macro_f1(named(splits["validation"], exponent)))
    return {split: named(rows, best) for split, rows in splits.items()}


def judged_target(rows: pa.Table, threshold: float) -> Judged:
    """Return what a classifier selects as a rare target; galaxies that nobody knows are left out."""
    ids, truth, score = (rows[name].to_numpy() for name in ("galaxy_id", "truth", "score"))
    known, left_out = truth >= 0, (score < threshold).astype(np.int64)
    is_other = (truth != 1).astype(np.int64)
    return Judged(ids[known], is_other[known], left_out[known], score[known].astype(np.float64), 2)
