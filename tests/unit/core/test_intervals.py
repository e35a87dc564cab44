"""Intervals against textbooks, and how often they hold the truth."""

import numpy as np
import pytest

from galray.core.intervals import Rate, bootstrapped, bootstrapped_each

Pairs = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def pairs() -> Pairs:
    """500 correlated pairs of numbers."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=500)
    return x, x + rng.normal(size=500)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def test_wilson_interval_by_hand():
    # Wilson (1927) for 7 of 10 at 95%: the textbook's [0.397, 0.892]
    rate = Rate(7, 10)
    assert (rate.value, round(rate.low, 3), round(rate.high, 3)) == (0.7, 0.397, 0.892)
    assert str(Rate(22, 31)) == "0.71 [0.53, 0.84] (22/31)"


def test_bootstrap_is_seeded_and_brackets_the_value(pairs: Pairs):
    first = bootstrapped(correlation, *pairs, seed=3, n_resamples=200)
    again = bootstrapped(correlation, *pairs, seed=3, n_resamples=200)
    assert first == again
    assert first.low < first.value < first.high
    assert first != bootstrapped(correlation, *pairs, seed=4, n_resamples=200)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    """95% intervals of a mean of 200 draws hold the true mean about 95% of the time."""
    rng = np.random.default_rng(0)
    estimates = [
        bootstrapped(lambda x: float(x.mean()), rng.exponential(1.0, 200), seed=i, n_resamples=300)
        for i in range(200)
    ]
    covered = np.mean([e.low <= 1.0 <= e.high for e in estimates])
    assert 0.89 <= covered <= 0.985


def test_figures_measured_at_once_are_those_measured_alone(pairs: Pairs):
    both = bootstrapped_each(
        lambda x, y: [correlation(x, y), float(y.mean())], *pairs, seed=3, n_resamples=50
    )
    assert both[0] == bootstrapped(correlation, *pairs, seed=3, n_resamples=50)
    assert both[1].value == pytest.approx(pairs[1].mean())
