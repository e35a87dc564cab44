"""What a study found: figures of each method over seeds, and differences that are paired.

Every method is judged on the same galaxies with the same seeds, so a difference is resampled in pairs: each
resample draws galaxies, the same for both methods, and seeds, each with what both methods made of it. Its
interval says what another sample of galaxies and other choices of labels and starting weights could give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from galray.classifier import confusion, detection
from galray.core.errors import InputError
from galray.core.intervals import CONFIDENCE, Estimate
from galray.search.ranking import SHARE, over_seeds

RESAMPLES = 1000


@dataclass(frozen=True)
class Judged:
    """What one classifier makes of the galaxies of one split, ordered by their ids.

    Attributes
    ----------
    galaxy_id : ndarray of int64, shape (n,)
    truth : ndarray of int64, shape (n,)
        Class index; of a rare target 0 for its galaxies and 1 for others.
    predicted : ndarray of int64, shape (n,)
    score : ndarray of float64, shape (n,), or None
        Of a rare target: higher is likelier.
    classes : int
    """

    galaxy_id: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    score: np.ndarray | None
    classes: int

    def __post_init__(self) -> None:
        if not (np.diff(self.galaxy_id) > 0).all():
            raise InputError("Predictions must be of different galaxies, ordered by their ids.")

    def confusion(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the weighted counts, rows the true class and columns the predicted one: float64."""
        return confusion.confusion(self.truth, self.predicted, self.classes, weights)


Statistic = Callable[[Judged, np.ndarray | None], float]


def macro_f1(judged: Judged, weights: np.ndarray | None = None) -> float:
    """Return the mean F1 of the classes that occur or are predicted."""
    return confusion.macro_f1_of(judged.confusion(weights))


def average_precision(judged: Judged, weights: np.ndarray | None = None) -> float:
    """Return the area under the completeness-purity curve of a rare target; NaN without one."""
    if judged.score is None:
        return np.nan
    return detection.average_precision(judged.truth == 0, judged.score, weights)


def completeness(judged: Judged, index: int) -> float:
    """Return the share of a class that is recognised; NaN where there is none of it."""
    counts = judged.confusion()[index]
    return float(counts[index] / counts.sum()) if counts.sum() else np.nan


def purity(judged: Judged, index: int) -> float:
    """Return the share of what is put into a class that belongs there; NaN where nothing is."""
    counts = judged.confusion()[:, index]
    return float(counts[index] / counts.sum()) if counts.sum() else np.nan


def found_at_purity(judged: Judged, least: float) -> float:
    """Return how many of a rare target are found by the most complete selection at least so pure."""
    assert judged.score is not None
    true, false, _ = detection.completeness_purity_curve(judged.truth == 0, judged.score)
    return float(true[true >= least * (true + false)].max())


def paired_difference(
    statistic: Statistic,
    ours: Sequence[Judged],
    theirs: Sequence[Judged],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Return the mean over seeds of a figure's difference, ours - theirs, with its 95% bootstrap interval.

    Parameters
    ----------
    statistic : callable
        ``statistic(judged, weights)``; `weights` float64 (n,) says how often each galaxy was drawn.
    ours, theirs : sequence of Judged
        By seed, of the same galaxies.
    seed : int
        Of the resampling.
    resamples : int

    Raises
    ------
    InputError
        The two are not of the same galaxies, or not of as many seeds.
    """
    _check_paired(ours, theirs)
    rng, n, pairs = np.random.default_rng(seed), len(ours[0].truth), list(zip(ours, theirs, strict=True))
    found = np.mean([statistic(a, None) - statistic(b, None) for a, b in pairs])
    drawn = []
    for _ in range(resamples):
        weights = rng.multinomial(n, np.full(n, 1 / n)).astype(np.float64)
        of_seed = [statistic(a, weights) - statistic(b, weights) for a, b in pairs]
        drawn.append(np.mean(np.asarray(of_seed)[rng.integers(len(pairs), size=len(pairs))]))
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(found), float(low), float(high))


def _check_paired(ours: Sequence[Judged], theirs: Sequence[Judged]) -> None:
    if len(ours) != len(theirs) or not ours:
        raise InputError(f"{len(ours)} and {len(theirs)} seeds cannot be paired; give as many of each.")
    first = ours[0].galaxy_id
    if not all(np.array_equal(judged.galaxy_id, first) for judged in (*ours, *theirs)):
        raise InputError("The methods were judged on different galaxies. Make the study again, elsewhere.")


@dataclass(frozen=True)
class Found:
    """What one method reaches in one setting: means over seeds with intervals, on one split."""

    main: Estimate
    completeness: tuple[Estimate, ...]
    purity: tuple[Estimate, ...]


def found(statistic: Statistic, judged: Sequence[Judged]) -> Found:
    """Return a method's figures; purity is at the shares that the classes have among the galaxies."""
    places = range(judged[0].classes)
    return Found(
        over_seeds([statistic(one, None) for one in judged], SHARE),
        tuple(over_seeds([completeness(one, index) for one in judged], SHARE) for index in places),
        tuple(over_seeds([purity(one, index) for one in judged], SHARE) for index in places),
    )


def best_of(validation: Mapping[str, Sequence[Judged]], statistic: Statistic) -> str:
    """Return the method with the highest mean over seeds, on the galaxies that may choose."""
    means = {name: np.mean([statistic(one, None) for one in of]) for name, of in validation.items()}
    return max(means, key=lambda name: means[name])
