"""From predictions to verdicts: what a study's report says."""

import numpy as np
import pyarrow as pa
import pytest

from galray.classifier.network import ClassifierConfig
from galray.search.comparison import Judged
from galray.search.experiment import StudyConfig
from galray.search.methods import REAL_ONLY
from galray.search.outcome import Outcome, outcome
from galray.search.settings import Setting
from galray.search.study import judged_classes, judged_target
from galray.search.study_report import study_report, table_of

TRUTH = np.arange(600) % 5
CONFIG = StudyConfig(
    settings=("30",), methods=(REAL_ONLY, "focal", "augmented"), seeds=(0, 1, 2), denoiser_teacher=REAL_ONLY
)


def judged(accuracy: float) -> list[Judged]:
    """Return three seeds of a classifier that is right so often."""
    rng = np.random.default_rng(int(1000 * accuracy))
    right = rng.random((3, len(TRUTH))) < accuracy
    return [Judged(np.arange(600), TRUTH, np.where(one, TRUTH, (TRUTH + 1) % 5), None, 5) for one in right]


def of(validation: dict[str, float], test: dict[str, float]) -> Outcome:
    by_method = [{name: judged(share) for name, share in shares.items()} for shares in (validation, test)]
    return outcome(CONFIG, Setting.parse("30"), *by_method)


def test_the_baseline_is_chosen_on_validation_and_judged_on_test() -> None:
    found = of(
        {REAL_ONLY: 0.7, "focal": 0.75, "augmented": 0.8}, {REAL_ONLY: 0.79, "focal": 0.7, "augmented": 0.81}
    )
    assert (found.baseline, found.augmented) == ("focal", "augmented")
    assert found.difference is not None
    assert found.difference.low < 0.11 < found.difference.high


@pytest.mark.parametrize(
    ("augmented", "word"), [(0.9, "reached"), (0.7, "missed"), (0.755, "undecided")], ids=str
)
def test_verdicts_follow_from_the_interval(augmented: float, word: str) -> None:
    figures = {REAL_ONLY: 0.7, "focal": 0.6, "augmented": augmented}
    report = study_report(CONFIG, [of(figures, figures)])
    (verdict,) = report.verdicts
    assert verdict.word == word
    assert "synthetic galaxies" in report.markdown()
    assert report.html().count("data:image/png") == 2


def test_a_kind_that_could_not_learn_is_told() -> None:
    found = of({"augmented": 0.8}, {"augmented": 0.8})
    assert found.difference is None
    report = study_report(CONFIG, [found])
    assert report.verdicts[0].word == "not measured"
    assert "cannot learn" in report.markdown()
    assert table_of([found])["method"].tolist() == ["augmented"]


def of_classes(truth: list[int], of_rare: list[float]) -> pa.Table:
    """Return predictions of two of the five classes: how likely the rare one, 1, is."""
    probability = np.full((len(truth), 5), 1e-6)
    probability[:, 1] = of_rare
    probability[:, 0] = 1 - probability[:, 1:].sum(axis=1)
    cells = pa.FixedSizeListArray.from_arrays(probability.astype(np.float32).ravel(), 5)
    return pa.table({"galaxy_id": range(len(truth)), "morphology": truth, "morphology_probability": cells})


@pytest.mark.parametrize("assumed", [0.2, 0.5, 0.8], ids=str)
def test_classes_are_named_at_the_shares_that_validation_likes_best(assumed: float) -> None:
    """One galaxy in five is rare; however often its training saw it, the same galaxies are found.

    At equal shares all that are likelier rare than its share says are named so, and all of them are rare.
    """
    truth, evidence = [1, 0, 0, 0, 0] * 20, np.array([1.5, 0.5, 0.4, 0.3, 0.2] * 20)
    odds = evidence * assumed / (1 - assumed)
    rows = of_classes(truth, (odds / (1 + odds)).tolist())
    shares = (1 - assumed, assumed, 1e-6, 1e-6, 1e-6)
    judged = judged_classes(
        {"validation": rows, "test": rows.slice(5)}, ClassifierConfig(targets=(), class_shares=shares)
    )
    assert judged["validation"].predicted.tolist() == truth
    assert judged["test"].predicted.tolist() == truth[5:]
    assert judged["test"].galaxy_id[0] == 5


def test_galaxies_of_unknown_class_are_not_judged() -> None:
    rows = of_classes([0, -1, 1], [0.1, 0.2, 0.9])
    judged = judged_classes({"validation": rows, "test": rows}, ClassifierConfig(targets=()))
    assert judged["test"].galaxy_id.tolist() == [0, 2]


def test_a_target_is_selected_at_its_threshold() -> None:
    rows = pa.table(
        {"galaxy_id": [1, 2, 3], "truth": pa.array([1, 0, -1], pa.int8()), "score": [0.9, 0.6, 0.1]}
    )
    target = judged_target(rows, 0.7)
    assert (target.truth.tolist(), target.predicted.tolist(), target.classes) == ([0, 1], [0, 1], 2)
