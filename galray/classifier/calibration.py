"""How sure a classifier may be: priors, reliability, and temperatures fitted on validation galaxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, logit

from galray.classifier.detection import known_only, refuse_certain
from galray.core.errors import InputError
from galray.core.intervals import Rate, rates_of

_HIGHEST_TEMPERATURE = 20.0
_LEAST = 1e-7  # of a probability: float32 rounds smaller distances from 1 to 0


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


def shift_class_priors(
    probability: np.ndarray,
    train_shares: Sequence[float],
    survey_shares: Sequence[float],
    temperature: float = 1.0,
) -> np.ndarray:
    """Move the classes' probabilities from one set of shares to another; see `shift_prior`.

    ``log p' = (log p - log train_shares) / temperature + log survey_shares``, normalised (Saerens et al.
    2002, equation 4, at temperature 1).

    Parameters
    ----------
    probability : ndarray of float, shape (n, classes)
        For `train_shares`.
    train_shares, survey_shares : sequence of float
        A share for each class, in (0, 1).
    temperature : float
    """
    return np.exp(_class_logs(probability, train_shares, survey_shares, temperature))


def _class_logs(
    probability: np.ndarray, train: Sequence[float], survey: Sequence[float], temperature: float
) -> np.ndarray:
    evidence = np.log(np.clip(probability, _LEAST, 1).astype(np.float64)) - np.log(train)
    return log_softmax(evidence / temperature + np.log(survey), axis=1)


def fit_temperature(
    truth: np.ndarray, probability: np.ndarray, train_prevalence: float, survey_prevalence: float
) -> float:
    """Return the temperature under which a target's galaxies are likeliest; 1 where none can tell.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        1, 0, or -1 (unknown, left out).
    probability : ndarray of float, shape (n,)
    train_prevalence, survey_prevalence : float
        As in `shift_prior`; the survey is what the galaxies are drawn from.
    """
    known = truth >= 0
    is_true = truth[known] == 1
    if is_true.all() or not is_true.any():
        return 1.0
    bounded = np.clip(probability[known].astype(np.float64), _LEAST, 1 - _LEAST)
    evidence, prior = logit(bounded) - logit(train_prevalence), logit(survey_prevalence)
    sign = np.where(is_true, 1.0, -1.0)
    return _likeliest(lambda temperature: -log_expit(sign * (evidence / temperature + prior)).mean())


def fit_class_temperature(
    truth: np.ndarray,
    probability: np.ndarray,
    train_shares: Sequence[float],
    survey_shares: Sequence[float],
) -> float:
    """Return the temperature under which galaxies' classes are likeliest; 1 where none is known.

    Parameters
    ----------
    truth : ndarray of int, shape (n,)
        Class index, or -1 (unknown, left out).
    probability : ndarray of float, shape (n, classes)
    train_shares, survey_shares : sequence of float
        As in `shift_class_priors`; the survey is what the galaxies are drawn from.
    """
    known = truth >= 0
    if not known.any():
        return 1.0
    rows, of_true = probability[known], (np.arange(known.sum()), truth[known])
    return _likeliest(lambda t: -_class_logs(rows, train_shares, survey_shares, t)[of_true].mean())


def _likeliest(loss: Callable[[float], float]) -> float:
    bounds = (-np.log(_HIGHEST_TEMPERATURE), np.log(_HIGHEST_TEMPERATURE))
    found = minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=bounds, method="bounded")
    return float(np.exp(found.x))


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
    is_true, probability = known_only(truth, probability)
    _refuse_outside_unit(probability, "probability")
    edges = np.linspace(0, 1, bins + 1)
    count, hits, total = _binned(is_true, probability, bins)
    stated = np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
    return Reliability(edges, stated, rates_of(hits, count), calibration_error(is_true, probability, bins))


def calibration_error(truth: np.ndarray, probability: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error alone, as `reliability` has it; NaN where no truth is known."""
    is_true, probability = known_only(truth, probability)
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


def _refuse_outside_unit(values: np.ndarray, name: str) -> None:
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(f"{name} must lie in [0, 1]; give probabilities, not logits")
