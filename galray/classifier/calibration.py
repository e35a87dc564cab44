"""Temperatures: how sure a classifier may be of what it says, fitted on validation galaxies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, logit

_HIGHEST_TEMPERATURE = 20.0
_LEAST = 1e-7  # of a probability: float32 rounds smaller distances from 1 to 0


def shift_class_priors(
    probability: np.ndarray,
    train_shares: Sequence[float],
    survey_shares: Sequence[float],
    temperature: float = 1.0,
) -> np.ndarray:
    """Move the classes' probabilities from one set of shares to another; see `metrics.shift_prior`.

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
        As in `metrics.shift_prior`; the survey is what the galaxies are drawn from.
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
