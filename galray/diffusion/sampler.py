"""Guided sampling: from noise to latents, as functions of a denoiser.

An image depends on its own seed and condition alone, never on the batch that it happens to be
painted in, so that any number of workers paints the same galaxies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from galray.core.errors import ConfigError, nearest
from galray.diffusion.conditions import ConditionTokens

# Each solves dx/dt = v(x, t) from t = 1 to 0 along the paths that objective.FlowMatching trains.
SAMPLERS: dict[str, Callable[[], Any]] = {
    "euler": lambda: FlowMatchEulerDiscreteScheduler(),
    "dpm++": lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "unipc": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
}

# velocity(x_t, t, tokens) with x_t [B, C, h, w] and t [B] in [0, 1]
Velocity = Callable[[Tensor, Tensor, ConditionTokens], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    .. math:: v = v_\\varnothing + s\\, (v_c - v_\\varnothing)

    Attributes
    ----------
    scale : float
        s; 1 is the plain conditional prediction, at half the cost, and 0 the unconditional one.
    interval : tuple of float
        (low, high) times t within which to guide; outside, the plain conditional prediction is taken.
        Guiding in the middle only keeps diversity (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    rescale : float
        0 to 1: how far to bring the guided prediction back to the deviation of the conditional one, against
        over-exposure (Lin et al. 2024, arXiv:2305.08891, eqs. 15 and 16).
    """

    scale: float = 2.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0.0 <= self.scale < float("inf"):
            raise ConfigError(f"guidance scale={self.scale} must be 0 or more; 1 means no guidance.")
        if not 0.0 <= low < high <= 1.0:
            raise ConfigError(f"guidance interval={self.interval} must be (low, high), 0 <= low < high <= 1.")
        if not 0.0 <= self.rescale <= 1.0:
            raise ConfigError(f"guidance rescale={self.rescale} must lie within [0, 1].")

    def applies(self, t: float) -> bool:
        """Return whether the prediction at time `t` is to be guided."""
        return self.scale != 1.0 and self.interval[0] <= t <= self.interval[1]


def scheduler_named(name: str) -> Any:
    """Return a new diffusers scheduler of `SAMPLERS`: ``euler``, ``dpm++`` or ``unipc``.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"No sampler is named {name!r}{nearest(name, SAMPLERS)}. Use one of {', '.join(SAMPLERS)}."
        )
    return SAMPLERS[name]()


def noise_of_seeds(
    seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """Return float32 [len(seeds), *shape] of standard normal noise, each row from its own seed alone.

    Drawn on the CPU always, so that a seed means the same galaxy on every device.
    """
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds]
    return torch.stack(rows).to(device) if rows else torch.empty(0, *shape, device=device)


def guided_velocity(
    velocity: Velocity,
    latents: Tensor,
    t: Tensor,
    conditional: ConditionTokens,
    unconditional: ConditionTokens,
    guidance: Guidance,
) -> Tensor:
    """Return the guided prediction [B, C, h, w]; both predictions come from one batched call.

    Parameters
    ----------
    velocity : callable
        ``velocity(x_t, t, tokens)``.
    latents : Tensor, shape (B, C, h, w)
    t : Tensor of float32, shape ()
        The one time of all of them.
    conditional, unconditional : ConditionTokens
        Of B galaxies each.
    guidance : Guidance
    """
    if not guidance.applies(float(t)):
        return velocity(latents, t.expand(len(latents)), conditional)
    both = ConditionTokens(*(torch.cat(pair) for pair in zip(unconditional, conditional, strict=True)))
    prediction = velocity(torch.cat([latents, latents]), t.expand(2 * len(latents)), both)
    without, asked = prediction.float().chunk(2)
    guided = without + guidance.scale * (asked - without)
    return rescale_noise_cfg(guided, asked, guidance.rescale) if guidance.rescale else guided


@torch.inference_mode()
def sample(
    velocity: Velocity,
    noise: Tensor,
    conditional: ConditionTokens,
    unconditional: ConditionTokens,
    *,
    scheduler: Any,
    num_steps: int,
    guidance: Guidance,
) -> Tensor:
    """Solve dx/dt = v(x, t) from noise at t = 1 to latents at t = 0.

    Parameters
    ----------
    velocity : callable
        ``velocity(x_t, t, tokens)``, e.g. `Denoiser.velocity`.
    noise : Tensor of float32, shape (B, C, h, w)
        See `noise_of_seeds`.
    conditional, unconditional : ConditionTokens
        Of B galaxies each.
    scheduler : diffusers scheduler
        One of flow matching, as `scheduler_named` returns; its step counter is reset here.
    num_steps : int
        Evaluations of the denoiser.
    guidance : Guidance

    Returns
    -------
    Tensor of float32, shape (B, C, h, w)

    Raises
    ------
    ConfigError
        `num_steps` is below 1.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps={num_steps}: sampling takes at least 1 step; 20 to 50 are usual.")
    scheduler.set_timesteps(num_steps, device=noise.device)
    latents = noise
    # The noise level itself, not `scheduler.timesteps`, which some schedulers round to integers.
    for t, timestep in zip(scheduler.sigmas[:-1].to(noise.device), scheduler.timesteps, strict=True):
        prediction = guided_velocity(velocity, latents, t, conditional, unconditional, guidance)
        latents = scheduler.step(prediction.float(), timestep, latents, return_dict=False)[0]
    return latents
