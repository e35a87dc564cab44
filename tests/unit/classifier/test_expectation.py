import numpy as np

from galray.classifier.detection import Detection
from galray.classifier.expectation import expected_yield


def test_expected_yield_holds_surveys_drawn_from_it_as_often_as_it_says():
    """Draw rates' evidence and surveys from known rates: the 95% intervals must hold about 95%."""
    rng = np.random.default_rng(0)
    completeness, mistaken, prevalence, n = 0.7, 0.004, 0.003, 20_000
    held = {"candidates": 0, "true": 0, "completeness": 0, "purity": 0}
    for seed in range(200):
        hits, mistakes = rng.binomial(60, completeness), rng.binomial(900, mistaken)
        seen_in_validation = Detection(0.5, hits, mistakes, 60 - hits, 900 - mistakes)
        expected = expected_yield(seen_in_validation, n, prevalence, seed=seed, n_draws=2000)
        there = rng.binomial(n, prevalence)
        found = rng.binomial(there, completeness)
        selected = found + rng.binomial(n - there, mistaken)
        seen = {
            "candidates": selected,
            "true": found,
            "completeness": found / there,
            "purity": found / selected,
        }
        for name, value in seen.items():
            estimate = getattr(expected, name)
            held[name] += estimate.low <= value <= estimate.high
    assert all(180 <= count <= 200 for count in held.values()), held
