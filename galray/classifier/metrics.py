"""How well rare galaxies are found: completeness, purity and what follows from them.

Completeness is recall, TP / (TP + FN); purity is precision, TP / (TP + FP). Shares carry their counts
and a 95% Wilson score interval; figures that are no share carry a bootstrap interval over galaxies.
What has no denominator is NaN with the interval [0, 1], and never a warning.

Truth is 1, 0, or -1 (unknown); galaxies of unknown truth are left out of every figure.
A galaxy is selected where its score is at or above the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from astropy.stats import binom_conf_interval
from scipy.special import expit, logit

from galray.core.errors import ConfigError, EmptyInputError, InputError

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
        return _f1(self.true_positives, self.false_positives, self.false_negatives)

    def purity_at(self, prevalence: float) -> float:
        """Return the purity in a survey where `prevalence` of the galaxies are true."""
        return purity_at_prevalence(self.completeness.value, self.false_positive_rate.value, prevalence)

    def __str__(self) -> str:
        return f"completeness {self.completeness}, purity {self.purity} at {self.threshold:.3g}"

    def as_dict(self) -> dict[str, float]:
        """Return the counts and figures under flat names, for tracking."""
        rates = {"completeness": self.completeness, "purity": self.purity}
        return {**asdict(self), **_flat(rates), "f1": self.f1}


@dataclass(frozen=True)
class ClassReport:
    """How well exclusive classes are told apart.

    Attributes
    ----------
    classes : tuple of str
    confusion : ndarray of int64, shape (classes, classes)
        Rows are the true class, columns the predicted one.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray

    @property
    def accuracy(self) -> Rate:
        """Share of all galaxies that is classed rightly."""
        return Rate(int(self.confusion.trace()), int(self.confusion.sum()))

    @property
    def completeness(self) -> tuple[Rate, ...]:
        """Of each class, the share that is recognised."""
        return _rates(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def purity(self) -> tuple[Rate, ...]:
        """Of those put into each class, the share that belongs there."""
        return _rates(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def f1(self) -> np.ndarray:
        """F1 of each class; NaN for a class that neither occurs nor is predicted."""
        hits = self.confusion.diagonal()
        missed, false = self.confusion.sum(axis=1) - hits, self.confusion.sum(axis=0) - hits
        return np.array([_f1(*counts) for counts in zip(hits, false, missed, strict=True)])

    @property
    def macro_f1(self) -> float:
        """Mean of `f1` over the classes that have one."""
        return macro_f1_of(self.confusion)

    def __str__(self) -> str:
        width = max(map(len, self.classes))
        rows = [
            f"{name:<{width}}  completeness {completeness}, purity {purity}, F1 {f1:.2f}"
            for name, completeness, purity, f1 in zip(
                self.classes, self.completeness, self.purity, self.f1, strict=True
            )
        ]
        return "\n".join([self.headline, *rows])

    @property
    def headline(self) -> str:
        """Accuracy and macro F1, in words."""
        return f"accuracy {self.accuracy}, macro F1 {self.macro_f1:.3f}"

    def as_dict(self) -> dict[str, float]:
        """Return the figures under flat names, such as ``spiral_purity_low``, for tracking."""
        figures = {"macro_f1": self.macro_f1, **_flat({"accuracy": self.accuracy})}
        for name, completeness, purity, f1 in zip(
            self.classes, self.completeness, self.purity, self.f1, strict=True
        ):
            rates = {f"{name}_completeness": completeness, f"{name}_purity": purity}
            figures |= {**_flat(rates), f"{name}_f1": float(f1)}
        return figures


@dataclass(frozen=True)
class Reliability:
    """How far stated probabilities are borne out, in bins of equal width.

    Attributes
    ----------
    edges : ndarray of float64, shape (bins + 1,)
    stated : ndarray of float64, shape (bins,)
        Mean probability in each bin; NaN where it is empty.
    observed : tuple of Rate
        Share of true ones in each bin.
    ece : float
        Expected calibration error: mean of |observed - stated|, weighted by the bins' counts.
    """

    edges: np.ndarray
    stated: np.ndarray
    observed: tuple[Rate, ...]
    ece: float

    def __str__(self) -> str:
        return (
            f"expected calibration error {self.ece:.3f} over {sum(r.total for r in self.observed)} galaxies"
        )

    def as_dict(self) -> dict[str, float]:
        """Return the calibration error, for tracking."""
        return {"ece": self.ece}


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
    is_true, score = _known(truth, score)
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
    is_true, of_known = _known(truth, score)
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


def macro_average_precision(truth: np.ndarray, probability: np.ndarray) -> float:
    """Return the mean area under the classes' completeness-purity curves, each against all others.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1 (unknown, left out).
    probability : ndarray of float, shape (n, classes)

    Returns
    -------
    float
        Over the classes that occur; NaN where none does.
    """
    areas = [
        average_precision(one_against_others(truth, k), probability[:, k])
        for k in range(probability.shape[1])
        if (truth == k).any()
    ]
    return float(np.mean(areas)) if areas else np.nan


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 of the classes, as `ClassReport.macro_f1` has it, fast enough to resample."""
    return macro_f1_of(
        confusion(truth, predicted, int(max(truth.max(initial=0), predicted.max(initial=0))) + 1)
    )


def confusion(
    truth: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> np.ndarray:
    """Return how many galaxies of each true class (rows) were taken for each class (columns).

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1 (unknown, left out).
    predicted : ndarray of int, shape (n,)
    classes : int
    weights : ndarray of float, shape (n,), optional
        How often each galaxy counts: once where none are given.
    """
    known = truth >= 0
    cells = truth[known].astype(np.int64) * classes + predicted[known]
    counted = None if weights is None else weights[known]
    return np.bincount(cells, counted, minlength=classes**2).reshape(classes, classes)


def macro_f1_of(confusion: np.ndarray) -> float:
    """Return the mean F1 of the classes that occur or are predicted; NaN where none is.

    Parameters
    ----------
    confusion : ndarray, shape (classes, classes)
        Counts, weighted or not; rows are the true class, columns the predicted one.
    """
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    seen = total > 0
    return float((2 * confusion.diagonal()[seen] / total[seen]).mean()) if seen.any() else np.nan


def one_against_others(truth: np.ndarray, index: int) -> np.ndarray:
    """Return whether each galaxy is of one class: 1, 0, or -1 where its class is unknown."""
    return np.where(truth < 0, -1, truth == index).astype(np.int8)


def classification(truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> ClassReport:
    """Compare predicted with true classes.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1 (unknown, left out).
    predicted : ndarray, shape (n,) of int or (n, classes) of float
        Class index, or the classes' probabilities, of which the highest counts.
    classes : sequence of str
        Names, in the order of the indices.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if predicted.ndim == 2:
        predicted = predicted.argmax(axis=1)
    if truth.shape != predicted.shape:
        raise InputError(
            f"{len(truth)} true and {len(predicted)} predicted classes; give one each per galaxy"
        )
    return ClassReport(tuple(classes), confusion(truth, predicted, len(classes)))


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


def reliability(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> Reliability:
    """Compare stated probabilities with the shares observed (Guo et al. 2017, equation 3).

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        1, 0, or -1 (unknown, left out).
    probability : ndarray of float, shape (n,)
        In [0, 1].
    bins : int
    """
    is_true, probability = _known(truth, probability)
    _refuse_outside_unit(probability, "probability")
    edges = np.linspace(0, 1, bins + 1)
    count, hits, total = _binned(is_true, probability, bins)
    stated = np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
    return Reliability(edges, stated, _rates(hits, count), calibration_error(is_true, probability, bins))


def calibration_error(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error alone, as `reliability` has it; NaN where no truth is known."""
    is_true, probability = _known(truth, probability)
    _, hits, total = _binned(is_true, probability, bins)
    return float(np.abs(hits - total).sum() / len(is_true)) if len(is_true) else np.nan


def _binned(
    is_true: np.ndarray, probability: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each bin's count, true ones, and sum of probabilities."""
    index = np.minimum((probability * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    hits = np.bincount(index, weights=is_true, minlength=bins)
    return count, hits, np.bincount(index, weights=probability, minlength=bins)


def shift_prior(
    probability: np.ndarray, train_prevalence: float, survey_prevalence: float, temperature: float = 1.0
) -> np.ndarray:
    """Move probabilities from one share of positives to another (Saerens et al. 2002, equation 4).

    ``logit p' = (logit p - logit train_prevalence) / temperature + logit survey_prevalence``: a temperature
    (Guo et al. 2017, section 4.2) weakens the evidence of the image, not the share of positives.

    Parameters
    ----------
    probability : ndarray of float
        In [0, 1], for the prevalence assumed in training (`losses.Balance.assumed_prevalence`).
    train_prevalence, survey_prevalence : float
        Shares of positives, in (0, 1).
    temperature : float
        1 leaves the evidence as it is; above 1, less sure.
    """
    probability = np.asarray(probability, dtype=np.float64)
    _refuse_outside_unit(probability, "probability")
    for prevalence in (train_prevalence, survey_prevalence):
        refuse_certain(prevalence)
    evidence = logit(probability) - logit(train_prevalence)
    return expit(evidence / temperature + logit(survey_prevalence))


def purity_at_prevalence(completeness: float, false_positive_rate: float, prevalence: float) -> float:
    """Return the purity in a survey where `prevalence` of the galaxies are true.

    ``c p / (c p + f (1 - p))`` with completeness c, false positive rate f and prevalence p: both rates
    are properties of the classifier, purity is one of the survey too.
    """
    refuse_certain(prevalence)
    found, mistaken = completeness * prevalence, false_positive_rate * (1 - prevalence)
    return found / (found + mistaken) if found + mistaken > 0 else np.nan


def _known(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _refuse_outside_unit(values: np.ndarray, name: str) -> None:
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{name} must lie in [0, 1]; give probabilities, not logits")


def refuse_certain(prevalence: float) -> None:
    if not 0 < prevalence < 1:
        raise ConfigError(f"prevalence {prevalence} must lie between 0 and 1, both excluded, such as 0.001")


def _f1(hits: float, false: float, missed: float) -> float:
    total = 2 * hits + false + missed
    return float(2 * hits / total) if total else np.nan


def _rates(counts: np.ndarray, totals: np.ndarray) -> tuple[Rate, ...]:
    return tuple(Rate(int(count), int(total)) for count, total in zip(counts, totals, strict=True))


def _flat(rates: dict[str, Rate]) -> dict[str, float]:
    """Name each rate's value and bounds: ``purity``, ``purity_low``, ``purity_high``."""
    flat = {}
    for name, rate in rates.items():
        flat |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return flat
