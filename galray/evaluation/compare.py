"""Synthetic galaxies beside real ones: what agrees, how far apart the sets are, what was copied.

Shares carry Wilson intervals and counts. A distance between sets stands beside its floor: what the same
measure finds between two halves of the real galaxies; its interval spans the central 95% of random draws
(`galray.diffusion.fidelity.matched_draws`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from galray.core.intervals import CONFIDENCE, Estimate, Rate
from galray.diffusion.fidelity import (
    Draw,
    Nearest,
    coverage,
    frechet_distance,
    kernel_distance,
    wasserstein,
)
from galray.evaluation.sample import Judge, Light, Sample

Statistic = Callable[[np.ndarray, np.ndarray], float]
_TAILS = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
_RESAMPLES = 2000
_KERNEL_SCALE = 1000  # kernel distances are small: shown in thousandths


@dataclass(frozen=True)
class Agreement:
    """How often a classifier sees what was asked for, and what is there, in galaxies of one kind.

    `ratio` is that of the two shares, with the central 95% of its distribution when each share has a
    Jeffreys prior.
    """

    name: str
    synthetic: Rate
    real: Rate
    ratio: Estimate


def consistency(real: Sample, synthetic: Sample, judge: Judge, seed: int) -> list[Agreement]:
    """Return the agreement for each class, and for being and not being of the rare target.

    The first row is of all classes that both sets have.
    """
    rows = []
    for index, name in enumerate(judge.config.class_names):
        found, expected = (_rate(s.morphology == index, s.predicted == index) for s in (synthetic, real))
        rows.append(Agreement(name, found, expected, _ratio([found], [expected], seed)))
    whole = [_all_classes([row for row in rows if row.synthetic.total and row.real.total], seed)]
    if judge.target is None:
        return whole + rows
    for value, name in ((1, judge.target.name), (0, f"not {judge.target.name}")):
        found, expected = (_rate(s.truth == value, s.accepted == bool(value)) for s in (synthetic, real))
        rows.append(Agreement(name, found, expected, _ratio([found], [expected], seed)))
    return whole + rows


def _rate(member: np.ndarray, agreed: np.ndarray) -> Rate:
    return Rate(int((member & agreed).sum()), int(member.sum()))


def _all_classes(rows: list[Agreement], seed: int) -> Agreement:
    """Pool the counts for the shares shown; their ratio is that of the means over classes."""
    synthetic, real = [row.synthetic for row in rows], [row.real for row in rows]
    return Agreement("all classes", _pooled(synthetic), _pooled(real), _ratio(synthetic, real, seed))


def _pooled(rates: list[Rate]) -> Rate:
    return Rate(sum(rate.count for rate in rates), sum(rate.total for rate in rates))


def _ratio(above: list[Rate], below: list[Rate], seed: int) -> Estimate:
    """Return the ratio of two mean shares with its interval."""
    rng = np.random.default_rng(seed)
    if not above or any(rate.total == 0 for rate in above + below):
        return Estimate(np.nan, np.nan, np.nan)
    means = [np.mean([rate.value for rate in rates]) for rates in (above, below)]
    drawn = [np.mean([_posterior(rate, rng) for rate in rates], axis=0) for rates in (above, below)]
    low, high = np.quantile(drawn[0] / drawn[1], _TAILS)
    return Estimate(float(means[0] / means[1]) if means[1] else np.nan, float(low), float(high))


def _posterior(rate: Rate, rng: np.random.Generator) -> np.ndarray:
    return rng.beta(rate.count + 0.5, rate.total - rate.count + 0.5, _RESAMPLES)


@dataclass(frozen=True)
class Comparison:
    """A distance of synthetic from real galaxies, beside that of real from real ones."""

    found: Estimate
    floor: Estimate

    def __str__(self) -> str:
        return f"{self.found} (floor {self.floor})"


def against_floor(
    statistic: Statistic,
    draws: Iterable[Draw],
    real: np.ndarray,
    synthetic: np.ndarray,
) -> Comparison:
    """Compare synthetic with real, and real with real, in every draw.

    Parameters
    ----------
    statistic : callable
        ``statistic(reference, other)`` of rows of `real` and `synthetic`; the reference is real.
    draws : iterable of Draw
    real, synthetic : ndarray, shape (n, ...) and (m, ...)
    """
    pairs = [
        (
            statistic(real[draw.real], synthetic[draw.synthetic]),
            statistic(real[draw.real], real[draw.other_real]),
        )
        for draw in draws
    ]
    found, floor = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return Comparison(_over_draws(found), _over_draws(floor))


def _over_draws(values: np.ndarray) -> Estimate:
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.quantile(values, _TAILS)
    return Estimate(float(np.median(values)), float(low), float(high))


def feature_distances(real: Sample, synthetic: Sample, draws: list[Draw], k: int) -> dict[str, Comparison]:
    """Return the Fréchet and kernel distances, precision and recall in the classifier's features."""
    measures: dict[str, Statistic] = {
        "frechet_distance": frechet_distance,
        "kernel_distance_x1000": lambda a, b: _KERNEL_SCALE * kernel_distance(a, b),
        "precision": lambda reference, other: coverage(other, reference, k),
        "recall": lambda reference, other: coverage(reference, other, k),
    }
    return {
        name: against_floor(measure, draws, real.features, synthetic.features)
        for name, measure in measures.items()
    }


def physical_distances(
    real: Mapping[str, np.ndarray], synthetic: Mapping[str, np.ndarray], draws: list[Draw]
) -> dict[str, Comparison]:
    """Return the Wasserstein distance of each quantity, in standard deviations of the real one."""
    return {
        name: against_floor(_wasserstein_in(float(np.nanstd(values))), draws, values, synthetic[name])
        for name, values in real.items()
        if np.isfinite(values).any()
    }


def _wasserstein_in(unit: float) -> Statistic:
    return lambda real, other: wasserstein(real, other) / unit if unit else np.nan


@dataclass(frozen=True)
class Brightness:
    """Relative differences (other - real) / real of the brightness of galaxies of one kind.

    There are `count` others, synthetic or real, and `real` real ones.
    """

    name: str
    count: int
    real: int
    mean: Estimate
    percentile_5: Estimate
    percentile_95: Estimate


_BRIGHTNESS: dict[str, Callable[..., Any]] = {
    "mean": np.mean,
    "percentile_5": partial(np.percentile, q=5),
    "percentile_95": partial(np.percentile, q=95),
}


def brightness(names: Sequence[str], real: Light, other: Light, seed: int) -> list[Brightness]:
    """Compare the brightness of galaxies kind by kind, with bootstrap intervals over galaxies.

    Parameters
    ----------
    names : sequence of str
        Of the strata.
    real, other : Light
        Kinds of which either has fewer than two galaxies are left out.
    seed : int
    """
    rows = []
    for index, name in enumerate(names):
        a, b = (light.brightness[light.stratum == index] for light in (other, real))
        if len(a) > 1 and len(b) > 1:
            found = {key: relative_difference(a, b, of, seed) for key, of in _BRIGHTNESS.items()}
            rows.append(Brightness(name, len(a), len(b), **found))
    return rows


def relative_difference(
    other: np.ndarray, real: np.ndarray, statistic: Callable[..., Any], seed: int
) -> Estimate:
    """Return (o - r) / r of a statistic of two samples, with its percentile bootstrap interval.

    Parameters
    ----------
    other, real : ndarray of float, shape (n,) and (m,)
        Two or more values each.
    statistic : callable
        Takes values and ``axis``.
    seed : int
    """

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return statistic(a, axis=axis) / statistic(b, axis=axis) - 1

    interval = bootstrap(
        (other, real),
        difference,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=_RESAMPLES,
        batch=200,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(difference(other, real, axis=0)), float(interval.low), float(interval.high))


@dataclass(frozen=True)
class NearCopies:
    """How many galaxies lie nearer to a training galaxy than held-out real ones do.

    `threshold` is the distance within which the share `quantile` of held-out real galaxies has its nearest
    training galaxy; the two rates say how many of either kind lie within it.
    """

    quantile: float
    threshold: float
    synthetic: Rate
    held_out: Rate

    @property
    def exceeds(self) -> bool:
        """Whether more synthetic than held-out galaxies are near-copies, beyond both intervals."""
        return self.synthetic.low > self.held_out.high


def near_copies(synthetic: Nearest, held_out: Nearest, quantile: float) -> NearCopies:
    """Count near-copies of training galaxies among synthetic ones."""
    # a distance that occurs, so that at least the share asked for lies within it
    threshold = np.quantile(held_out.distance, quantile, method="higher") if len(held_out.distance) else 0.0
    counts = [Rate(int((n.distance <= threshold).sum()), len(n.distance)) for n in (synthetic, held_out)]
    return NearCopies(quantile, float(threshold), *counts)


@dataclass(frozen=True)
class Findings:
    """All that an evaluation found.

    Attributes
    ----------
    counts : dict of str to int
        Galaxies that came in, took part, and could not be measured, by reason.
    brightness, brightness_floor : list of Brightness
        Of synthetic, and of training galaxies, against the same real ones.
    brightness_learnt : list of Brightness
        Of synthetic against training galaxies, of which there are many more.
    """

    counts: dict[str, int]
    consistency: list[Agreement]
    features: dict[str, Comparison]
    physical: dict[str, Comparison]
    brightness: list[Brightness]
    brightness_floor: list[Brightness]
    brightness_learnt: list[Brightness]
    copies: dict[str, NearCopies]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; rows of lists under their names."""
        plain = asdict(self)
        for key in ("consistency", "brightness", "brightness_floor", "brightness_learnt"):
            plain[key] = {row.pop("name"): row for row in plain[key]}
        return plain
