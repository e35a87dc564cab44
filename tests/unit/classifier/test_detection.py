"""Completeness, purity and their kin against hand-computed cases and bounds."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix_at_thresholds

from galray.classifier import calibration, confusion, detection
from galray.core import intervals
from galray.core.errors import ConfigError, EmptyInputError, InputError

# by falling score: true true false false true; the galaxy of unknown truth has no part in anything
TRUTH = np.array([1, 1, 0, 0, 1, -1])
SCORE = np.array([0.9, 0.8, 0.7, 0.2, 0.1, np.nan])
NONE = np.zeros(4, dtype=int)
Survey = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def survey() -> Survey:
    """2,000 galaxies, a tenth of them true, with overlapping scores and ties."""
    rng = np.random.default_rng(1)
    truth = (rng.random(2000) < 0.1).astype(int)
    return truth, np.round(rng.normal(truth, 1.0), 1)


def test_completeness_and_purity_by_hand():
    found = detection.completeness_purity(TRUTH, SCORE, 0.5)
    counts = (found.true_positives, found.false_positives, found.false_negatives, found.true_negatives)
    assert counts == (2, 1, 1, 1)
    assert (found.completeness.count, found.completeness.total) == (2, 3)
    assert (found.purity.count, found.purity.total) == (2, 3)
    assert found.false_positive_rate.value == 0.5
    assert found.f1 == pytest.approx(2 / 3)
    assert str(found).startswith("completeness 0.67 [0.21, 0.94] (2/3), purity 0.67 [0.21, 0.94] (2/3)")
    assert found.as_dict()["purity_low"] == pytest.approx(0.2077, abs=1e-4)


def test_a_score_at_the_threshold_is_selected():
    assert detection.completeness_purity(TRUTH, SCORE, 0.9).true_positives == 1


@pytest.mark.parametrize(
    ("aim", "threshold"),
    [
        ({"purity": 1.0}, 0.8),
        ({"purity": 0.6}, 0.1),  # three of five: the most complete that is pure enough
        ({"completeness": 0.3}, 0.9),
        ({"completeness": 0.6}, 0.8),
        ({"completeness": 1.0}, 0.1),
        ({"count": 3}, 0.7),
        ({"count": 99}, 0.1),
        ({"count": 0}, np.inf),
        ({"best_f1": True}, 0.8),
    ],
)
def test_threshold_for(aim, threshold):
    assert detection.threshold_for(TRUTH, SCORE, **aim) == threshold


def test_threshold_that_no_selection_reaches_selects_none():
    truth, score = np.array([0, 1]), np.array([0.9, 0.1])
    found = detection.completeness_at_purity(truth, score, 0.9)
    assert found.threshold == np.inf
    assert found.completeness.value == 0
    assert np.isnan(found.purity.value)


def test_ties_are_never_split():
    truth, score = np.array([1, 0, 0, 1]), np.array([0.5, 0.5, 0.5, 0.1])
    assert detection.threshold_for(truth, score, count=2) == np.inf
    assert detection.threshold_for(truth, score, count=3) == 0.5


@pytest.mark.parametrize("aim", [{}, {"purity": 0.5, "count": 3}, {"purity": 0.0}, {"completeness": 1.1}])
def test_aims_that_contradict_are_refused(aim):
    with pytest.raises(ConfigError):
        detection.threshold_for(TRUTH, SCORE, **aim)


@pytest.mark.parametrize("aim", [{"completeness": 0.5}, {"best_f1": True}])
def test_without_a_positive_completeness_is_meaningless(aim):
    with pytest.raises(EmptyInputError, match="no galaxy is a true one"):
        detection.threshold_for(NONE, SCORE[:4], **aim)


def test_completeness_rises_as_the_threshold_falls(survey: Survey):
    thresholds = np.linspace(4, -4, 60)
    found = [detection.completeness_purity(*survey, threshold) for threshold in thresholds]
    assert (np.diff([f.completeness.value for f in found]) >= 0).all()
    assert found[-1].completeness.value == 1.0


@pytest.mark.parametrize("purity", [0.2, 0.3, 0.5])
def test_completeness_at_purity_is_the_best_of_all_thresholds(survey: Survey, purity):
    found = detection.completeness_at_purity(*survey, purity)
    every = [detection.completeness_purity(*survey, threshold) for threshold in np.unique(survey[1])]
    assert found.purity.value >= purity
    assert found.completeness.value == max(e.completeness.value for e in every if e.purity.value >= purity)


@pytest.mark.parametrize("completeness", [0.1, 0.5, 0.9])
def test_purity_at_completeness_has_the_highest_threshold(survey: Survey, completeness):
    found = detection.purity_at_completeness(*survey, completeness)
    assert found.completeness.value >= completeness
    tighter = detection.completeness_purity(*survey, np.nextafter(found.threshold, np.inf))
    assert tighter.completeness.value < completeness


def test_best_f1_is_the_best_of_all_thresholds(survey: Survey):
    best = detection.completeness_purity(*survey, detection.threshold_for(*survey, best_f1=True)).f1
    assert best == max(
        detection.completeness_purity(*survey, threshold).f1 for threshold in np.unique(survey[1])
    )


def test_curve_counts_what_each_threshold_selects(survey: Survey):
    true, false, thresholds = detection.completeness_purity_curve(*survey)
    assert (true[0], false[0], thresholds[0]) == (0, 0, np.inf)
    for row in (0, 7, len(thresholds) - 1):
        found = detection.completeness_purity(*survey, thresholds[row])
        assert (found.true_positives, found.false_positives) == (true[row], false[row])


@pytest.mark.parametrize("weighted", [False, True])
def test_curve_and_area_are_those_of_scikit_learn(weighted):
    random = np.random.default_rng(0)
    truth, score = random.integers(0, 2, 300), random.integers(0, 40, 300) / 40  # many ties
    weights = random.integers(1, 4, 300).astype(float) if weighted else None
    _, false, _, true, threshold = confusion_matrix_at_thresholds(truth, score, sample_weight=weights)
    curve = detection.completeness_purity_curve(truth, score, weights)
    for ours, theirs in zip(curve, (true, false, threshold), strict=True):
        np.testing.assert_allclose(ours[1:], theirs)
    expected = average_precision_score(truth, score, sample_weight=weights)
    assert detection.average_precision(truth, score, weights) == pytest.approx(expected)


def test_average_precision_by_hand():
    # precision at each true one: 1/1, 2/2, 3/5
    assert detection.average_precision(TRUTH, SCORE) == pytest.approx((1 + 1 + 0.6) / 3)


def test_degenerate_cases_are_nan_with_the_whole_interval():
    empty = np.zeros(0, dtype=int)
    for found in (
        detection.completeness_purity(NONE, SCORE[:4], 2.0),
        detection.completeness_purity(empty, empty, 0),
    ):
        for rate in (found.completeness, found.purity):
            assert np.isnan(rate.value)
            assert (rate.low, rate.high) == (0.0, 1.0)
        assert np.isnan(found.f1)
    assert np.isnan(detection.average_precision(NONE, SCORE[:4]))
    estimate = intervals.bootstrapped(detection.average_precision, NONE, SCORE[:4], seed=0)
    assert np.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    assert np.isnan(calibration.reliability(empty, empty).ece)
    assert np.isnan(confusion.classification(empty, empty, ("a", "b")).macro_f1)
    assert detection.threshold_for(empty, empty, count=3) == np.inf


@pytest.mark.parametrize(
    ("truth", "score", "complaint"),
    [
        ([0, 1], [0.5], "same length"),
        ([0, 2], [0.5, 0.5], "1, 0, or -1"),
        ([0, 1], [0.5, np.nan], "galaxy 1"),
    ],
)
def test_unusable_input_is_refused(truth, score, complaint):
    with pytest.raises(InputError, match=complaint):
        detection.completeness_purity(np.array(truth), np.array(score), 0.5)


def test_shares_at_a_purity_and_a_completeness_are_those_of_the_selections(survey: Survey):
    found = detection.shares_at(*survey, [0.6, 0.9], [0.6, 0.9])
    assert found == [
        *(detection.completeness_at_purity(*survey, at).completeness.value for at in (0.6, 0.9)),
        *(detection.purity_at_completeness(*survey, at).purity.value for at in (0.6, 0.9)),
    ]
    assert np.isnan(detection.shares_at(np.zeros(3, int), np.ones(3), [0.5], [])).all()


def test_purity_at_prevalence():
    assert detection.purity_at_prevalence(1.0, 0.01, 0.5) == pytest.approx(1 / 1.01)
    # of 100,000 galaxies 100 are true: 70 found, 999 mistaken
    assert detection.purity_at_prevalence(0.7, 0.01, 0.001) == pytest.approx(70 / (70 + 999))
    assert np.isnan(detection.purity_at_prevalence(0.0, 0.0, 0.1))
    found = detection.Detection(0.5, 22, 5, 9, 64)
    assert found.purity_at(31 / 100) == pytest.approx(found.purity.value)


def test_threshold_at_prevalence_needs_both_kinds():
    with pytest.raises(EmptyInputError, match="give count="):
        detection.threshold_at_prevalence(np.array([1, 1]), np.array([0.5, 0.6]), 0.1, 0.5)
    with pytest.raises(ConfigError, match="prevalence"):
        detection.threshold_at_prevalence(np.array([1, 0]), np.array([0.5, 0.6]), 1.0, 0.5)
