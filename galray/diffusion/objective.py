"""What the denoiser learns: flow matching along straight paths from galaxies to noise.

Time runs from t = 0, a galaxy, to t = 1, pure noise with exactly no signal left. A schedule that
keeps a trace of signal at its end teaches the network to read brightness off that trace, which
is missing when sampling starts from pure noise (Lin et al. 2024, arXiv:2305.08891).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from galray.core.errors import ConfigError


class Loss(NamedTuple):
    """`per_galaxy` float32 [B], to be averaged; `t` float32 [B], the noise level each was seen at."""

    per_galaxy: Tensor
    t: Tensor


@dataclass(frozen=True)
class FlowMatching:
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
    """

    logit_mean: float = 0.0
    logit_std: float = 1.0

    def __post_init__(self) -> None:
        if not self.logit_std > 0:
            raise ConfigError(f"logit_std={self.logit_std} must be above 0: it is a standard deviation.")

    def sample_times(
        self, count: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Return times float32 [count] in [0, 1], stratified over the batch.

        Notes
        -----
        One random offset shifts `count` equally spaced quantiles (Kingma et al. 2021, appendix I.1):
        each time is logit-normal, and a batch covers all noise levels, so that its loss is less noisy.
        """
        strata = torch.arange(count, dtype=torch.float64) / max(count, 1)
        quantiles = (strata + _draw(torch.rand, (1,), generator, "cpu").double()) % 1.0
        z = torch.special.ndtri(quantiles.clamp(1e-7, 1 - 1e-7))
        return torch.sigmoid(self.logit_mean + self.logit_std * z).float().to(device)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return x_t [B, C, h, w] of latents x_0, noise, and times [B]; exactly the noise at t = 1."""
        t = t.view(-1, 1, 1, 1)
        return (1.0 - t) * latents + t * noise

    def target(self, latents: Tensor, noise: Tensor) -> Tensor:
        """Return the velocity v = noise - latents that the denoiser is to predict."""
        return noise - latents

    def loss(
        self,
        denoise: Callable[..., Tensor],
        latents: Tensor,
        *condition: Any,
        generator: torch.Generator | None = None,
    ) -> Loss:
        """Return the squared error of one batch, galaxy by galaxy.

        Parameters
        ----------
        denoise : callable
            ``denoise(x_t, t, *condition)`` returns the predicted velocity, e.g. a `Denoiser`.
        latents : Tensor of float32, shape (B, C, h, w)
        *condition
            Passed on to `denoise`: votes, and weights.
        generator : torch.Generator, optional
            Draws times and noise; the same state gives the same loss.

        Returns
        -------
        Loss
            Not averaged, with the times, so that the loss can be followed by noise level.
        """
        t = self.sample_times(len(latents), generator, latents.device)
        noise = _draw(torch.randn, latents.shape, generator, latents.device)
        prediction = denoise(self.add_noise(latents, noise, t), t, *condition)
        # In float32 whatever the network computes in: bfloat16 squares lose the third digit.
        error = prediction.float() - self.target(latents, noise).float()
        return Loss(error.square().flatten(1).mean(dim=1), t)


def _draw(
    draw: Callable[..., Tensor],
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    device: torch.device | str,
) -> Tensor:
    """Draw where the generator lives, then move: a CPU generator gives the same numbers on any device."""
    source = generator.device if generator is not None else device
    return draw(shape, generator=generator, device=source).to(device)
