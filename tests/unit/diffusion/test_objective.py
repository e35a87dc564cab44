import pytest
import torch

from galray.core.errors import ConfigError
from galray.core.schema import votes_of_label
from galray.diffusion.denoiser import Denoiser
from galray.diffusion.objective import FlowMatching


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(6, 12, 4, 4, generator=torch.Generator().manual_seed(3))


def test_path_runs_from_galaxy_to_noise_with_no_signal_left(latents: torch.Tensor) -> None:
    noise = torch.randn_like(latents)
    objective = FlowMatching()
    assert torch.equal(objective.add_noise(latents, noise, torch.zeros(6)), latents)
    assert torch.equal(objective.add_noise(latents, noise, torch.ones(6)), noise)


def test_target_is_the_derivative_of_the_path(latents: torch.Tensor) -> None:
    noise, objective = torch.randn_like(latents), FlowMatching()
    earlier, later = (objective.add_noise(latents, noise, torch.full((6,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((later - earlier) / 0.5, objective.target(latents, noise))


def test_one_euler_step_along_the_true_velocity_lands_on_the_galaxy(latents: torch.Tensor) -> None:
    noise, objective, t = torch.randn_like(latents), FlowMatching(), torch.rand(6)
    noisy = objective.add_noise(latents, noise, t)
    torch.testing.assert_close(noisy - t.view(-1, 1, 1, 1) * objective.target(latents, noise), latents)


def test_loss_is_zero_for_an_oracle_and_one_number_for_each_galaxy(latents: torch.Tensor) -> None:
    def oracle(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (noisy - latents) / t.view(-1, 1, 1, 1)  # v = eps - x_0, and x_t - x_0 = t v

    loss, t = FlowMatching().loss(oracle, latents)
    assert loss.shape == t.shape == (6,)
    torch.testing.assert_close(loss, torch.zeros(6), atol=1e-9, rtol=0)
    silent, _ = FlowMatching().loss(lambda noisy, _: torch.zeros_like(noisy), latents)
    assert (silent > 0.5).all()


def test_loss_is_settled_by_the_generator(latents: torch.Tensor) -> None:
    def loss(seed: int) -> torch.Tensor:
        return FlowMatching().loss(lambda x, _: x, latents, generator=torch.Generator().manual_seed(seed))[0]

    assert torch.equal(loss(1), loss(1))
    assert not torch.equal(loss(1), loss(2))


def test_times_are_logit_normal() -> None:
    t = FlowMatching(0.5, 1.2).sample_times(20_000, torch.Generator().manual_seed(0))
    logits = torch.logit(t.double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.01)
    assert logits.std().item() == pytest.approx(1.2, abs=0.01)


def test_times_of_a_batch_cover_all_noise_levels_and_move() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([FlowMatching().sample_times(8, generator) for _ in range(200)])
    octiles = torch.special.ndtr(torch.logit(draws.double())).mul(8).long().clamp(0, 7)
    assert (octiles.sort(dim=1).values == torch.arange(8)).float().mean() > 0.99
    assert draws[:, 0].std() > 0.1, "each place in the batch sees all noise levels in the long run"


def test_no_spread_of_times_is_refused() -> None:
    with pytest.raises(ConfigError, match="logit_std=0"):
        FlowMatching(logit_std=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_learns_a_toy_sky(tiny: Denoiser, dtype: torch.dtype) -> None:
    votes = torch.stack([torch.from_numpy(votes_of_label(label)) for label in ("spiral", "edge_on")])
    votes = votes.repeat_interleave(8, dim=0)
    latents = torch.ones(16, *tiny.codec.latent_shape) * torch.tensor([-1.0, 1.0]).repeat_interleave(8).view(
        -1, 1, 1, 1
    )
    optimiser = torch.optim.AdamW(tiny.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = FlowMatching().loss(tiny, latents, votes, generator=generator).per_galaxy.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
