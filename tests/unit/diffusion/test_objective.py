from collections.abc import Callable

import pytest
import torch

from galray.core.errors import ConfigError
from galray.core.schema import votes_of_label
from galray.diffusion.denoiser import Denoiser, build_denoiser
from galray.diffusion.objective import PAPER, Diffusion, Draws, FlowMatching, Objective

from .conftest import TINY

V_PLAIN = Diffusion(zero_terminal_snr=False, min_snr_gamma=0.0)
KINDS = {"flow": FlowMatching(), "diffusion": Diffusion(), "v": V_PLAIN, "paper": PAPER}
LAST = torch.full((6,), 0.999)


@pytest.fixture(params=KINDS)
def objective(request: pytest.FixtureRequest) -> Objective:
    return KINDS[request.param]


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(6, 12, 4, 4, generator=torch.Generator().manual_seed(3))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def snr(objective: Objective, t: torch.Tensor) -> torch.Tensor:
    """Signal-to-noise ratio, told from what the objective does to a galaxy of ones and noise of ones."""
    ones, zeros = torch.ones(len(t), 1, 1, 1), torch.zeros(len(t), 1, 1, 1)
    signal, noise = objective.add_noise(ones, zeros, t), objective.add_noise(zeros, ones, t)
    return (signal / noise).square().flatten()


def test_flow_runs_from_galaxy_to_noise_with_no_signal_left(latents: torch.Tensor) -> None:
    noise, flow = torch.randn_like(latents), FlowMatching()
    assert torch.equal(flow.add_noise(latents, noise, torch.zeros(6)), latents)
    assert torch.equal(flow.add_noise(latents, noise, torch.ones(6)), noise)


def test_diffusion_has_no_signal_left_at_zero_terminal_snr_alone(latents: torch.Tensor) -> None:
    noise = torch.randn_like(latents)
    assert torch.equal(Diffusion().add_noise(latents, noise, LAST), noise)
    left = (PAPER.add_noise(latents, noise, LAST) - noise).std()
    assert left > 0.05, "Stable Diffusion's schedule ends with 7% of the galaxy (Lin et al. 2024, table 1)"


@pytest.mark.parametrize("kind", ["diffusion", "v", "paper"])
def test_diffusion_preserves_variance(kind: str, latents: torch.Tensor) -> None:
    ones, zeros = torch.ones_like(latents), torch.zeros_like(latents)
    t = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.8, 0.999])
    signal, noise = KINDS[kind].add_noise(ones, zeros, t), KINDS[kind].add_noise(zeros, ones, t)
    torch.testing.assert_close(signal.square() + noise.square(), ones)


def test_flow_target_is_the_derivative_of_the_path(latents: torch.Tensor) -> None:
    noise, flow = torch.randn_like(latents), FlowMatching()
    earlier, later = (flow.add_noise(latents, noise, torch.full((6,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((later - earlier) / 0.5, flow.target(latents, noise, torch.ones(6)))


@pytest.mark.parametrize("t", [0.001, 0.4, 0.9, 0.999])
def test_velocity_and_noisy_galaxy_together_are_the_galaxy(latents: torch.Tensor, t: float) -> None:
    """x_0 = sqrt(abar) x_t - sqrt(1 - abar) v (Salimans & Ho 2022, appendix D)."""
    noise, times = torch.randn_like(latents), torch.full((6,), t)
    noisy, velocity = (f(latents, noise, times) for f in (Diffusion().add_noise, Diffusion().target))
    abar = (snr(Diffusion(), times) / (1 + snr(Diffusion(), times))).view(-1, 1, 1, 1)
    torch.testing.assert_close(abar.sqrt() * noisy - (1 - abar).sqrt() * velocity, latents)


def test_loss_is_zero_for_an_oracle_and_one_number_for_each_galaxy(
    objective: Objective, latents: torch.Tensor
) -> None:
    draws = objective.draw((6, 12, 4, 4), seeded(0))

    def oracle(_: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return objective.target(latents, draws.noise, t)

    loss, t = objective.loss(oracle, latents, draws)
    assert loss.shape == (6,)
    assert torch.equal(t, draws.t)
    assert torch.equal(loss, torch.zeros(6))
    silent, _ = objective.loss(lambda noisy, _: torch.zeros_like(noisy), latents, draws)
    assert (silent > 0).all()


def test_loss_does_not_depend_on_the_number_of_workers(objective: Objective, latents: torch.Tensor) -> None:
    draws = objective.draw((6, 12, 4, 4), seeded(0))
    parts = (slice(0, 2), slice(2, 4), slice(4, 6))
    shared = [objective.loss(lambda x, _: x, latents[part], draws.rows(part)) for part in parts]
    alone = objective.loss(lambda x, _: x, latents, draws)
    assert torch.equal(torch.cat([loss.per_galaxy for loss in shared]), alone.per_galaxy)


def test_draws_are_settled_by_the_generator(objective: Objective) -> None:
    first, again, other = (objective.draw((6, 2, 4, 4), seeded(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first.t, other.t)
    assert not torch.equal(first.noise, other.noise)


def test_times_of_flow_are_logit_normal() -> None:
    t = FlowMatching(0.5, 1.2).draw((20_000, 1, 1, 1), seeded(0)).t
    logits = torch.logit(t.double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(1.2, abs=0.01)


def test_times_of_diffusion_are_its_timesteps_each_as_often() -> None:
    t = PAPER.draw((5000, 1, 1, 1), seeded(0)).t * 1000
    torch.testing.assert_close(t, t.round(), atol=1e-3, rtol=0)
    assert torch.equal(t.round().long().bincount(), torch.full((1000,), 5))


@pytest.mark.parametrize(
    ("objective", "quantile"),
    [(FlowMatching(), lambda t: torch.special.ndtr(torch.logit(t))), (Diffusion(), lambda t: t + 5e-4)],
)
def test_times_of_a_batch_cover_all_noise_levels_and_move(
    objective: Objective, quantile: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    generator = seeded(0)
    draws = torch.stack([objective.draw((8, 1, 1, 1), generator).t for _ in range(200)])
    octiles = quantile(draws.double()).mul(8).long().clamp(0, 7)
    assert (octiles.sort(dim=1).values == torch.arange(8)).float().mean() > 0.98
    assert draws[:, 0].std() > 0.1, "each place in the batch sees all noise levels in the long run"


def test_stratified_times_leave_the_loss_unbiased() -> None:
    """The mean over many stratified batches is the mean over independent uniform times."""

    def steep(t: torch.Tensor) -> torch.Tensor:
        return t**4

    generator = seeded(0)
    stratified = torch.stack([steep(PAPER.draw((6, 1, 1, 1), generator).t) for _ in range(500)])
    independent = steep(PAPER.times(torch.rand(100_000, generator=generator)))
    assert stratified.mean().item() == pytest.approx(independent.mean().item(), rel=0.02)
    assert stratified.mean(dim=1).std() < 0.5 * independent.view(-1, 10)[:, :6].mean(dim=1).std()


T = torch.linspace(0, 999, 100).round() / 1000


def test_min_snr_weights_are_the_same_loss_of_the_galaxy_whatever_is_predicted() -> None:
    """w_eps SNR = w_v (SNR + 1) = min(SNR, gamma): the weight of an error in x_0 (Hang et al. 2023)."""
    epsilon = Diffusion("epsilon", zero_terminal_snr=False, min_snr_gamma=5.0)
    velocity = Diffusion("v_prediction", zero_terminal_snr=False, min_snr_gamma=5.0)
    ratio = snr(epsilon, T)
    assert ratio.min() < 5 < ratio.max()
    torch.testing.assert_close(epsilon.weight(T) * ratio, ratio.clamp(max=5.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(velocity.weight(T) * (ratio + 1), ratio.clamp(max=5.0), rtol=1e-4, atol=0)


def test_pure_noise_is_trained_on_all_the_same() -> None:
    weight, ratio = Diffusion().weight(T), snr(Diffusion(), T)
    assert ratio[-1] == 0
    assert weight[-1] == 1
    torch.testing.assert_close(weight * (ratio + 1), ratio.clamp(1.0, 5.0), rtol=1e-4, atol=0)


def test_without_min_snr_all_errors_weigh_the_same() -> None:
    for objective in (PAPER, V_PLAIN, FlowMatching()):
        assert torch.equal(objective.weight(T), torch.ones(100))


def test_the_scheduler_says_what_is_predicted_and_on_which_schedule() -> None:
    config = Diffusion().scheduler().config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("v_prediction", True)
    assert config.timestep_spacing == "trailing"
    config = PAPER.scheduler().config
    assert (config.prediction_type, config.rescale_betas_zero_snr) == ("epsilon", False)
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert FlowMatching().scheduler().config.prediction_type == "flow_prediction"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowMatching(logit_std=0), "logit_std=0"),
        (lambda: FlowMatching(sampling_shift=0), "sampling_shift=0"),
        (lambda: Diffusion("epsilon"), "Choose v_prediction, or turn zero_terminal_snr off"),
        (lambda: Diffusion("velocity"), "must be 'v_prediction' or 'epsilon'"),  # type: ignore[arg-type]
        (lambda: Diffusion(min_snr_gamma=-1), "min_snr_gamma=-1"),
        (lambda: Diffusion(min_snr_gamma=0.5), "1 or more"),
    ],
)
def test_impossible_objectives_are_refused(make: Callable[[], Objective], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("kind", "dtype"), [("flow", torch.float32), ("diffusion", torch.bfloat16), ("paper", torch.bfloat16)]
)
def test_training_learns_a_toy_sky(kind: str, tiny: Denoiser, dtype: torch.dtype) -> None:
    objective = KINDS[kind]
    denoiser = build_denoiser(TINY, tiny.codec, objective)
    votes = torch.stack([torch.from_numpy(votes_of_label(label)) for label in ("spiral", "edge_on")])
    votes = votes.repeat_interleave(8, dim=0)
    shape = (16, *denoiser.codec.latent_shape)
    latents = torch.ones(shape) * torch.tensor([-1.0, 1.0]).repeat_interleave(8).view(-1, 1, 1, 1)
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=3e-3)
    generator, losses = seeded(0), []
    for _ in range(30):
        draws: Draws = objective.draw(shape, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = objective.loss(denoiser, latents, draws, votes).per_galaxy.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
