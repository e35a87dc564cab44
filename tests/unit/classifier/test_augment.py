"""Augmentation: repeatable, exact where pixels are only moved, and never black at the edges."""

import numpy as np
import pytest
import torch

from galray.classifier.augment import NONE, Augmentation, resample
from galray.core.errors import ConfigError

QUARTER = Augmentation("quarter", max_shift=0.0, max_zoom=1.0)


def varied(images: torch.Tensor, augmentation: Augmentation, seed: int = 0) -> torch.Tensor:
    return resample(images, augmentation.draw(len(images), torch.Generator().manual_seed(seed)))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (6, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_repeats_with_its_generator(images):
    first = varied(images, Augmentation(), 7)
    assert torch.equal(first, varied(images, Augmentation(), 7))
    assert not torch.equal(first, varied(images, Augmentation(), 8))
    assert first.shape == images.shape
    assert first.dtype == torch.uint8


def test_none_changes_nothing(images):
    assert not NONE.varies
    assert torch.equal(varied(images, NONE), images)


def test_quarter_turns_give_all_eight_symmetries_alike_and_exactly():
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4, 1)
    turned = varied(image.expand(4000, -1, -1, -1), QUARTER)
    seen, counts = torch.unique(turned.flatten(1), dim=0, return_counts=True)
    expected = {
        tuple(torch.rot90(side, turns).flatten().tolist())
        for side in (image[0, :, :, 0], image[0, :, :, 0].T)
        for turns in range(4)
    }
    assert {tuple(row) for row in seen.tolist()} == expected
    assert counts.min() > 400  # 500 each, give or take


def centroids(images: torch.Tensor) -> np.ndarray:
    """Return each image's centre of light relative to its middle, pixels: (n, 2) as (row, column)."""
    light = images.float().sum(dim=3)
    place = torch.arange(images.shape[1]) - (images.shape[1] - 1) / 2
    moments = torch.stack([(light.sum(dim=2) * place).sum(1), (light.sum(dim=1) * place).sum(1)], dim=1)
    return (moments / light.sum(dim=(1, 2))[:, None]).numpy()


def blob(row: float, column: float, width: float = 2.0) -> torch.Tensor:
    place = torch.arange(64) - 31.5
    light = 255 * torch.exp(-((place[:, None] - row) ** 2 + (place - column) ** 2) / (2 * width**2))
    return light.round().to(torch.uint8)[None, :, :, None]


def test_any_angle_keeps_the_distance_and_takes_all_directions():
    turned = centroids(varied(blob(0.0, 15.0).expand(400, -1, -1, -1), Augmentation(max_shift=0, max_zoom=1)))
    np.testing.assert_allclose(np.hypot(*turned.T), 15, atol=0.4)  # tails of mirror images
    angles = np.sort(np.arctan2(*turned.T))
    assert np.diff(angles).max() < 0.15


def test_shifts_and_zooms_are_no_larger_than_asked():
    shifted = centroids(
        varied(blob(0.0, 0.0).expand(400, -1, -1, -1), Augmentation(max_shift=0.1, max_zoom=1))
    )
    assert np.abs(shifted).max() <= 6.4 * 2**0.5 + 0.1
    assert np.abs(shifted).max() > 5
    zoomed = varied(
        blob(0.0, 12.0).expand(400, -1, -1, -1), Augmentation("none", False, max_shift=0, max_zoom=1.25)
    )
    factor = centroids(zoomed)[:, 1] / 12
    assert 0.78 < factor.min() < 0.83
    assert 1.2 < factor.max() < 1.27


def test_what_moves_in_is_the_mirror_image_of_the_edge():
    ramp = torch.arange(100, 164, dtype=torch.uint8)[None, :, None, None].expand(64, 64, 64, 3)
    assert varied(ramp, Augmentation(max_shift=0.2, max_zoom=1.5)).min() >= 100  # nothing black


@pytest.mark.parametrize(
    ("options", "message"), [({"max_shift": 0.6}, "max-shift"), ({"max_zoom": 0.9}, "max-zoom")]
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**options)
