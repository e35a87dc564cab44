"""Figures with their uncertainty: shares with a Wilson score interval, others with a bootstrap over galaxies.

What has no denominator is NaN with the interval [0, 1], and never a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from astropy.stats import binom_conf_interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A share with its counts and its Wilson score interval."""

    count: int
    total: int
    value: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        interval = (0.0, 1.0)
        if self.total:
            interval = binom_conf_interval(self.count, self.total, CONFIDENCE, interval="wilson")
        value = self.count / self.total if self.total else np.nan
        for name, number in zip(("value", "low", "high"), (value, *interval), strict=True):
            object.__setattr__(self, name, float(number))

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] ({self.count}/{self.total})"

    def as_dict(self) -> dict[str, float]:
        """Return value, bounds and counts."""
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        """Return value and bounds."""
        return asdict(self)


def bootstrapped(
    statistic: Callable[..., float], *arrays: np.ndarray, seed: int, n_resamples: int = 1000
) -> Estimate:
    """Return a figure with its percentile bootstrap interval over galaxies.

    Parameters
    ----------
    statistic : callable
        Takes `arrays`, returns a float; resamples where it is NaN are passed over.
    *arrays : ndarray, shape (n, ...)
        A row a galaxy, resampled together, e.g. truth and score.
    seed : int
    n_resamples : int
    """
    return bootstrapped_each(lambda *a: [statistic(*a)], *arrays, seed=seed, n_resamples=n_resamples)[0]


def bootstrapped_each(
    statistics: Callable[..., Sequence[float]], *arrays: np.ndarray, seed: int, n_resamples: int = 1000
) -> list[Estimate]:
    """Return several figures that are measured at once; see `bootstrapped`."""
    values, n = statistics(*arrays), len(arrays[0])
    rng = np.random.default_rng(seed)
    draws = (rng.integers(n, size=n) for _ in range(n_resamples if not np.isnan(values).all() else 0))
    resampled = [statistics(*(array[rows] for array in arrays)) for rows in draws]
    return [_interval(value, np.array([r[k] for r in resampled])) for k, value in enumerate(values)]


def _interval(value: float, resampled: np.ndarray) -> Estimate:
    if np.isnan(value):
        return Estimate(value, 0.0, 1.0)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def rates_of(counts: np.ndarray, totals: np.ndarray) -> tuple[Rate, ...]:
    """Return a share for each count of each total, both of shape (n,)."""
    return tuple(Rate(int(count), int(total)) for count, total in zip(counts, totals, strict=True))


def flat(rates: dict[str, Rate]) -> dict[str, float]:
    """Name each rate's value and bounds: ``purity``, ``purity_low``, ``purity_high``."""
    named = {}
    for name, rate in rates.items():
        named |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return named
