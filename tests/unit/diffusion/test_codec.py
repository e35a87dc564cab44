import pytest
import torch

from galray.core.errors import ConfigError, EmptyInputError, InputError
from galray.diffusion.codec import (
    N_ORIENTATIONS,
    Codec,
    PixelCodec,
    oriented,
    to_float,
    to_uint8,
    within_range,
)

ALL_ORIENTATIONS = torch.arange(N_ORIENTATIONS)


@pytest.fixture
def images() -> torch.Tensor:
    """Dim noise on black, uint8 [16, 12, 12, 3], with all levels from 0 to 255 somewhere."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 12, 12, 3, generator=generator).pow(4).mul(255).to(torch.uint8)
    images.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    return images


@pytest.mark.parametrize("fold", [1, 2, 4])
def test_round_trip_is_exact(images: torch.Tensor, fold: int) -> None:
    codec = PixelCodec.fit([images], size_px=12, fold=fold)
    latents = codec.encode(images)
    assert tuple(latents.shape[1:]) == codec.latent_shape == (3 * fold**2, 12 // fold, 12 // fold)
    assert torch.equal(to_uint8(codec.decode(latents)), images)


def test_latents_have_zero_mean_and_unit_variance(images: torch.Tensor) -> None:
    latents = PixelCodec.fit(images.split(5), size_px=12, fold=2).encode(images)
    assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert latents.std().item() == pytest.approx(1, abs=1e-3)


def test_floats_and_uint8_encode_alike(images: torch.Tensor) -> None:
    codec = PixelCodec(12, 2)
    assert torch.equal(codec.encode(images), codec.encode(to_float(images)))


def test_neighbouring_pixels_share_a_place() -> None:
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    image[0, 2:, :2] = 255
    latents = PixelCodec(4, 2).encode(image)
    assert (latents[0, :, 1, 0] == 1).all()
    assert (latents.sum(dim=1) == -12).sum() == 3


def test_statistics_travel_with_the_weights(images: torch.Tensor, tmp_path) -> None:
    codec = PixelCodec.fit([images], size_px=12, fold=2)
    codec.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    reopened = PixelCodec.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert torch.equal(reopened.encode(images), codec.encode(images))
    assert isinstance(reopened, Codec)


def test_images_of_one_colour_do_not_divide_by_zero() -> None:
    blank = torch.full((2, 4, 4, 3), 7, dtype=torch.uint8)
    codec = PixelCodec.fit([blank], size_px=4, fold=2)
    assert torch.equal(to_uint8(codec.decode(codec.encode(blank))), blank)


def turned(images: torch.Tensor, orientation: int) -> torch.Tensor:
    return oriented(images, torch.full((len(images),), orientation))


@pytest.mark.parametrize("floats", [False, True])
def test_there_are_eight_orientations_and_the_first_is_the_image(images: torch.Tensor, floats: bool) -> None:
    one = to_float(images[:1]) if floats else images[:1]
    eight = oriented(one.expand(N_ORIENTATIONS, -1, -1, -1), ALL_ORIENTATIONS)
    assert torch.equal(eight[0], one[0])
    assert len(eight.unique(dim=0)) == N_ORIENTATIONS
    assert eight.dtype == one.dtype


def test_orientations_are_mirrors_and_a_transposition() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    found = [turned(image, k).flatten().tolist() for k in (1, 2, 4)]
    assert found == [[2, 1, 4, 3], [3, 4, 1, 2], [1, 3, 2, 4]]


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_orientations_are_a_group(images: torch.Tensor, count: int) -> None:
    """Any two in a row are a third of the same `count`, and each is undone by exactly one."""
    image = images[:1]
    alone = [turned(image, k) for k in range(count)]
    for first in range(count):
        pairs = [turned(alone[first], second) for second in range(count)]
        third = [[k for k in range(count) if torch.equal(pair, alone[k])] for pair in pairs]
        assert sorted(k for ks in third for k in ks) == list(range(count))


def test_each_image_has_its_own_orientation(images: torch.Tensor) -> None:
    orientation = torch.randint(N_ORIENTATIONS, (16,), generator=torch.Generator().manual_seed(0))
    together = oriented(images, orientation)
    for image, k, expected in zip(images, orientation, together, strict=True):
        assert torch.equal(turned(image[None], int(k))[0], expected)
    assert torch.equal(to_float(together), oriented(to_float(images), orientation))


def test_only_squares_are_turned() -> None:
    with pytest.raises(InputError, match="square"):
        turned(torch.zeros(1, 3, 4, 5), 0)


@pytest.mark.parametrize("fold", [1, 2])
def test_cached_pixels_are_turned_exactly(images: torch.Tensor, fold: int) -> None:
    codec = PixelCodec.fit([images], size_px=12, fold=fold)
    orientation = ALL_ORIENTATIONS.repeat(2)
    cached = codec.prepare(images)
    assert (tuple(cached.shape[1:]), cached.dtype) == (codec.cached_shape, codec.cached_dtype)
    latents = codec.latents(cached, orientation)
    assert torch.equal(latents, codec.encode(oriented(images, orientation)))
    assert torch.equal(to_uint8(codec.decode(latents)), oriented(images, orientation))


def test_the_cache_of_pixels_depends_on_their_number_alone(images: torch.Tensor) -> None:
    fitted, other_fold, other_size = (
        PixelCodec.fit([images], size_px=12, fold=2),
        PixelCodec(12),
        PixelCodec(8),
    )
    assert fitted.fingerprint() == other_fold.fingerprint() != other_size.fingerprint()


def test_only_levels_are_cached(images: torch.Tensor) -> None:
    codec = PixelCodec(12)
    with pytest.raises(InputError, match="cached as uint8"):
        codec.prepare(to_float(images))
    with pytest.raises(InputError, match="12 x 12 px"):
        codec.prepare(images[:, :8])


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="size_px=10 is no multiple of fold=4"):
        PixelCodec(10, 4)
    with pytest.raises(ConfigError, match="detail_std=0"):
        PixelCodec(4, 2, 0.0)
    with pytest.raises(ConfigError, match="above 0"):
        PixelCodec.from_statistics((0, 0, 0), (1, 0, 1), size_px=4, fold=2)
    with pytest.raises(EmptyInputError):
        PixelCodec.fit([], size_px=4, fold=2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "4 x 4 px"),
        (torch.zeros(1, 1, 4, 4), "4 x 4 px"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "Images must be"),
        (torch.zeros(1, 4, 4, 3, dtype=torch.int64), "Images must be"),
    ],
)
def test_bad_images_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PixelCodec(4, 2).encode(images)


def test_noise_below_black_leaves_a_dark_sky_dark() -> None:
    """Light is kept, of each image and colour; all pixels that stay within bounds move by as much."""
    sky = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.05 - 0.97
    sky[:, :, 12:20, 12:20] += torch.tensor([0.1, 0.5, 1.0, 2.1]).view(4, 1, 1, 1)  # the last is overexposed
    found = within_range(sky)
    assert found.amin() == -1
    assert found.amax() == 1
    kept, clipped = (image.mean((-2, -1)) for image in (found, sky.clamp(-1, 1)))
    torch.testing.assert_close(kept, sky.mean((-2, -1)), atol=1e-6, rtol=0)
    assert (clipped[:3] - kept[:3]).min() > 0.005  # half a level and more
    inside = found.abs() < 1
    for moved, within in zip((sky - found).flatten(0, 1), inside.flatten(0, 1), strict=True):
        torch.testing.assert_close(
            moved[within], moved[within][:1].expand(int(within.sum())), atol=1e-6, rtol=0
        )


def test_an_image_within_bounds_stays_and_one_beyond_them_all_is_black() -> None:
    image = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(within_range(image), image, atol=1e-6, rtol=0)
    assert (to_uint8(torch.full((1, 3, 8, 8), -1.2)) == 0).all()
    assert (to_uint8(torch.full((1, 3, 8, 8), 1.2)) == 255).all()
