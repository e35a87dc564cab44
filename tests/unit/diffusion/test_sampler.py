from collections.abc import Iterator

import pytest
import torch

from galray.core.errors import ConfigError
from galray.diffusion.conditions import ConditionTokens
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.sampler import (
    SAMPLERS,
    Guidance,
    Velocity,
    guided_velocity,
    noise_of_seeds,
    sample,
    scheduler_named,
)

# diffusers 0.42 converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Scene = tuple[Velocity, torch.Tensor, torch.Tensor, ConditionTokens, ConditionTokens]

NOBODY = ConditionTokens(torch.zeros(4, 1, 1), torch.ones(4, 1, dtype=torch.bool))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_follow_a_known_flow_to_its_end(name: str) -> None:
    """For galaxies ~ N(3, 0.5^2) the exact velocity is known, and ends at 3 + 0.5 noise."""
    mean, std = 3.0, 0.5

    def velocity(x: torch.Tensor, t: torch.Tensor, _: ConditionTokens) -> torch.Tensor:
        t = t.view(-1, 1, 1, 1)
        variance = ((1 - t) * std) ** 2 + t**2
        return -mean + (t - (1 - t) * std**2) / variance * (x - (1 - t) * mean)

    noise = noise_of_seeds(range(4), (1, 8, 8))
    latents = sample(
        velocity,
        noise,
        NOBODY,
        NOBODY,
        scheduler=scheduler_named(name),
        num_steps=100,
        guidance=Guidance(1.0),
    )
    torch.testing.assert_close(latents, mean + std * noise, atol=0.05, rtol=0)


def test_noise_of_a_seed_does_not_depend_on_its_neighbours() -> None:
    together = noise_of_seeds([5, 6, 7], (3, 4, 4))
    assert torch.equal(together[1], noise_of_seeds([6], (3, 4, 4))[0])
    assert not torch.equal(together[0], together[1])
    assert noise_of_seeds([], (3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.fixture
def scene(tiny: Denoiser, votes: torch.Tensor) -> Iterator[Scene]:
    latents = noise_of_seeds(range(8), tiny.codec.latent_shape)
    encoder = tiny.condition_encoder
    with torch.inference_mode():
        yield tiny.velocity, latents, torch.tensor(0.7), encoder(votes), encoder.unconditional(8)


def test_guidance_of_one_is_the_conditional_prediction(scene: Scene) -> None:
    velocity, latents, t, conditional, _ = scene
    assert torch.equal(guided_velocity(*scene, Guidance(1.0)), velocity(latents, t.expand(8), conditional))


def test_guidance_of_zero_is_the_unconditional_prediction(scene: Scene) -> None:
    velocity, latents, t, _, unconditional = scene
    expected = velocity(latents, t.expand(8), unconditional)
    torch.testing.assert_close(guided_velocity(*scene, Guidance(0.0)), expected, atol=1e-5, rtol=1e-4)


def test_guidance_extrapolates(scene: Scene) -> None:
    velocity, latents, t, conditional, unconditional = scene
    asked, without = (velocity(latents, t.expand(8), c) for c in (conditional, unconditional))
    assert (asked - without).abs().max() > 1e-4
    expected = without + 3.0 * (asked - without)
    torch.testing.assert_close(guided_velocity(*scene, Guidance(3.0)), expected, atol=1e-4, rtol=1e-3)


def test_guidance_outside_its_interval_is_off(scene: Scene) -> None:
    off = guided_velocity(*scene, Guidance(5.0, interval=(0.0, 0.6)))
    assert torch.equal(off, guided_velocity(*scene, Guidance(1.0)))
    on = guided_velocity(*scene, Guidance(5.0, interval=(0.6, 0.8)))
    assert torch.equal(on, guided_velocity(*scene, Guidance(5.0)))


def test_rescale_restores_the_deviation_of_the_conditional_prediction(scene: Scene) -> None:
    rescaled = guided_velocity(*scene, Guidance(8.0, rescale=1.0))
    conditional = guided_velocity(*scene, Guidance(1.0))
    torch.testing.assert_close(
        rescaled.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)), atol=1e-4, rtol=1e-3
    )


@pytest.mark.parametrize(
    "options",
    [{"scale": -1.0}, {"interval": (0.5, 0.5)}, {"interval": (0.0, 2.0)}, {"rescale": 1.5}],
)
def test_bad_guidance_is_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=f"guidance {next(iter(options))}"):
        Guidance(**options)


def test_bad_samplers_and_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'unipc'"):
        scheduler_named("unicp")
    with pytest.raises(ConfigError, match="num_steps=0"):
        sample(
            lambda x, *_: x,
            torch.zeros(4, 1, 2, 2),
            NOBODY,
            NOBODY,
            scheduler=scheduler_named("euler"),
            num_steps=0,
            guidance=Guidance(),
        )
