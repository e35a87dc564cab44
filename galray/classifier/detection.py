"""How well rare galaxies are found: completeness, purity and what follows from them.

Completeness is recall, TP / (TP + FN); purity is precision, TP / (TP + FP).

Truth is 1, 0, or -1 (unknown); galaxies of unknown truth are left out of every figure.
A galaxy is selected where its score is at or above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from galray.core.errors import ConfigError, EmptyInputError, InputError
from galray.core.intervals import Rate, flat


@dataclass(frozen=True)
class Detection:
    """The four counts of a selection, and what follows from them."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def completeness(self) -> Rate:
        """Share of the true ones that is selected."""
        return Rate(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def purity(self) -> Rate:
        """Share of the selected that is true."""
        return Rate(self.true_positives, self.true_positives + self.false_positives)

    @property
    def false_positive_rate(self) -> Rate:
        """Share of the others that is selected."""
        return Rate(self.false_positives, self.false_positives + self.true_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of completeness and purity, 2 TP / (2 TP + FP + FN)."""
        return f1_of(self.true_positives, self.false_positives, self.false_negatives)

    def purity_at(self, prevalence: float) -> float:
        """Return the purity in a survey where `prevalence` of the galaxies are true."""
        return purity_at_prevalence(self.completeness.value, self.false_positive_rate.value, prevalence)

    def __str__(self) -> str:
        return f"completeness {self.completeness}, purity {self.purity} at {self.threshold:.3g}"

    def as_dict(self) -> dict[str, float]:
        """Return the counts and figures under flat names, for tracking."""
        rates = {"completeness": self.completeness, "purity": self.purity}
        return {**asdict(self), **flat(rates), "f1": self.f1}


def completeness_purity(truth: np.ndarray, score: np.ndarray, threshold: float) -> Detection:
    """Count what a threshold finds, misses and mistakes.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        1, 0, or -1 (unknown, left out).
    score : ndarray of float, shape (n,)
        Higher is likelier.
    threshold : float
        Selected is score >= threshold.
    """
    is_true, score = known_only(truth, score)
    selected = score >= threshold
    return Detection(
        threshold=float(threshold),
        true_positives=int((selected & is_true).sum()),
        false_positives=int((selected & ~is_true).sum()),
        false_negatives=int((~selected & is_true).sum()),
        true_negatives=int((~selected & ~is_true).sum()),
    )


def threshold_for(
    truth: np.ndarray,
    score: np.ndarray,
    *,
    purity: float | None = None,
    completeness: float | None = None,
    count: int | None = None,
    best_f1: bool = False,
) -> float:
    """Return the threshold that serves one aim; give exactly one.

    Parameters
    ----------
    truth, score : ndarray, shape (n,)
        As in `completeness_purity`.
    purity : float
        The most complete selection at least this pure; infinity (select none) where none is.
    completeness : float
        The purest-ordered, i.e. highest, threshold that is at least this complete.
    count : int
        The largest selection of at most so many galaxies; ties are never split.
    best_f1 : bool
        The highest F1.

    Raises
    ------
    ConfigError
        If not exactly one aim is given, or it cannot be met by any data.
    EmptyInputError
        If there is no positive, so that completeness and F1 mean nothing.
    """
    aims = [purity is not None, completeness is not None, count is not None, best_f1]
    if sum(aims) != 1:
        raise ConfigError(
            f"{sum(aims)} aims are given; give one of purity=, completeness=, count= or best_f1=True"
        )
    if not all(0 < share <= 1 for share in (purity, completeness) if share is not None):
        raise ConfigError("purity and completeness are shares in (0, 1]")
    true, false, thresholds = completeness_purity_curve(truth, score)
    positives = true[-1]
    if positives == 0 and (completeness is not None or best_f1):
        raise EmptyInputError(
            "no galaxy is a true one, so no threshold has a completeness; give purity= or count="
        )
    selected = true + false
    if best_f1:
        return float(thresholds[np.argmax(2 * true / (selected + positives))])
    if completeness is not None:
        return float(thresholds[np.argmax(true >= completeness * positives)])
    serves = selected <= count if count is not None else true >= (purity or 0) * selected
    return float(thresholds[np.flatnonzero(serves)[-1]])


def threshold_at_prevalence(truth: np.ndarray, score: np.ndarray, prevalence: float, purity: float) -> float:
    """Return the lowest threshold that is at least so pure in a survey of another prevalence.

    Parameters
    ----------
    truth, score : ndarray, shape (n,)
        As in `completeness_purity`.
    prevalence : float
        Share of true ones in the survey.
    purity : float
        See `purity_at_prevalence`.

    Returns
    -------
    float
        Infinity where no threshold is so pure.

    Raises
    ------
    EmptyInputError
        If there is no positive or no negative.
    """
    refuse_certain(prevalence)
    true, false, thresholds = completeness_purity_curve(truth, score)
    if not (true[-1] and false[-1]):
        raise EmptyInputError("purity needs true and other galaxies, and one kind is absent; give count=")
    found, mistaken = true / true[-1] * prevalence, false / false[-1] * (1 - prevalence)
    return float(thresholds[np.flatnonzero(found >= purity * (found + mistaken))[-1]])


def completeness_purity_curve(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the true positives, false positives and threshold of every possible selection.

    The first selects none (threshold infinity), the last all; each ndarray has shape
    (distinct scores + 1,). scikit-learn has it too, and takes ten times as long over what a bootstrap asks of
    some hundred galaxies a thousand times.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        1, 0, or -1 (unknown, left out).
    score : ndarray of float, shape (n,)
    weights : ndarray of float, shape (n,), optional
        How often each galaxy counts: once where none are given.
    """
    is_true, of_known = known_only(truth, score)
    counted = np.ones(len(is_true)) if weights is None else weights[np.asarray(truth) >= 0]
    order = np.argsort(-of_known, kind="stable")
    sorted_score, selected = of_known[order], np.cumsum(counted[order])
    true = np.cumsum((counted * is_true)[order])
    last = np.flatnonzero(np.diff(sorted_score, append=-np.inf))  # ties are selected together
    return (
        np.append(0.0, true[last]),
        np.append(0.0, (selected - true)[last]),
        np.append(np.inf, sorted_score[last]),
    )


def completeness_at_purity(truth: np.ndarray, score: np.ndarray, purity: float) -> Detection:
    """Return the most complete selection that is at least so pure."""
    return completeness_purity(truth, score, threshold_for(truth, score, purity=purity))


def purity_at_completeness(truth: np.ndarray, score: np.ndarray, completeness: float) -> Detection:
    """Return the highest-scored selection that is at least so complete."""
    return completeness_purity(truth, score, threshold_for(truth, score, completeness=completeness))


def shares_at(
    truth: np.ndarray, score: np.ndarray, purities: Sequence[float], completenesses: Sequence[float]
) -> list[float]:
    """Return the completeness at each purity and the purity at each completeness; NaN without a positive.

    The selections are those of `completeness_at_purity` and `purity_at_completeness`; this is for
    resampling, which needs no counts.
    """
    true, false, _ = completeness_purity_curve(truth, score)
    positives, selected = true[-1], true + false
    if not positives:
        return [np.nan] * (len(purities) + len(completenesses))
    found = [true[np.flatnonzero(true >= purity * selected)[-1]] / positives for purity in purities]
    at = [int(np.argmax(true >= share * positives)) for share in completenesses]
    return [*map(float, found), *(float(true[i] / selected[i]) for i in at)]


def average_precision(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the area under the completeness-purity curve (AUPRC); NaN without a positive.

    The mean purity over the positives, each at the threshold that finds it; see `completeness_purity_curve`.
    """
    true, false, _ = completeness_purity_curve(truth, score, weights)
    if not true[-1]:
        return np.nan
    found = np.diff(true)
    at = np.flatnonzero(found)
    purity = true[at + 1] / (true + false)[at + 1]
    return float(np.sum(found[at] * purity) / true[-1])


def purity_at_prevalence(completeness: float, false_positive_rate: float, prevalence: float) -> float:
    """Return the purity in a survey where `prevalence` of the galaxies are true.

    ``c p / (c p + f (1 - p))`` with completeness c, false positive rate f and prevalence p: both rates
    are properties of the classifier, purity is one of the survey too.
    """
    refuse_certain(prevalence)
    found, mistaken = completeness * prevalence, false_positive_rate * (1 - prevalence)
    return found / (found + mistaken) if found + mistaken > 0 else np.nan


def f1_of(hits: float, false: float, missed: float) -> float:
    """Return the harmonic mean of completeness and purity; NaN where nothing is true or selected."""
    total = 2 * hits + false + missed
    return float(2 * hits / total) if total else np.nan


def known_only(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return truth as bool, and score, of the galaxies whose truth is known."""
    truth, score = np.asarray(truth), np.asarray(score, dtype=np.float64)
    if truth.shape != score.shape or truth.ndim != 1:
        raise InputError(f"truth {truth.shape} and score {score.shape} must be two lists of the same length")
    if not np.isin(truth, (-1, 0, 1)).all():
        raise InputError(f"truth holds {np.setdiff1d(truth, (-1, 0, 1))[:3]}; it is 1, 0, or -1 for unknown")
    known = truth >= 0
    if not np.isfinite(score[known]).all():
        row = int(np.flatnonzero(known & ~np.isfinite(score))[0])
        raise InputError(f"the score of galaxy {row} is {score[row]}; score every galaxy before measuring")
    return truth[known] == 1, score[known]


def refuse_certain(prevalence: float) -> None:
    """Refuse a share of true ones that leaves no doubt.

    Raises
    ------
    ConfigError
    """
    if not 0 < prevalence < 1:
        raise ConfigError(f"prevalence {prevalence} must lie between 0 and 1, both excluded, such as 0.001")
