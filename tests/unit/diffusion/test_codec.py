import pytest
import torch

from galray.core.errors import ConfigError, EmptyInputError, InputError
from galray.diffusion.codec import Codec, PixelCodec, to_float, to_uint8


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
