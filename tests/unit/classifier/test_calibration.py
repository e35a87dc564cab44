"""Temperatures are found again where they are known, priors shift by Bayes' rule, and reliability adds up."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from galray.classifier.calibration import (
    calibration_error,
    fit_class_temperature,
    fit_temperature,
    reliability,
    shift_class_priors,
    shift_prior,
)
from galray.core.errors import ConfigError, InputError

SHARES = (0.5, 0.3, 0.2)


def test_class_priors_by_bayes_rule() -> None:
    density = np.array([[2.0, 1.0, 0.5], [0.1, 1.0, 3.0]])
    at = {s: density * s / (density * s).sum(axis=1, keepdims=True) for s in (SHARES, (0.1, 0.1, 0.8))}
    np.testing.assert_allclose(shift_class_priors(at[SHARES], SHARES, (0.1, 0.1, 0.8)), at[(0.1, 0.1, 0.8)])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_target_s_temperature_is_found(temperature: float) -> None:
    """Evidence that was blown up by a known factor; the galaxies come at another prevalence."""
    rng = np.random.default_rng(0)
    truth = (rng.random(20_000) < 0.1).astype(int)
    evidence = rng.normal(np.where(truth, 2.0, -2.0), 2.0)  # log likelihood ratios that hold
    score = expit(temperature * evidence)  # as if half of all were true
    found = fit_temperature(truth, score, 0.5, 0.1)
    assert found == pytest.approx(temperature, rel=0.05)
    after = shift_prior(score, 0.5, 0.1, found)
    assert calibration_error(truth, after) < 0.01
    if temperature != 1:
        assert calibration_error(truth, shift_prior(score, 0.5, 0.1)) > 0.015


def test_the_classes_temperature_is_found() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, (20_000, 3))
    probability = softmax(logits + np.log(SHARES), axis=1)
    truth = (probability.cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    sure = softmax(2.5 * logits + np.log(SHARES), axis=1)
    found = fit_class_temperature(truth, sure, SHARES, SHARES)
    assert found == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(shift_class_priors(sure, SHARES, SHARES, 2.5), probability, atol=1e-3)


def test_nothing_known_changes_nothing() -> None:
    unknown, one = np.array([-1, -1]), np.array([1, -1])
    assert fit_temperature(unknown, np.array([0.1, 0.9]), 0.5, 0.1) == 1.0
    assert fit_temperature(one, np.array([0.1, 0.9]), 0.5, 0.1) == 1.0
    assert fit_class_temperature(unknown, np.full((2, 3), 1 / 3), SHARES, SHARES) == 1.0


def test_reliability_by_hand():
    truth, probability = np.array([0, 1, 1, 1, -1]), np.array([0.1, 0.2, 0.9, 1.0, 0.5])
    result = reliability(truth, probability, bins=2)
    np.testing.assert_allclose(result.stated, [0.15, 0.95])
    assert [(r.count, r.total) for r in result.observed] == [(1, 2), (2, 2)]
    assert result.ece == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)
    with pytest.raises(InputError, match="not logits"):
        reliability(truth, probability * 3)


def test_probabilities_that_hold_have_no_calibration_error():
    rng = np.random.default_rng(2)
    probability = rng.random(50_000)
    truth = (rng.random(50_000) < probability).astype(int)
    assert reliability(truth, probability).ece < 0.01
    assert reliability(truth, probability**3).ece > 0.1


def test_shift_prior_by_bayes_rule():
    """Scores with known densities: the shifted posterior is the posterior of the other prevalence."""
    density_true, density_false = np.array([0.2, 1.0, 3.0]), np.array([2.0, 1.0, 0.5])
    at = {p: p * density_true / (p * density_true + (1 - p) * density_false) for p in (0.5, 0.001)}
    np.testing.assert_allclose(shift_prior(at[0.5], 0.5, 0.001), at[0.001])
    np.testing.assert_allclose(shift_prior(at[0.001], 0.001, 0.5), at[0.5])
    no_evidence = shift_prior(np.array([0.5, 0.9]), 0.5, 0.001, temperature=1e9)
    np.testing.assert_allclose(no_evidence, 0.001, rtol=1e-6)
    assert shift_prior(np.array([0.0, 1.0]), 0.5, 0.001).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("prevalence", [0.0, 1.0, -0.1, np.nan])
def test_a_certain_prevalence_is_refused(prevalence):
    with pytest.raises(ConfigError, match="prevalence"):
        shift_prior(np.array([0.5]), 0.5, prevalence)
