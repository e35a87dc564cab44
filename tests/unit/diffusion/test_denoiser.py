import numpy as np
import pytest
import torch

from galray.core.errors import ConfigError
from galray.core.schema import ANSWER_INDEX
from galray.diffusion.codec import PixelCodec
from galray.diffusion.conditions import VoteEncoder, condition, summarise
from galray.diffusion.denoiser import PRESETS, Denoiser, DenoiserConfig, build_denoiser, preconditioning
from galray.diffusion.objective import Diffusion, FlowMatching, Objective
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.sampler import SAMPLERS

# diffusers 0.42 converts a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def predict_with_grad(denoiser: Denoiser, *condition_: torch.Tensor) -> torch.Tensor:
    shape = (len(condition_[0]), *denoiser.codec.latent_shape)
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return denoiser(noisy, torch.full((shape[0],), 0.5), *condition_)


def predict(denoiser: Denoiser, *condition_: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return predict_with_grad(denoiser, *condition_)


def test_prediction_has_the_shape_of_the_latents(tiny: Denoiser, votes: torch.Tensor) -> None:
    velocity = predict(tiny, votes)
    assert velocity.shape == (8, 12, 4, 4)
    assert velocity.isfinite().all()


def test_prediction_under_bfloat16_autocast(tiny: Denoiser, votes: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        velocity = predict(tiny, votes)
    torch.testing.assert_close(velocity.float(), predict(tiny, votes), atol=0.05, rtol=0.05)


def test_attending_plainly_predicts_the_same_and_sees_no_masked_token(
    tiny: Denoiser, votes: torch.Tensor
) -> None:
    fused = predict(tiny, votes)
    tiny.attend_plainly()
    assert not any("2_0" in type(p).__name__ for p in tiny.unet.attn_processors.values())
    torch.testing.assert_close(predict(tiny, votes), fused, atol=1e-5, rtol=1e-4)


def test_a_masked_token_cannot_be_seen(tiny: Denoiser, votes: torch.Tensor) -> None:
    before = predict(tiny, votes)
    index = ANSWER_INDEX["bar"]
    assert votes[:, index].isnan().all()
    assert isinstance(tiny.condition_encoder, VoteEncoder)
    with torch.no_grad():
        tiny.condition_encoder.position[index] += 100.0
    assert torch.equal(predict(tiny, votes), before)
    seen = votes.clone()
    seen[:, index] = 0.0
    assert not torch.allclose(predict(tiny, seen), before, atol=1e-4)


def test_votes_reach_every_layer_without_cross_attention(tiny: Denoiser, votes: torch.Tensor) -> None:
    for name, module in tiny.unet.named_modules():
        if name.endswith("attn2.to_out.0"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    assert not torch.allclose(predict(tiny, votes), predict(tiny, votes.roll(1, 0)), atol=1e-3)


def test_zero_is_not_unknown_and_weights_tell(tiny: Denoiser) -> None:
    def velocity(request: object) -> torch.Tensor:
        votes, weights = condition(request)  # type: ignore[arg-type]
        return predict(tiny, votes[None], weights[None])

    unknown, no, yes, more = (velocity(r) for r in ([], {"bar": 0.0}, ["bar"], ["bar:1.5"]))
    for one, other in ((unknown, no), (no, yes), (yes, more)):
        assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_preconditioning_leaves_the_network_what_is_left(t: float) -> None:
    """Data of deviation s: `skip` is the regression of v on x_t, and the rest has deviation `scale_out`."""
    s, objective = 0.25, FlowMatching()
    data, noise = torch.randn(2, 1, 1, 400, 400, generator=torch.Generator().manual_seed(0))
    data, times = s * data, torch.tensor([t])
    noisy, target = objective.add_noise(data, noise, times), objective.target(data, noise, times)
    skip, _, scale_out = preconditioning(torch.tensor(t), s)
    regression = (target * noisy).mean() / noisy.square().mean()
    torch.testing.assert_close(skip, regression, atol=0.02, rtol=0)
    torch.testing.assert_close(scale_out, (target - skip * noisy).std(), atol=0.01, rtol=0)


def test_a_new_denoiser_is_the_linear_one(votes: torch.Tensor) -> None:
    denoiser = build_denoiser(DenoiserConfig(8, 2, (32, 32), (False, True)))
    noisy = torch.randn(8, *denoiser.codec.latent_shape)
    velocity = denoiser(noisy, torch.ones(8), votes)
    torch.testing.assert_close(velocity, noisy)


def test_parameters_are_those_of_network_and_encoder(tiny: Denoiser) -> None:
    names = {name.split(".")[0] for name, _ in tiny.named_parameters()}
    assert names == {"unet", "condition_encoder"}
    assert {"codec.mean", "codec.std"} <= set(tiny.state_dict())


@pytest.mark.parametrize(
    ("objective", "sampler"),
    [
        *((FlowMatching(), name) for name in ("euler", "dpm++", "unipc")),
        *((Diffusion(), s) for s in SAMPLERS),
    ],
)
def test_images_do_not_depend_on_the_batch(
    tiny: Denoiser, votes: torch.Tensor, objective: Objective, sampler: str
) -> None:
    tiny.scheduler = objective.scheduler()
    pipeline = GalaxyPipeline.from_denoiser(tiny)

    def paint(rows: slice) -> np.ndarray:
        return pipeline(votes[rows], seeds=range(8)[rows], num_steps=4, sampler=sampler)

    whole, halves = paint(slice(8)), np.concatenate([paint(slice(4)), paint(slice(4, 8))])
    assert whole.shape == (8, 8, 8, 3)
    assert whole.dtype == np.uint8
    # Batched matrix products may round differently, which can tip a pixel by one level of 255.
    assert np.abs(whole.astype(int) - halves.astype(int)).max() <= 1
    assert np.array_equal(whole, paint(slice(8)))
    assert not np.array_equal(whole[0], whole[4]), "same votes, other seed"


def test_flow_alone_is_preconditioned(tiny: Denoiser, votes: torch.Tensor) -> None:
    noisy, times = torch.randn(8, *tiny.codec.latent_shape), torch.full((8,), 0.25)
    condition = tiny.condition_encoder(votes)
    with torch.inference_mode():
        tiny.scheduler = Diffusion().scheduler()
        raw = tiny.unet(
            noisy, 250.0, condition.tokens, summarise(condition), encoder_attention_mask=condition.mask
        ).sample
        torch.testing.assert_close(tiny(noisy, times, votes), raw)
        tiny.scheduler = FlowMatching().scheduler()
        assert not torch.allclose(tiny(noisy, times, votes), raw, atol=0.1)


def test_gradient_checkpointing_gives_the_same_gradients(tiny: Denoiser, votes: torch.Tensor) -> None:
    def gradients() -> list[torch.Tensor]:
        tiny.zero_grad()
        predict_with_grad(tiny.train(), votes).square().mean().backward()
        return [p.grad.clone() for p in tiny.parameters() if p.grad is not None]

    plain = gradients()
    tiny.unet.enable_gradient_checkpointing()
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_network_predicts_the_same(tiny: Denoiser, votes: torch.Tensor) -> None:
    expected, names = predict(tiny, votes), list(tiny.state_dict())
    tiny.unet.compile(backend="eager", fullgraph=True)  # traces all, and needs no compiler
    torch.testing.assert_close(predict(tiny, votes), expected)
    assert list(tiny.state_dict()) == names, "compiled in place, weights keep their names"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        denoiser = build_denoiser(config)
    assert denoiser.unet.config["in_channels"] == 3 * config.fold**2
    assert denoiser.unet.config["sample_size"] * config.fold == config.size_px


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_px": 60}, "no multiple of 8"),
        ({"channels": (64, 100, 192)}, "multiples of norm_groups=32"),
        ({"attention": (True,)}, "each level"),
        ({"attention": (True, True, False)}, "lowest level must attend"),
    ],
)
def test_impossible_shapes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DenoiserConfig(**options)


def test_codec_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 px folded by 2"):
        build_denoiser(PRESETS["64px"], PixelCodec(32, 2))
