import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from galray.core.errors import ConfigError, EmptyInputError, InputError
from galray.diffusion.autoencoder import AutoencoderCodec
from galray.diffusion.codec import Codec, oriented, to_float, to_uint8
from galray.diffusion.denoiser import build_denoiser
from galray.diffusion.objective import FlowMatching
from galray.diffusion.pipeline import GalaxyPipeline
from tests.unit.diffusion import tiny_stable_diffusion
from tests.unit.diffusion.conftest import TINY

# diffusers 0.42 converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def autoencoder(**options: object) -> AutoencoderKL:
    """An untrained autoencoder that shrinks by 2, the same each time."""
    torch.manual_seed(0)
    return tiny_stable_diffusion.autoencoder(levels=2, **options)


@pytest.fixture
def codec() -> AutoencoderCodec:
    return AutoencoderCodec.from_autoencoder(autoencoder(), size_px=10, orientations=4)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (6, 10, 10, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def of(orientation: int, images: torch.Tensor) -> torch.Tensor:
    return torch.full((len(images),), orientation)


def test_what_is_cached_has_the_shape_it_says(codec: AutoencoderCodec, images: torch.Tensor) -> None:
    cached = codec.prepare(images)
    assert isinstance(codec, Codec)
    assert codec.latent_shape == (4, 5, 5)
    assert tuple(cached.shape[1:]) == codec.cached_shape == (4, 2, 4, 5, 5)
    assert cached.dtype == codec.cached_dtype == torch.float16
    assert cached.isfinite().all()
    assert not cached.requires_grad


@pytest.mark.parametrize("orientation", range(8))
def test_each_orientation_is_encoded(codec: AutoencoderCodec, images: torch.Tensor, orientation: int) -> None:
    latents = codec.latents(codec.prepare(images), of(orientation, images))
    expected = codec.encode(oriented(images, of(orientation % 4, images)))
    torch.testing.assert_close(latents, expected, atol=0.02, rtol=2e-3)


def test_turning_latents_is_not_turning_images(codec: AutoencoderCodec, images: torch.Tensor) -> None:
    """Why each orientation is encoded by itself."""
    mirrored = codec.encode(oriented(images, of(1, images)))
    assert (mirrored - oriented(codec.encode(images), of(1, images))).abs().max() > 0.1


def test_noise_samples_the_posterior(codec: AutoencoderCodec, images: torch.Tensor) -> None:
    posterior = codec.autoencoder.encode(to_float(images), return_dict=False)[0]
    noise = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    sampled = codec.latents(codec.prepare(images), of(0, images), noise)
    # Stable Diffusion's own scaling, as long as no statistics are fitted.
    expected = 0.18215 * (posterior.mean + posterior.std * noise)
    torch.testing.assert_close(sampled, expected, atol=2e-3, rtol=2e-3)


def test_statistics_are_those_of_sampled_latents(codec: AutoencoderCodec, images: torch.Tensor) -> None:
    cached = codec.prepare(images)
    codec.fit_statistics(cached.split(4))
    generator = torch.Generator().manual_seed(0)
    draws = [
        codec.latents(cached, of(k, images), torch.randn(6, 4, 5, 5, generator=generator))
        for k in range(4)
        for _ in range(100)
    ]
    latents = torch.cat(draws).transpose(0, 1).flatten(1)
    torch.testing.assert_close(latents.mean(dim=1), torch.zeros(4), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std(dim=1), torch.ones(4), atol=0.02, rtol=0)


def test_decode_undoes_the_scaling(codec: AutoencoderCodec, images: torch.Tensor) -> None:
    before = codec.decode(codec.encode(images))
    codec.fit_statistics([codec.prepare(images)])
    assert before.shape == (6, 3, 10, 10)
    torch.testing.assert_close(codec.decode(codec.encode(images)), before, atol=1e-4, rtol=1e-4)


def test_the_fingerprint_is_that_of_weights_and_orientations(images: torch.Tensor) -> None:
    def codec(orientations: int = 4, size_px: int = 10) -> AutoencoderCodec:
        return AutoencoderCodec.from_autoencoder(autoencoder(), size_px=size_px, orientations=orientations)

    known = codec().fingerprint()
    assert known == codec().fingerprint()
    assert known == codec().fit_statistics([codec().prepare(images)]).fingerprint()
    other = codec()
    with torch.no_grad():
        next(other.autoencoder.parameters())[0] += 0.001
    assert len({known, codec(2).fingerprint(), codec(size_px=12).fingerprint(), other.fingerprint()}) == 4


def test_the_autoencoder_is_frozen(codec: AutoencoderCodec) -> None:
    assert not any(p.requires_grad for p in codec.parameters())


def test_a_saved_codec_is_the_same(codec: AutoencoderCodec, images: torch.Tensor, tmp_path) -> None:
    codec.fit_statistics([codec.prepare(images)])
    codec.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    reopened = AutoencoderCodec.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert reopened.fingerprint() == codec.fingerprint()
    assert reopened.cached_shape == codec.cached_shape
    assert torch.equal(reopened.encode(images), codec.encode(images))
    assert torch.equal(
        to_uint8(reopened.decode(codec.encode(images))), to_uint8(codec.decode(codec.encode(images)))
    )


def test_bad_options_are_refused(codec: AutoencoderCodec, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="no multiple of 2"):
        AutoencoderCodec.from_autoencoder(autoencoder(), size_px=11)
    with pytest.raises(ConfigError, match="orientations=3"):
        AutoencoderCodec.from_autoencoder(autoencoder(), size_px=10, orientations=3)
    with pytest.raises(ConfigError, match="not for RGB"):
        AutoencoderCodec.from_autoencoder(autoencoder(in_channels=1), size_px=10)
    with pytest.raises(ConfigError, match="detail_std=0"):
        AutoencoderCodec(dict(codec.config["autoencoder_config"]), 10, detail_std=0.0)
    with pytest.raises(InputError, match="10 x 10 px"):
        codec.prepare(images[:, :8, :8])
    with pytest.raises(EmptyInputError):
        codec.fit_statistics([])


def test_a_new_denoiser_works_on_the_latents(
    codec: AutoencoderCodec, images: torch.Tensor, votes: torch.Tensor, tmp_path
) -> None:
    codec.fit_statistics([codec.prepare(images)])
    denoiser = build_denoiser(TINY, codec)
    objective, latents = FlowMatching(), codec.latents(codec.prepare(images), of(0, images))
    draws = objective.draw(tuple(latents.shape), torch.Generator().manual_seed(0))
    objective.loss(denoiser, latents, draws, votes[:6]).per_galaxy.mean().backward()
    assert denoiser.unet.conv_out.weight.grad.abs().max() > 0  # type: ignore[union-attr]
    pipeline = GalaxyPipeline.from_denoiser(denoiser)
    pipeline.save_pretrained(tmp_path)
    painted = GalaxyPipeline.from_pretrained(tmp_path)(votes, num_steps=2)
    assert painted.shape == (8, 10, 10, 3)
    assert np.array_equal(painted, pipeline(votes, num_steps=2))
