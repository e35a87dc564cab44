from collections.abc import Iterator

import pytest
import torch

from galray.core.errors import ConfigError
from galray.diffusion.conditions import ConditionTokens
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.objective import PAPER, Diffusion, FlowMatching, Objective
from galray.diffusion.sampler import (
    SAMPLERS,
    Guidance,
    Predict,
    generators_of_seeds,
    guided,
    sample,
    scheduler_named,
)

# diffusers 0.42 converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Scene = tuple[Predict, torch.Tensor, torch.Tensor, ConditionTokens, ConditionTokens]

SHAPE = (1, 24, 24)
OBJECTIVES = {"flow": FlowMatching(), "diffusion": Diffusion(), "paper": PAPER}
PAIRS = [
    (kind, sampler)
    for kind in OBJECTIVES
    for sampler in SAMPLERS
    if (kind, sampler) != ("flow", "euler-ancestral")
]


def nobody(count: int) -> ConditionTokens:
    return ConditionTokens(torch.zeros(count, 1, 1), torch.ones(count, 1, dtype=torch.bool))


def best_predictor(objective: Objective, mean: float, std: float) -> Predict:
    """The prediction of least error for galaxies ~ N(mean, std^2): all that a network can learn of them."""

    def predict(x: torch.Tensor, t: torch.Tensor, _: ConditionTokens) -> torch.Tensor:
        ones, zeros = torch.ones_like(x), torch.zeros_like(x)
        signal, noise = objective.add_noise(ones, zeros, t), objective.add_noise(zeros, ones, t)
        surprise = (x - signal * mean) / (signal.square() * std**2 + noise.square())
        return objective.target(mean + signal * std**2 * surprise, noise * surprise, t)

    return predict


def paint(
    kind: str,
    sampler: str,
    seeds: range,
    mean: float = 0.0,
    std: float = 1.0,
    num_steps: int = 20,
    start: torch.Tensor | None = None,
    start_time: float = 1.0,
) -> torch.Tensor:
    objective = OBJECTIVES[kind]
    return sample(
        best_predictor(objective, mean, std),
        seeds,
        SHAPE,
        nobody(len(seeds)),
        nobody(len(seeds)),
        scheduler=scheduler_named(sampler, objective.scheduler()),
        num_steps=num_steps,
        guidance=Guidance(1.0),
        start=start,
        start_time=start_time,
    )


@pytest.mark.parametrize("time", [0.9, 0.5])
@pytest.mark.parametrize(("kind", "sampler"), [pair for pair in PAIRS if pair[1] != "euler-ancestral"])
def test_a_variation_keeps_as_much_of_a_galaxy_as_noise_leaves(kind: str, sampler: str, time: float) -> None:
    """Of galaxies ~ N(0, 1) the best predictor brings x_t back to unit variance, and mends nothing."""
    start = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(9))
    varied = paint(kind, sampler, range(16), num_steps=500, start=start, start_time=time)
    ones, at = torch.ones(1, 1, 1, 1), torch.tensor([time])
    signal, noise = (
        float(OBJECTIVES[kind].add_noise(a, b, at)) for a, b in ((ones, 0 * ones), (0 * ones, ones))
    )
    alike = torch.corrcoef(torch.stack([varied.flatten(), start.flatten()]))[0, 1]
    assert varied.std().item() == pytest.approx(1.0, rel=0.04)
    assert float(alike) == pytest.approx(signal / (signal**2 + noise**2) ** 0.5, abs=0.03)


def test_a_variation_of_which_nothing_would_be_painted_is_refused() -> None:
    start = torch.zeros(2, *SHAPE)
    with pytest.raises(ConfigError, match=r"the last of 4 steps begins at 0\.67"):
        paint("flow", "unipc", range(2), num_steps=4, start=start, start_time=0.5)


@pytest.mark.parametrize(("kind", "sampler"), PAIRS)
def test_brightness_and_spread_are_those_of_the_galaxies(kind: str, sampler: str) -> None:
    mean, std = -0.9, 0.5
    latents = paint(kind, sampler, range(16), mean, std, num_steps=200)
    # Stable Diffusion's schedule expects a trace of the galaxy in the noise that it starts from; where there
    # is none, an honest solver carries the error of 7% of the mean to the end, in units of the spread.
    trace = 0.068 * std * abs(mean) if kind == "paper" and sampler != "euler-ancestral" else 0.0
    assert latents.mean().item() == pytest.approx(mean + trace, abs=0.01)
    assert latents.std().item() == pytest.approx(std, rel=0.04)


@pytest.mark.parametrize("sampler", [name for kind, name in PAIRS if kind == "diffusion"])
def test_brightness_needs_no_more_than_a_few_steps_where_no_signal_is_left(sampler: str) -> None:
    latents = paint("diffusion", sampler, range(16), 5.0, 0.5, num_steps=8)
    assert latents.mean().item() == pytest.approx(5.0, abs=0.02)


@pytest.mark.parametrize("sampler", [name for kind, name in PAIRS if kind == "flow"])
def test_sampling_looks_oftenest_where_there_is_most_noise(sampler: str) -> None:
    """Every sampler takes the shift that the model was saved with (Esser et al. 2024, eq. 23)."""
    equal, shifted = (
        scheduler_named(sampler, FlowMatching(sampling_shift=shift).scheduler()) for shift in (1.0, 6.0)
    )
    for scheduler in (equal, shifted):
        scheduler.set_timesteps(10)
    t = equal.sigmas[:-1]
    torch.testing.assert_close(shifted.sigmas[:-1], 6 * t / (1 + 5 * t), atol=0.03, rtol=0)
    assert (shifted.sigmas[:-1] > 0.8).sum() >= 6


@pytest.mark.parametrize("sampler", [name for kind, name in PAIRS if kind == "flow"])
def test_samplers_follow_a_known_flow_to_its_end(sampler: str) -> None:
    """For galaxies ~ N(3, 0.5^2) a flow ends at 3 + 0.5 noise."""
    noise = torch.stack([torch.randn(SHAPE, generator=source) for source in generators_of_seeds(range(4))])
    num_steps = 400 if sampler == "euler" else 100  # of first order, the others of second
    latents = paint("flow", sampler, range(4), 3.0, 0.5, num_steps=num_steps)
    torch.testing.assert_close(latents, 3.0 + 0.5 * noise, atol=0.05, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampling_starts_at_the_noisiest_time_and_never_leaves_the_trained_ones(sampler: str) -> None:
    for num_steps in (1, 2, 20, 61, 1000):  # 61: diffusers adds a step at timestep -1
        told: list[float] = []

        def predict(x: torch.Tensor, t: torch.Tensor, _: ConditionTokens) -> torch.Tensor:
            told.append(float(t[0]))  # noqa: B023
            return torch.zeros_like(x)

        scheduler = scheduler_named(sampler, Diffusion().scheduler())
        options = {"scheduler": scheduler, "num_steps": num_steps, "guidance": Guidance(1.0)}
        sample(predict, [0], (1, 1, 1), nobody(1), nobody(1), **options)
        assert told[0] == pytest.approx(0.999)
        assert told == sorted(told, reverse=True)
        assert min(told) >= 0
        assert len(told) - num_steps in (0, 1)


@pytest.mark.parametrize(("kind", "sampler"), PAIRS)
def test_an_image_depends_on_its_own_seed_alone(kind: str, sampler: str) -> None:
    together = paint(kind, sampler, range(4), num_steps=6)
    assert torch.equal(together, paint(kind, sampler, range(4), num_steps=6))
    assert torch.equal(together[2:], paint(kind, sampler, range(2, 4), num_steps=6))
    assert torch.equal(together[1:2], paint(kind, sampler, range(1, 2), num_steps=6))
    assert not torch.equal(together[0], together[1])


def test_ancestral_samplers_add_other_noise_to_each_image() -> None:
    """From the same first noise, only the noise of the steps can make a difference."""
    images = paint("paper", "euler-ancestral", range(400), num_steps=20).flatten(1)
    correlation = torch.corrcoef(images).fill_diagonal_(0).abs().max()
    assert correlation < 0.25, "0.21 is what 80,000 pairs of independent images of 576 px have at most"


def test_an_outline_is_asked_for_until_its_time() -> None:
    scheduler = scheduler_named("euler", OBJECTIVES["flow"].scheduler())
    asked: list[tuple[float, float]] = []

    def predict(x: torch.Tensor, t: torch.Tensor, condition: ConditionTokens) -> torch.Tensor:
        asked.append((float(t[0]), float(condition.tokens[0])))
        return torch.zeros_like(x)

    outline, later = (ConditionTokens(torch.full((1, 1, 1), v), nobody(1).mask) for v in (5.0, -1.0))
    options = {"scheduler": scheduler, "num_steps": 10, "guidance": Guidance(1.0)}
    sample(predict, [0], (1, 1, 1), later, nobody(1), **options, outline=outline, outline_until=0.75)
    assert [value for _, value in asked] == [5.0 if t > 0.75 else -1.0 for t, _ in asked]
    assert {value for _, value in asked} == {5.0, -1.0}


def test_nothing_to_paint() -> None:
    assert paint("flow", "unipc", range(0)).shape == (0, *SHAPE)


@pytest.fixture
def scene(tiny: Denoiser, votes: torch.Tensor) -> Iterator[Scene]:
    latents = torch.randn(8, *tiny.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    encoder = tiny.condition_encoder
    with torch.inference_mode():
        yield tiny.predict, latents, torch.tensor(0.7), encoder(votes), encoder.unconditional(8)


def test_guidance_of_one_is_the_conditional_prediction(scene: Scene) -> None:
    predict, latents, t, conditional, _ = scene
    assert torch.equal(guided(*scene, Guidance(1.0)), predict(latents, t.expand(8), conditional))


def test_guidance_of_zero_is_the_unconditional_prediction(scene: Scene) -> None:
    predict, latents, t, _, unconditional = scene
    expected = predict(latents, t.expand(8), unconditional)
    torch.testing.assert_close(guided(*scene, Guidance(0.0)), expected, atol=1e-5, rtol=1e-4)


def test_guidance_extrapolates(scene: Scene) -> None:
    predict, latents, t, conditional, unconditional = scene
    asked, without = (predict(latents, t.expand(8), c) for c in (conditional, unconditional))
    assert (asked - without).abs().max() > 1e-4
    expected = without + 3.0 * (asked - without)
    torch.testing.assert_close(guided(*scene, Guidance(3.0)), expected, atol=1e-4, rtol=1e-3)


def test_guidance_outside_its_interval_is_off(scene: Scene) -> None:
    off = guided(*scene, Guidance(5.0, interval=(0.0, 0.6)))
    assert torch.equal(off, guided(*scene, Guidance(1.0)))
    on = guided(*scene, Guidance(5.0, interval=(0.6, 0.8)))
    assert torch.equal(on, guided(*scene, Guidance(5.0)))


def test_rescale_restores_the_deviation_of_the_conditional_prediction(scene: Scene) -> None:
    rescaled = guided(*scene, Guidance(8.0, rescale=1.0))
    conditional = guided(*scene, Guidance(1.0))
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
    flow = FlowMatching().scheduler()
    with pytest.raises(ConfigError, match="did you mean 'unipc'"):
        scheduler_named("unicp", flow)
    with pytest.raises(
        ConfigError, match=r"not for models trained by flow matching.*euler, dpm\+\+, unipc\."
    ):
        scheduler_named("euler-ancestral", flow)
    for num_steps in (0, 1001):
        with pytest.raises(ConfigError, match=f"num_steps={num_steps}: sampling takes 1 to 1000"):
            paint("flow", "euler", range(1), num_steps=num_steps)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objective", [Diffusion(), PAPER])
def test_a_sampler_keeps_what_the_model_was_trained_on(objective: Objective, sampler: str) -> None:
    trained = objective.scheduler()
    config = scheduler_named(sampler, trained).config
    for key in ("prediction_type", "rescale_betas_zero_snr", "beta_schedule", "beta_start", "beta_end"):
        assert config[key] == trained.config[key]
