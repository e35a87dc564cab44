"""What is measured in pictures follows what is painted in them."""

import numpy as np
import pytest

from galray.data.images import decode_rgb
from galray.data.mock import MockConfig, cutout_jpeg, draw_truth
from galray.evaluation.morphometry import MORPHOMETRY, PHOTOMETRY, morphometry, photometry

SIZE_PX = 64


def galaxy(
    radius_px: float = 4.0, axis_ratio: float = 1.0, exponent: float = 1.0, x: float = 0.0
) -> np.ndarray:
    """Paint an elliptical galaxy on a noisy sky: uint8 (64, 64, 3)."""
    rows, columns = np.indices((SIZE_PX, SIZE_PX)) - (SIZE_PX - 1) / 2
    r = np.hypot(columns - x, rows / axis_ratio)
    light = 200 * np.exp(-((r / radius_px) ** exponent)) + np.random.default_rng(0).normal(10, 1.5, r.shape)
    return np.clip(light, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def test_brightness_is_the_mean_pixel() -> None:
    found = photometry(np.full((2, 16, 16, 3), 51, dtype=np.uint8))
    assert set(found) == set(PHOTOMETRY)
    np.testing.assert_allclose(found["brightness"], 0.2)
    np.testing.assert_allclose(found["flux"], 0, atol=1e-9)
    assert np.isnan(found["g_r"]).all()  # no light, no colour


def test_flux_does_not_depend_on_the_sky() -> None:
    image = galaxy()
    brighter = image + np.uint8(20)
    flux = photometry(np.stack([image, brighter]))["flux"]
    assert flux[1] == pytest.approx(flux[0], rel=0.02)


def test_colour_reddens_by_half_the_blue_light() -> None:
    light = galaxy().astype(float)
    red = light.copy()
    red[..., 2] = 10 + (light[..., 2] - 10) / 2
    found = photometry(np.rint([light, red]).astype(np.uint8))
    assert found["g_r"][0] == pytest.approx(0, abs=0.02)
    assert found["g_r"][1] == pytest.approx(2.5 * np.log10(2), abs=0.1)
    assert found["r_i"][1] == pytest.approx(0, abs=0.02)


def test_shape_follows_the_galaxy() -> None:
    small, large, flat = (morphometry(galaxy(**o))[0] for o in ({}, {"radius_px": 6.0}, {"axis_ratio": 0.4}))
    assert large["size"] / small["size"] == pytest.approx(1.5, rel=0.1)
    assert small["ellipticity"] < 0.1
    assert flat["ellipticity"] == pytest.approx(0.6, abs=0.12)
    assert abs(small["asymmetry"]) < 0.1


def test_concentrated_light_is_told_from_spread_light() -> None:
    peaked, flat = (morphometry(galaxy(exponent=e))[0] for e in (0.7, 2.0))
    assert peaked["concentration"] > flat["concentration"]
    assert peaked["gini"] > flat["gini"]


def test_failures_say_why() -> None:
    shape, failure = morphometry(np.full((SIZE_PX, SIZE_PX, 3), 9, dtype=np.uint8))
    assert failure == "no source at the centre"
    assert set(shape) == set(MORPHOMETRY)
    assert np.isnan(list(shape.values())).all()
    aside = galaxy(2.0, x=25.0)
    assert morphometry(aside)[1] == "no source at the centre"


def test_most_mock_galaxies_can_be_measured() -> None:
    config = MockConfig(size_px=SIZE_PX)
    images = [decode_rgb(cutout_jpeg(config, row)) for row in draw_truth(config, 0, 5).to_pylist()]
    assert [morphometry(image)[1] for image in images].count(None) >= 4
