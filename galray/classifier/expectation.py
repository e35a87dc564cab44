"""What a threshold is expected to bring in a survey, before anyone has looked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galray.classifier.detection import Detection, refuse_certain
from galray.core.intervals import CONFIDENCE, Estimate


@dataclass(frozen=True)
class Yield:
    """What a threshold is expected to bring in a survey, before anyone has looked."""

    candidates: Estimate
    true: Estimate
    completeness: Estimate
    purity: Estimate


def expected_yield(
    detection: Detection, n_sources: int, prevalence: float, *, seed: int, n_draws: int = 20_000
) -> Yield:
    """Predict what a threshold brings in a survey, with what the validation galaxies leave open.

    The rates are drawn from their posterior under Jeffreys' prior, Beta(hits + 1/2, misses + 1/2); the
    survey's true ones, found ones and mistakes are binomial. The prevalence is taken as stated.

    Parameters
    ----------
    detection : Detection
        On validation galaxies.
    n_sources : int
        Sources that the survey scores.
    prevalence : float
        Share of true ones among them, in (0, 1).
    seed : int
    n_draws : int

    Returns
    -------
    Yield
        Medians and central 95% intervals; completeness or purity is NaN where nothing is there or found.
    """
    refuse_certain(prevalence)
    rng = np.random.default_rng(seed)
    found_rate = rng.beta(detection.true_positives + 0.5, detection.false_negatives + 0.5, n_draws)
    mistaken_rate = rng.beta(detection.false_positives + 0.5, detection.true_negatives + 0.5, n_draws)
    there = rng.binomial(n_sources, prevalence, n_draws)
    found = rng.binomial(there, found_rate)
    selected = found + rng.binomial(n_sources - there, mistaken_rate)
    return Yield(*map(_central, (selected, found, _divided(found, there), _divided(found, selected))))


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _central(draws: np.ndarray) -> Estimate:
    known = draws[~np.isnan(draws)]
    if not len(known):
        return Estimate(np.nan, 0.0, 1.0)
    tail = (1 - CONFIDENCE) / 2
    return Estimate(*map(float, np.quantile(known, [0.5, tail, 1 - tail])))
