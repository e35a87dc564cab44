"""Completeness, purity and their kin against hand-computed cases, bounds and coverage."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix_at_thresholds

from galray.classifier import metrics
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


def test_wilson_interval_by_hand():
    # Wilson (1927) for 7 of 10 at 95%: the textbook's [0.397, 0.892]
    rate = metrics.Rate(7, 10)
    assert (rate.value, round(rate.low, 3), round(rate.high, 3)) == (0.7, 0.397, 0.892)
    assert str(metrics.Rate(22, 31)) == "0.71 [0.53, 0.84] (22/31)"


def test_completeness_and_purity_by_hand():
    found = metrics.completeness_purity(TRUTH, SCORE, 0.5)
    counts = (found.true_positives, found.false_positives, found.false_negatives, found.true_negatives)
    assert counts == (2, 1, 1, 1)
    assert (found.completeness.count, found.completeness.total) == (2, 3)
    assert (found.purity.count, found.purity.total) == (2, 3)
    assert found.false_positive_rate.value == 0.5
    assert found.f1 == pytest.approx(2 / 3)
    assert str(found).startswith("completeness 0.67 [0.21, 0.94] (2/3), purity 0.67 [0.21, 0.94] (2/3)")
    assert found.as_dict()["purity_low"] == pytest.approx(0.2077, abs=1e-4)


def test_a_score_at_the_threshold_is_selected():
    assert metrics.completeness_purity(TRUTH, SCORE, 0.9).true_positives == 1


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
    assert metrics.threshold_for(TRUTH, SCORE, **aim) == threshold


def test_threshold_that_no_selection_reaches_selects_none():
    truth, score = np.array([0, 1]), np.array([0.9, 0.1])
    found = metrics.completeness_at_purity(truth, score, 0.9)
    assert found.threshold == np.inf
    assert found.completeness.value == 0
    assert np.isnan(found.purity.value)


def test_ties_are_never_split():
    truth, score = np.array([1, 0, 0, 1]), np.array([0.5, 0.5, 0.5, 0.1])
    assert metrics.threshold_for(truth, score, count=2) == np.inf
    assert metrics.threshold_for(truth, score, count=3) == 0.5


@pytest.mark.parametrize("aim", [{}, {"purity": 0.5, "count": 3}, {"purity": 0.0}, {"completeness": 1.1}])
def test_aims_that_contradict_are_refused(aim):
    with pytest.raises(ConfigError):
        metrics.threshold_for(TRUTH, SCORE, **aim)


@pytest.mark.parametrize("aim", [{"completeness": 0.5}, {"best_f1": True}])
def test_without_a_positive_completeness_is_meaningless(aim):
    with pytest.raises(EmptyInputError, match="no galaxy is a true one"):
        metrics.threshold_for(NONE, SCORE[:4], **aim)


def test_completeness_rises_as_the_threshold_falls(survey: Survey):
    thresholds = np.linspace(4, -4, 60)
    found = [metrics.completeness_purity(*survey, threshold) for threshold in thresholds]
    assert (np.diff([f.completeness.value for f in found]) >= 0).all()
    assert found[-1].completeness.value == 1.0


@pytest.mark.parametrize("purity", [0.2, 0.3, 0.5])
def test_completeness_at_purity_is_the_best_of_all_thresholds(survey: Survey, purity):
    found = metrics.completeness_at_purity(*survey, purity)
    every = [metrics.completeness_purity(*survey, threshold) for threshold in np.unique(survey[1])]
    assert found.purity.value >= purity
    assert found.completeness.value == max(e.completeness.value for e in every if e.purity.value >= purity)


@pytest.mark.parametrize("completeness", [0.1, 0.5, 0.9])
def test_purity_at_completeness_has_the_highest_threshold(survey: Survey, completeness):
    found = metrics.purity_at_completeness(*survey, completeness)
    assert found.completeness.value >= completeness
    tighter = metrics.completeness_purity(*survey, np.nextafter(found.threshold, np.inf))
    assert tighter.completeness.value < completeness


def test_best_f1_is_the_best_of_all_thresholds(survey: Survey):
    best = metrics.completeness_purity(*survey, metrics.threshold_for(*survey, best_f1=True)).f1
    assert best == max(
        metrics.completeness_purity(*survey, threshold).f1 for threshold in np.unique(survey[1])
    )


def test_curve_counts_what_each_threshold_selects(survey: Survey):
    true, false, thresholds = metrics.completeness_purity_curve(*survey)
    assert (true[0], false[0], thresholds[0]) == (0, 0, np.inf)
    for row in (0, 7, len(thresholds) - 1):
        found = metrics.completeness_purity(*survey, thresholds[row])
        assert (found.true_positives, found.false_positives) == (true[row], false[row])


@pytest.mark.parametrize("weighted", [False, True])
def test_curve_and_area_are_those_of_scikit_learn(weighted):
    random = np.random.default_rng(0)
    truth, score = random.integers(0, 2, 300), random.integers(0, 40, 300) / 40  # many ties
    weights = random.integers(1, 4, 300).astype(float) if weighted else None
    _, false, _, true, threshold = confusion_matrix_at_thresholds(truth, score, sample_weight=weights)
    curve = metrics.completeness_purity_curve(truth, score, weights)
    for ours, theirs in zip(curve, (true, false, threshold), strict=True):
        np.testing.assert_allclose(ours[1:], theirs)
    expected = average_precision_score(truth, score, sample_weight=weights)
    assert metrics.average_precision(truth, score, weights) == pytest.approx(expected)


def test_average_precision_by_hand():
    # precision at each true one: 1/1, 2/2, 3/5
    assert metrics.average_precision(TRUTH, SCORE) == pytest.approx((1 + 1 + 0.6) / 3)


def test_degenerate_cases_are_nan_with_the_whole_interval():
    empty = np.zeros(0, dtype=int)
    for found in (
        metrics.completeness_purity(NONE, SCORE[:4], 2.0),
        metrics.completeness_purity(empty, empty, 0),
    ):
        for rate in (found.completeness, found.purity):
            assert np.isnan(rate.value)
            assert (rate.low, rate.high) == (0.0, 1.0)
        assert np.isnan(found.f1)
    assert np.isnan(metrics.average_precision(NONE, SCORE[:4]))
    estimate = metrics.bootstrapped(metrics.average_precision, NONE, SCORE[:4], seed=0)
    assert np.isnan(estimate.value)
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    assert np.isnan(metrics.reliability(empty, empty).ece)
    assert np.isnan(metrics.classification(empty, empty, ("a", "b")).macro_f1)
    assert metrics.threshold_for(empty, empty, count=3) == np.inf


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
        metrics.completeness_purity(np.array(truth), np.array(score), 0.5)


def test_classification_by_hand():
    truth = np.array([0, 0, 1, 1, 1, 2, -1])
    predicted = np.array([0, 1, 1, 1, 0, 1, 2])
    report = metrics.classification(truth, predicted, ("a", "b", "c", "never"))
    assert report.confusion.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert (report.accuracy.count, report.accuracy.total) == (3, 6)
    assert [(r.count, r.total) for r in report.completeness] == [(1, 2), (2, 3), (0, 1), (0, 0)]
    assert [(r.count, r.total) for r in report.purity] == [(1, 2), (2, 4), (0, 0), (0, 0)]
    np.testing.assert_allclose(report.f1, [1 / 2, 4 / 7, 0, np.nan])
    assert report.macro_f1 == pytest.approx((1 / 2 + 4 / 7) / 3)
    assert report.as_dict()["b_completeness"] == pytest.approx(2 / 3)
    assert "b      completeness 0.67" in str(report)


def test_classification_takes_probabilities():
    probability = np.array([[0.6, 0.4], [0.1, 0.9]])
    assert metrics.classification(np.array([0, 1]), probability, ("a", "b")).accuracy.value == 1.0
    with pytest.raises(InputError, match="1 true and 2 predicted"):
        metrics.classification(np.array([0]), probability, ("a", "b"))


def test_bootstrap_is_seeded_and_brackets_the_value(survey: Survey):
    first = metrics.bootstrapped(metrics.average_precision, *survey, seed=3, n_resamples=200)
    again = metrics.bootstrapped(metrics.average_precision, *survey, seed=3, n_resamples=200)
    assert first == again
    assert first.low < first.value < first.high
    assert first != metrics.bootstrapped(metrics.average_precision, *survey, seed=4, n_resamples=200)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """95% intervals of a mean of 200 draws hold the true mean about 95% of the time."""
    rng = np.random.default_rng(0)
    estimates = [
        metrics.bootstrapped(lambda x: float(x.mean()), rng.exponential(1.0, 200), seed=i, n_resamples=300)
        for i in range(200)
    ]
    covered = np.mean([e.low <= 1.0 <= e.high for e in estimates])
    assert 0.89 <= covered <= 0.985


def test_shares_at_a_purity_and_a_completeness_are_those_of_the_selections(survey: Survey):
    found = metrics.shares_at(*survey, [0.6, 0.9], [0.6, 0.9])
    assert found == [
        *(metrics.completeness_at_purity(*survey, at).completeness.value for at in (0.6, 0.9)),
        *(metrics.purity_at_completeness(*survey, at).purity.value for at in (0.6, 0.9)),
    ]
    assert np.isnan(metrics.shares_at(np.zeros(3, int), np.ones(3), [0.5], [])).all()


def test_figures_measured_at_once_are_those_measured_alone(survey: Survey):
    both = metrics.bootstrapped_each(
        lambda t, s: [metrics.average_precision(t, s), float(s.mean())], *survey, seed=3, n_resamples=50
    )
    assert both[0] == metrics.bootstrapped(metrics.average_precision, *survey, seed=3, n_resamples=50)
    assert both[1].value == pytest.approx(survey[1].mean())


def test_macro_figures_by_hand():
    truth, predicted = np.array([0, 0, 1, 1, 1, 2, -1]), np.array([0, 1, 1, 1, 0, 1, 2])
    assert metrics.macro_f1(truth, predicted) == pytest.approx((1 / 2 + 4 / 7) / 3)
    probability = np.eye(4)[[0, 0, 1, 1, 1, 2, 3]]
    assert metrics.macro_average_precision(truth, probability) == 1
    assert np.isnan(metrics.macro_f1(truth[-1:], predicted[-1:]))


def test_reliability_by_hand():
    truth, probability = np.array([0, 1, 1, 1, -1]), np.array([0.1, 0.2, 0.9, 1.0, 0.5])
    result = metrics.reliability(truth, probability, bins=2)
    np.testing.assert_allclose(result.stated, [0.15, 0.95])
    assert [(r.count, r.total) for r in result.observed] == [(1, 2), (2, 2)]
    assert result.ece == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)
    with pytest.raises(InputError, match="not logits"):
        metrics.reliability(truth, probability * 3)


def test_probabilities_that_hold_have_no_calibration_error():
    rng = np.random.default_rng(2)
    probability = rng.random(50_000)
    truth = (rng.random(50_000) < probability).astype(int)
    assert metrics.reliability(truth, probability).ece < 0.01
    assert metrics.reliability(truth, probability**3).ece > 0.1


def test_shift_prior_by_bayes_rule():
    """Scores with known densities: the shifted posterior is the posterior of the other prevalence."""
    density_true, density_false = np.array([0.2, 1.0, 3.0]), np.array([2.0, 1.0, 0.5])
    at = {p: p * density_true / (p * density_true + (1 - p) * density_false) for p in (0.5, 0.001)}
    np.testing.assert_allclose(metrics.shift_prior(at[0.5], 0.5, 0.001), at[0.001])
    np.testing.assert_allclose(metrics.shift_prior(at[0.001], 0.001, 0.5), at[0.5])
    no_evidence = metrics.shift_prior(np.array([0.5, 0.9]), 0.5, 0.001, temperature=1e9)
    np.testing.assert_allclose(no_evidence, 0.001, rtol=1e-6)
    assert metrics.shift_prior(np.array([0.0, 1.0]), 0.5, 0.001).tolist() == [0.0, 1.0]


def test_purity_at_prevalence():
    assert metrics.purity_at_prevalence(1.0, 0.01, 0.5) == pytest.approx(1 / 1.01)
    # of 100,000 galaxies 100 are true: 70 found, 999 mistaken
    assert metrics.purity_at_prevalence(0.7, 0.01, 0.001) == pytest.approx(70 / (70 + 999))
    assert np.isnan(metrics.purity_at_prevalence(0.0, 0.0, 0.1))
    found = metrics.Detection(0.5, 22, 5, 9, 64)
    assert found.purity_at(31 / 100) == pytest.approx(found.purity.value)


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, np.nan])
def test_a_certain_prevalence_is_refused(prevalence):
    with pytest.raises(ConfigError, match="prevalence"):
        metrics.shift_prior(np.array([0.5]), 0.5, prevalence)


def test_threshold_at_prevalence_needs_both_kinds():
    with pytest.raises(EmptyInputError, match="give count="):
        metrics.threshold_at_prevalence(np.array([1, 1]), np.array([0.5, 0.6]), 0.1, 0.5)
    with pytest.raises(ConfigError, match="prevalence"):
        metrics.threshold_at_prevalence(np.array([1, 0]), np.array([0.5, 0.6]), 1.0, 0.5)
