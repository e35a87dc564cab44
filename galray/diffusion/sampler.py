"""Guided sampling: from noise to latents, as functions of a denoiser.

An image depends on its own seed and condition alone, never on the batch that it happens to be
painted in, so that any number of workers paints the same galaxies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from galray.core.errors import ConfigError, nearest
from galray.diffusion.conditions import ConditionTokens

# name -> (scheduler class for flow matching, scheduler class for discrete diffusion); None: there is none
SAMPLERS: dict[str, tuple[Any, Any]] = {
    "euler": (FlowMatchEulerDiscreteScheduler, EulerDiscreteScheduler),
    "dpm++": (DPMSolverMultistepScheduler, DPMSolverMultistepScheduler),
    "unipc": (UniPCMultistepScheduler, UniPCMultistepScheduler),
    "euler-ancestral": (None, EulerAncestralDiscreteScheduler),
}

OUTLINE_UNTIL = 0.9  # the time above which noise hides all but a galaxy's outline

# predict(x_t, t, tokens) with x_t [B, C, h, w] and t [B] in [0, 1]
Predict = Callable[[Tensor, Tensor, ConditionTokens], Tensor]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    .. math:: y = y_\\varnothing + s\\, (y_c - y_\\varnothing)

    Attributes
    ----------
    scale : float
        s; at half the cost, 1 is the plain conditional prediction and 0 the unconditional one.
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


def is_flow(scheduler: Any) -> bool:
    """Return whether a diffusers scheduler belongs to a model trained by flow matching."""
    return scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction"


def scheduler_named(name: str, trained: Any) -> Any:
    """Return a new diffusers scheduler: the sampler called `name`, for what a model was trained on.

    Parameters
    ----------
    name : str
        One of `SAMPLERS`.
    trained : diffusers scheduler
        The model's own: its config says what the network predicts, and on which noise schedule.

    Raises
    ------
    ConfigError
        There is none of that name, or it does not exist for models of that kind.
    """
    if name not in SAMPLERS:
        raise ConfigError(
            f"No sampler is named {name!r}{nearest(name, SAMPLERS)}. Use one of {', '.join(SAMPLERS)}."
        )
    kind = 0 if is_flow(trained) else 1
    if SAMPLERS[name][kind] is None:
        others = ", ".join(other for other, kinds in SAMPLERS.items() if kinds[kind])
        raise ConfigError(
            f"Sampler {name!r} is not for models trained by {('flow matching', 'diffusion')[kind]}, "
            f"as this one is. Use one of {others}."
        )
    # One quantity under two names in diffusers.
    shift = {"shift": trained.config["flow_shift"]} if "flow_shift" in trained.config else {}
    return SAMPLERS[name][kind].from_config(trained.config, **shift)


def generators_of_seeds(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return a source of noise for each seed, on the CPU: a seed means the same galaxy on every device."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def guided(
    predict: Predict,
    latents: Tensor,
    t: Tensor,
    conditional: ConditionTokens,
    unconditional: ConditionTokens,
    guidance: Guidance,
) -> Tensor:
    """Return the guided prediction [B, C, h, w]; both predictions come from one batched call.

    Parameters
    ----------
    predict : callable
        ``predict(x_t, t, tokens)``.
    latents : Tensor, shape (B, C, h, w)
    t : Tensor of float32, shape ()
        The one time of all of them.
    conditional, unconditional : ConditionTokens
        Of B galaxies each.
    guidance : Guidance
    """
    if not guidance.applies(float(t)):
        return predict(latents, t.expand(len(latents)), conditional)
    if guidance.scale == 0 and not guidance.rescale:
        return predict(latents, t.expand(len(latents)), unconditional)
    both = ConditionTokens(*(torch.cat(pair) for pair in zip(unconditional, conditional, strict=True)))
    prediction = predict(torch.cat([latents, latents]), t.expand(2 * len(latents)), both)
    without, asked = prediction.float().chunk(2)
    mixed = without + guidance.scale * (asked - without)
    return rescale_noise_cfg(mixed, asked, guidance.rescale) if guidance.rescale else mixed


@torch.inference_mode()
def sample(
    predict: Predict,
    seeds: Sequence[int],
    latent_shape: tuple[int, ...],
    conditional: ConditionTokens,
    unconditional: ConditionTokens,
    *,
    scheduler: Any,
    num_steps: int,
    guidance: Guidance,
    outline: ConditionTokens | None = None,
    outline_until: float = OUTLINE_UNTIL,
    start: Tensor | None = None,
    start_time: float = 1.0,
) -> Tensor:
    """Go from noise at t = 1 to latents at t = 0, or from latents that noise has hidden in part.

    Parameters
    ----------
    predict : callable
        ``predict(x_t, t, tokens)``, e.g. `Denoiser.predict`.
    seeds : sequence of int
        B of them. All noise of an image comes from its own: the first, and what ancestral samplers
        add in each step.
    latent_shape : tuple of int
        (C, h, w) of the latents of one image.
    conditional, unconditional : ConditionTokens
        Of B galaxies each.
    scheduler : diffusers scheduler
        As `scheduler_named` returns; its step counter is reset here.
    num_steps : int
        Evaluations of the denoiser.
    guidance : Guidance
    outline : ConditionTokens, optional
        Of B galaxies: takes the place of `conditional` at times above `outline_until`, while noise hides all
        but a galaxy's outline.
    outline_until : float
    start : Tensor of float32, shape (B, C, h, w), optional
        Latents to vary: noise is added to them, and sampling begins there (SDEdit, Meng et al. 2022,
        arXiv:2108.01073, algorithm 1).
    start_time : float
        Where: at the first of the steps' times that is no later; the steps before it are left out.

    Returns
    -------
    Tensor of float32, shape (B, C, h, w)

    Raises
    ------
    ConfigError
        `num_steps` is below 1, or above the timesteps that there are, or no step is as early as `start_time`.
    """
    most = scheduler.config["num_train_timesteps"]
    if not 1 <= num_steps <= most:
        raise ConfigError(f"num_steps={num_steps}: sampling takes 1 to {most} steps; 20 to 50 are usual.")
    device = conditional.tokens.device
    if not len(seeds):
        return torch.empty(0, *latent_shape, device=device)
    generators = generators_of_seeds(seeds)
    latents = randn_tensor((len(generators), *latent_shape), generator=generators, device=device)
    scheduler.set_timesteps(num_steps, device=device)
    times = _times(scheduler)
    first = 0 if start is None else _first(times, start_time)
    scheduler.set_begin_index(first)  # it would look for it among timesteps that it has rounded
    if start is None:
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        latents = _hidden(scheduler, start, latents, first)
    draws_noise = "generator" in signature(scheduler.step).parameters
    noise = {"generator": generators} if draws_noise else {}
    for t, timestep in zip(times[first:], scheduler.timesteps[first:], strict=True):
        seen = latents if is_flow(scheduler) else scheduler.scale_model_input(latents, timestep)
        asked = conditional if outline is None or float(t) <= outline_until else outline
        prediction = guided(predict, seen, t.to(device), asked, unconditional, guidance)
        latents = scheduler.step(prediction.float(), timestep, latents, return_dict=False, **noise)[0]
    return latents


def _hidden(scheduler: Any, latents: Tensor, noise: Tensor, step: int) -> Tensor:
    """Return latents with as much noise as they have when a step begins."""
    if is_flow(scheduler):  # not all of diffusers' schedulers for flows can add noise
        t = _times(scheduler)[step]
        return (1 - t) * latents + t * noise
    return scheduler.add_noise(latents, noise, scheduler.timesteps[step].expand(len(latents)))


def _first(times: Tensor, start_time: float) -> int:
    """Return the first of the steps, whose times descend, that is no later than `start_time`."""
    first = int((times > start_time).sum())
    if first == len(times):
        raise ConfigError(
            f"start_time={start_time}: the last of {len(times)} steps begins at {float(times[-1]):.2f}, and "
            "nothing would be painted. Give a later time, or more steps."
        )
    return first


def _times(scheduler: Any) -> Tensor:
    """Return the times [num_steps] in [0, 1] that the denoiser was trained to be told."""
    if is_flow(scheduler):  # the noise level itself: some schedulers round their timesteps to integers
        return scheduler.sigmas[:-1].float()
    # For some numbers of steps diffusers adds one more, at -1, to "trailing" timesteps.
    return scheduler.timesteps.float().clamp(min=0) / scheduler.config["num_train_timesteps"]
