"""Figures and paired differences of a study, against what can be counted by hand."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from galray.core.errors import InputError
from galray.search.comparison import (
    Judged,
    average_precision,
    best_of,
    completeness,
    found,
    found_at_purity,
    macro_f1,
    paired_difference,
    purity,
)

N, CLASSES = 400, 3
TRUTH = np.arange(N) % CLASSES


def judged(accuracy: float, seed: int) -> Judged:
    """Return a classifier that is right so often."""
    rng = np.random.default_rng(seed)
    wrong = (TRUTH + rng.integers(1, CLASSES, N)) % CLASSES
    return Judged(np.arange(N), TRUTH, np.where(rng.random(N) < accuracy, TRUTH, wrong), None, CLASSES)


def rare(score: list[float], truth: list[int]) -> Judged:
    scores = np.array(score)
    return Judged(np.arange(len(score)), np.array(truth), (scores < 0.5).astype(int), scores, 2)


def test_macro_f1_is_scikit_learns() -> None:
    one = judged(0.7, 0)
    assert macro_f1(one) == pytest.approx(f1_score(one.truth, one.predicted, average="macro"))
    weights = np.random.default_rng(1).integers(0, 4, N).astype(float)
    expected = f1_score(one.truth, one.predicted, average="macro", sample_weight=weights)
    assert macro_f1(one, weights) == pytest.approx(expected)


def test_completeness_and_purity_of_a_class() -> None:
    one = rare([0.9, 0.8, 0.2, 0.1], [0, 1, 0, 1])
    assert completeness(one, 0) == 0.5
    assert purity(one, 0) == 0.5
    assert np.isnan(purity(rare([0.1, 0.2], [0, 1]), 0))


def test_found_at_purity_counts_ties_together() -> None:
    assert found_at_purity(rare([0.9, 0.8, 0.7, 0.7], [0, 0, 0, 1]), 0.9) == 2
    assert found_at_purity(rare([0.9, 0.8, 0.7, 0.7], [0, 0, 0, 1]), 0.75) == 3
    assert found_at_purity(rare([0.9, 0.1], [1, 0]), 0.9) == 0


def test_average_precision_takes_resampled_galaxies() -> None:
    one = rare([0.9, 0.8, 0.7], [0, 1, 0])
    assert average_precision(one) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(one, np.array([1.0, 0.0, 1.0])) == 1.0
    assert np.isnan(average_precision(one, np.array([0.0, 3.0, 0.0])))


def test_a_large_difference_is_seen_and_none_is_not() -> None:
    ours, theirs = [judged(0.9, s) for s in range(3)], [judged(0.7, s + 10) for s in range(3)]
    difference = paired_difference(macro_f1, ours, theirs, resamples=200)
    assert difference.low > 0.1
    assert difference.low < difference.value == pytest.approx(0.2, abs=0.05)
    alike = paired_difference(macro_f1, ours, [judged(0.9, s + 20) for s in range(3)], resamples=200)
    assert alike.low < 0 < alike.high


def test_pairing_takes_out_what_both_have_in_common() -> None:
    """Of one and the same classifier the difference is none, in every resample."""
    same = [judged(0.6, s) for s in range(4)]
    difference = paired_difference(macro_f1, same, same, resamples=50)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_what_cannot_be_paired_is_refused() -> None:
    other = Judged(np.arange(1, N + 1), TRUTH, TRUTH, None, CLASSES)
    with pytest.raises(InputError, match="different galaxies"):
        paired_difference(macro_f1, [judged(0.9, 0)], [other])
    with pytest.raises(InputError, match="1 and 2 seeds"):
        paired_difference(macro_f1, [judged(0.9, 0)], [judged(0.9, 0), judged(0.9, 1)])


def test_figures_are_means_over_seeds() -> None:
    of_method = found(macro_f1, [judged(0.9, s) for s in range(5)])
    assert of_method.main.low < of_method.main.value < of_method.main.high
    assert len(of_method.completeness) == len(of_method.purity) == CLASSES


def test_the_best_is_chosen_by_its_mean() -> None:
    methods = {"poor": [judged(0.5, 0), judged(0.9, 1)], "good": [judged(0.8, 2), judged(0.8, 3)]}
    assert best_of(methods, macro_f1) == "good"
