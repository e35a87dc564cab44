"""What the denoiser learns: a path from galaxies to noise, and what to predict along it.

Time runs from t = 0, a galaxy, to t = 1, noise. A schedule that keeps a trace of signal at its end
teaches the network to read brightness off that trace, which is missing when sampling starts from pure
noise (Lin et al. 2024, arXiv:2305.08891). `FlowMatching`, and `Diffusion` as it is set by default, keep
none; `PAPER` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from galray.core.errors import ConfigError

TIMESTEPS = 1000


class Draws(NamedTuple):
    """What chance decides of a step: `t` float32 [B] in [0, 1], and `noise` float32 [B, C, h, w]."""

    t: Tensor
    noise: Tensor

    def rows(self, rows: slice) -> Draws:
        """Return the draws of one worker's part of the batch."""
        return Draws(self.t[rows], self.noise[rows])


class Loss(NamedTuple):
    """`per_galaxy` float32 [B], to be averaged; `t` float32 [B], the noise level each was seen at."""

    per_galaxy: Tensor
    t: Tensor


class Objective(ABC):
    """A path from galaxies to noise, and what the denoiser predicts on it."""

    def draw(
        self, shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Draws:
        """Return the times and noise of a whole batch.

        Draw for the batch of all workers and let each take its `Draws.rows`: the loss then does not
        depend on how many there are.

        Parameters
        ----------
        shape : tuple of int
            (B, C, h, w) of the latents.
        generator : torch.Generator
            The same state gives the same draws. They are made where it lives and then moved, so that
            one on the CPU gives the same numbers on any device.
        device : torch.device or str
            Where the draws are wanted.

        Notes
        -----
        One random offset shifts B equally spaced quantiles of the times (Kingma et al. 2021,
        appendix I.1): each time is distributed as the objective says, and a batch covers all noise
        levels, so that its loss is less noisy.
        """
        offset = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).cpu()
        quantiles = (torch.arange(shape[0], dtype=torch.float64) / max(shape[0], 1) + offset) % 1.0
        noise = torch.randn(shape, generator=generator, device=generator.device)
        return Draws(self.times(quantiles).float().to(device), noise.to(device))

    def loss(self, denoise: Callable[..., Tensor], latents: Tensor, draws: Draws, *condition: Any) -> Loss:
        """Return the weighted squared error of one batch, galaxy by galaxy.

        Parameters
        ----------
        denoise : callable
            ``denoise(x_t, t, *condition)`` returns what `target` is, e.g. a `Denoiser`.
        latents : Tensor of float32, shape (B, C, h, w)
        draws : Draws
            See `draw`.
        *condition
            Passed on to `denoise`: votes, and weights.

        Returns
        -------
        Loss
            Not averaged, with the times, so that the loss can be followed by noise level.
        """
        t, noise = draws
        prediction = denoise(self.add_noise(latents, noise, t), t, *condition)
        # In float32 whatever the network computes in: bfloat16 squares lose the third digit.
        error = prediction.float() - self.target(latents, noise, t).float()
        return Loss(self.weight(t) * error.square().flatten(1).mean(dim=1), t)

    @abstractmethod
    def times(self, quantiles: Tensor) -> Tensor:
        """Return the times at which the distribution that training draws from has these quantiles."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t [B, C, h, w] of latents x_0, noise, and times [B]."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the denoiser is to predict, [B, C, h, w]."""

    @abstractmethod
    def weight(self, t: Tensor) -> Tensor:
        """Return the weight [B] of each squared error."""

    @abstractmethod
    def scheduler(self) -> Any:
        """Return the diffusers scheduler that a model trained so is saved with.

        Its config in the model folder says what the network predicts and on which schedule; sampling
        and `Denoiser` know it from there alone.
        """


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Flow matching (Lipman et al. 2023) along straight paths (rectified flow, Liu et al. 2023).

    .. math::

        x_t = (1 - t)\\, x_0 + t\\, \\epsilon, \\qquad v = \\frac{d x_t}{d t} = \\epsilon - x_0, \\qquad
        L = \\lVert \\hat v(x_t, t) - v \\rVert^2

    Times are logit-normal (Esser et al. 2024, eq. 19): :math:`t = \\sigma(m + s z)`, :math:`z \\sim N(0, 1)`.

    Attributes
    ----------
    logit_mean : float
        m; above 0 spends more of the training on noisy images, where shape and brightness are decided.
    logit_std : float
        s; the larger, the more the two ends are seen.
    sampling_shift : float
        :math:`\\alpha` of the times at which sampling looks, :math:`\\alpha t / (1 + (\\alpha - 1)\\, t)` for
        equally spaced t (Esser et al. 2024, eq. 23). A galaxy's brightness is a mean over many pixels, and
        settled while each of them is still mostly noise: with equal steps, 1, painted galaxies were 19% too
        faint in the mean, and at 6 and above 4%.
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0
    sampling_shift: float = 6.0

    def __post_init__(self) -> None:
        if not self.logit_std > 0:
            raise ConfigError(f"logit_std={self.logit_std} must be above 0: it is a standard deviation.")
        if not self.sampling_shift > 0:
            raise ConfigError(f"sampling_shift={self.sampling_shift} must be above 0; 1 leaves steps equal.")

    def times(self, quantiles: Tensor) -> Tensor:
        z = torch.special.ndtri(quantiles.clamp(1e-7, 1 - 1e-7))
        return torch.sigmoid(self.logit_mean + self.logit_std * z)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1)
        return (1.0 - t) * latents + t * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:  # noqa: ARG002
        return noise - latents

    def weight(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def scheduler(self) -> Any:
        return UniPCMultistepScheduler(
            num_train_timesteps=TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=self.sampling_shift,
        )


@dataclass(frozen=True)
class Diffusion(Objective):
    """Diffusion in 1000 steps (DDPM, Ho et al. 2020) on the schedule of Stable Diffusion.

    .. math::

        x_t = \\sqrt{\\bar\\alpha_t}\\, x_0 + \\sqrt{1 - \\bar\\alpha_t}\\, \\epsilon, \\qquad
        L = w_t \\lVert \\hat y(x_t, t) - y \\rVert^2

    where y is the noise :math:`\\epsilon`, or the velocity
    :math:`\\sqrt{\\bar\\alpha_t}\\, \\epsilon - \\sqrt{1 - \\bar\\alpha_t}\\, x_0` (Salimans & Ho 2022,
    arXiv:2202.00512). A time t is a timestep divided by 1000.

    Attributes
    ----------
    prediction : str
        ``v_prediction``, or ``epsilon`` as Stable Diffusion 1.5 was trained.
    zero_terminal_snr : bool
        Rescale the schedule so that nothing is left of the galaxy at the last timestep
        (Lin et al. 2024, algorithm 1). Not with ``epsilon``: of pure noise, that tells nothing.
    min_snr_gamma : float
        :math:`\\gamma` of Min-SNR weighting (Hang et al. 2023, arXiv:2303.09556); 0 for none.
    """

    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    zero_terminal_snr: bool = True
    min_snr_gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.prediction not in ("v_prediction", "epsilon"):
            raise ConfigError(f"prediction={self.prediction!r} must be 'v_prediction' or 'epsilon'.")
        if self.prediction == "epsilon" and self.zero_terminal_snr:
            raise ConfigError(
                "prediction='epsilon' says nothing about the galaxy where there is only noise. "
                "Choose v_prediction, or turn zero_terminal_snr off."
            )
        if self.min_snr_gamma != 0 and not 1 <= self.min_snr_gamma < float("inf"):
            raise ConfigError(
                f"min_snr_gamma={self.min_snr_gamma} must be 1 or more (5 is usual), or 0 for none."
            )

    @cached_property
    def _schedule(self) -> Any:  # a DDPMScheduler; its annotations ask for int32 timesteps
        return DDPMScheduler(
            num_train_timesteps=TIMESTEPS,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=self.prediction,
            rescale_betas_zero_snr=self.zero_terminal_snr,
            # Sampling must begin at the very last timestep: the only one without signal.
            timestep_spacing="trailing",
            clip_sample=False,
        )

    def times(self, quantiles: Tensor) -> Tensor:
        return (quantiles * TIMESTEPS).floor() / TIMESTEPS

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self._schedule.add_noise(latents, noise, _timestep(t))

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "epsilon":
            return noise
        return self._schedule.get_velocity(latents, noise, _timestep(t))

    def weight(self, t: Tensor) -> Tensor:
        """Return the Min-SNR weight [B] of each squared error.

        Notes
        -----
        For a prediction of x_0 it is :math:`\\min(\\mathrm{SNR}, \\gamma)`; in the error of the noise
        that is divided by SNR, in that of the velocity by SNR + 1 (Hang et al. 2023, section 3.4). At zero
        terminal SNR this would leave the last timestep, where brightness is decided, untrained: SNR is
        then taken to be at least 1, as in the truncated weighting of Salimans & Ho (2022, section 4).
        """
        if not self.min_snr_gamma:
            return torch.ones_like(t)
        snr = compute_snr(self._schedule, _timestep(t))
        capped = snr.clamp(1.0 if self.zero_terminal_snr else 0.0, self.min_snr_gamma)
        return capped / (snr if self.prediction == "epsilon" else snr + 1)

    def scheduler(self) -> Any:
        return UniPCMultistepScheduler.from_config(self._schedule.config)


PAPER = Diffusion(prediction="epsilon", zero_terminal_snr=False, min_snr_gamma=0.0)
"""How GalaxySD was trained (Ma et al. 2026, arXiv:2506.16233): as Stable Diffusion 1.5 was."""


def _timestep(t: Tensor) -> Tensor:
    return (t * TIMESTEPS).round().long()
