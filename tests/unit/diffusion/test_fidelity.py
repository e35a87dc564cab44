"""Distances between sets hold what their definitions promise; copies are found however they are turned."""

import numpy as np
import pytest

from galray.diffusion.fidelity import (
    ORIENTATIONS,
    coverage,
    frechet_distance,
    kernel_distance,
    matched_counts,
    matched_draws,
    nearest_features,
    nearest_pixels,
    orientations,
    wasserstein,
)


def normal(seed: int, count: int = 500, d: int = 4, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, deviation, (count, d)).astype(np.float32)


def whitened(seed: int, count: int, d: int) -> np.ndarray:
    """Return a sample whose mean is 0 and whose covariance is 1, exactly."""
    sample = np.random.default_rng(seed).normal(size=(count, d))
    sample -= sample.mean(axis=0)
    return sample @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(sample, rowvar=False)))).T


def test_frechet_of_gaussians_is_the_closed_form() -> None:
    """Commuting covariances: |m|² + sum (s - t)² over the deviations along common axes."""
    turn = np.linalg.qr(np.random.default_rng(9).normal(size=(3, 3)))[0]
    s, t, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.5]), np.array([1.0, -2.0, 0.0])
    a, b = whitened(0, 300, 3) * s @ turn, whitened(1, 200, 3) * t @ turn + shift
    assert frechet_distance(a, b) == pytest.approx(np.square(s - t).sum() + np.square(shift).sum())


def test_frechet_in_one_dimension_is_that_of_means_and_deviations() -> None:
    a, b = whitened(0, 50, 1), 4 * whitened(1, 60, 1) + 2
    assert frechet_distance(a, b) == pytest.approx(2**2 + 3**2)


def test_frechet_of_a_set_with_itself_is_none_though_covariance_is_singular() -> None:
    few = normal(0, count=5, d=32)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-4)


def test_kernel_distance_is_unbiased() -> None:
    """Its mean over samples of one distribution is 0 within three standard errors; small as they are."""
    found = np.array([kernel_distance(normal(2 * i, 20), normal(2 * i + 1, 20)) for i in range(400)])
    assert abs(found.mean()) < 3 * found.std() / np.sqrt(len(found))
    assert (found < 0).any()


def test_kernel_distance_by_hand() -> None:
    a, b = np.array([[0.0], [1.0]]), np.array([[1.0], [2.0]])
    within_a, within_b, across = (0 + 1) ** 3, (2 + 1) ** 3, (1 + 1 + 8 + 27) / 4
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across)


def test_distances_grow_with_the_shift() -> None:
    real = normal(0)
    for distance in (frechet_distance, kernel_distance):
        near, far = (distance(real, normal(1, mean=shift)) for shift in (0.3, 1.0))
        assert 0 < near < far


def test_precision_and_recall_tell_realism_from_diversity() -> None:
    real, alike = normal(0), normal(1)
    assert coverage(alike, real) > 0.8
    assert coverage(real, alike) > 0.8
    far = normal(2, mean=30.0)
    assert coverage(far, real) == coverage(real, far) == 0
    collapsed = normal(3, deviation=0.05)
    assert coverage(collapsed, real) > 0.95  # every one is realistic
    assert coverage(real, collapsed) < 0.05  # and they are all the same


@pytest.mark.parametrize("few", [0, 1, 3])
def test_too_few_galaxies_have_no_distance(few: int) -> None:
    assert np.isnan(coverage(normal(0), normal(1, count=few)))
    if few < 2:
        assert np.isnan(frechet_distance(normal(0), normal(1, count=few)))
        assert np.isnan(kernel_distance(normal(0), normal(1, count=few)))


def test_wasserstein_of_a_shift_is_the_shift() -> None:
    values = np.r_[np.random.default_rng(0).exponential(size=300), np.nan]
    assert wasserstein(values, values + 0.7) == pytest.approx(0.7)
    assert wasserstein(values, np.random.default_rng(1).permutation(values)) == pytest.approx(0)
    assert np.isnan(wasserstein(values, np.array([np.nan])))


def test_draws_are_disjoint_of_equal_classes_and_in_the_real_mix() -> None:
    real, synthetic = np.repeat([0, 1, -1, 2], [40, 20, 9, 8]), np.repeat([0, 1, 3], [15, 300, 50])
    draws = list(matched_draws(real, synthetic, seed=0, count=5))
    for draw in draws:
        assert not set(draw.real) & set(draw.other_real)
        classes = [
            np.sort(real[draw.real]),
            np.sort(real[draw.other_real]),
            np.sort(synthetic[draw.synthetic]),
        ]
        for found in classes:
            np.testing.assert_array_equal(found, np.repeat([0, 1], [15, 7]))
    assert not np.array_equal(draws[0].real, draws[1].real)
    again = list(matched_draws(real, synthetic, seed=0, count=5))
    np.testing.assert_array_equal(draws[4].synthetic, again[4].synthetic)


def test_counts_are_limited_and_empty_without_a_common_class() -> None:
    assert sum(matched_counts(np.zeros(90), np.zeros(90), limit=10).values()) == 10
    assert matched_counts(np.zeros(9), np.ones(9)) == {}


def pictures(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 16, 16, 3), dtype=np.uint8)


def test_orientations_are_the_eight_of_a_square() -> None:
    ways = {way.tobytes() for way in orientations(pictures(0, 1))}
    assert len(ways) == ORIENTATIONS


@pytest.mark.parametrize("way", range(ORIENTATIONS))
def test_planted_copies_are_found_however_they_are_turned(way: int) -> None:
    training, painted = pictures(0, 30), pictures(1, 6)
    ids = np.arange(100, 130)
    painted[4] = list(orientations(training[11:12]))[way][0]
    noise = np.random.default_rng(2).normal(0, 2, painted[4].shape)
    painted[4] = np.clip(painted[4] + noise, 0, 255).astype(np.uint8)
    found = nearest_pixels(painted, training, ids)
    assert found.galaxy_id[4] == 111
    assert found.distance[4] < 0.015 < 0.2 < np.delete(found.distance, 4).min()


def test_pixel_distance_is_a_root_mean_square() -> None:
    black, grey = np.zeros((1, 4, 4, 3), dtype=np.uint8), np.full((1, 4, 4, 3), 51, dtype=np.uint8)
    assert nearest_pixels(grey, black, np.array([7])).distance[0] == pytest.approx(0.2)


def test_nearest_in_features_agrees_with_brute_force() -> None:
    queries, references = normal(0, 20), normal(1, 50)
    found = nearest_features(queries, references, np.arange(50))
    distances = np.linalg.norm(queries[:, None] - references, axis=2)
    np.testing.assert_array_equal(found.galaxy_id, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distance, distances.min(axis=1), rtol=1e-4)
