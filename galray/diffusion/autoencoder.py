"""Latents of a learned autoencoder, such as Stable Diffusion's, as a codec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from galray.core.errors import ConfigError
from galray.core.schema import fingerprint
from galray.diffusion.codec import RGB, channel_statistics, oriented, to_float

CACHED_ORIENTATIONS = (1, 2, 4, 8)


class AutoencoderCodec(ModelMixin, ConfigMixin):
    """The latents of a diffusers ``AutoencoderKL``, frozen, at zero mean and unit variance.

    What is cached of a galaxy is its posterior, mean and deviation, so that each epoch samples it anew. A
    learned encoder does not commute with turning the image, so each orientation is encoded by itself.

    Parameters
    ----------
    autoencoder_config : dict
        Config of the ``AutoencoderKL``; see `from_autoencoder` for one that exists.
    size_px : int
        Height and width of the images.
    orientations : int
        How many of the square's 8 orientations are cached, see `codec.oriented`: 1, 2 (mirrored), 4 (mirrored
        both ways) or 8 (and turned). The cache grows in proportion.
    detail_std : float
        Deviation of the latents on small scales; see `denoiser.preconditioning`.

    Attributes
    ----------
    mean, std : Tensor of float32, shape (1, C, 1, 1)
        Of the latents' channels. Those of the autoencoder's config at first (``scaling_factor``, for Stable
        Diffusion 0.18215), which its own denoiser was trained with; `fit_statistics` for a new denoiser.

    Raises
    ------
    ConfigError
        `size_px` is no multiple of the autoencoder's factor, the autoencoder is not for RGB, or an option is
        out of range.
    """

    mean: Tensor
    std: Tensor
    cached_dtype = torch.float16  # its 11 bits of precision are far below the posterior's own deviation

    @register_to_config
    def __init__(
        self, autoencoder_config: dict[str, Any], size_px: int, orientations: int = 1, detail_std: float = 1.0
    ) -> None:
        super().__init__()
        if orientations not in CACHED_ORIENTATIONS:
            raise ConfigError(f"orientations={orientations} must be one of {CACHED_ORIENTATIONS}.")
        if not detail_std > 0:
            raise ConfigError(f"detail_std={detail_std} must be above 0: it is a standard deviation.")
        self.autoencoder = AutoencoderKL(**autoencoder_config).requires_grad_(False).eval()
        self.size_px, self.orientations, self.detail_std = size_px, orientations, detail_std
        self._check_autoencoder()
        config = self.autoencoder.config
        self.register_buffer("mean", torch.full(self._per_channel, float(config["shift_factor"] or 0.0)))
        self.register_buffer("std", torch.full(self._per_channel, 1.0 / config["scaling_factor"]))

    def _check_autoencoder(self) -> None:
        if (self.autoencoder.config["in_channels"], self.autoencoder.config["out_channels"]) != (RGB, RGB):
            raise ConfigError("The autoencoder is not for RGB images. Choose one of 3 channels in and out.")
        if self.size_px < 1 or self.size_px % self.factor:
            raise ConfigError(
                f"size_px={self.size_px} is no multiple of {self.factor}, by which the autoencoder shrinks."
            )

    @classmethod
    def from_autoencoder(cls, autoencoder: AutoencoderKL, *, size_px: int, orientations: int = 1) -> Self:
        """Return a codec around an autoencoder, which is shared, not copied, and frozen."""
        config = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
        codec = cls(config, size_px, orientations)
        codec.autoencoder = autoencoder.requires_grad_(False).eval()
        return codec

    @property
    def factor(self) -> int:
        """Pixels on a side of the image for one of the latents."""
        return 2 ** (len(self.autoencoder.config["block_out_channels"]) - 1)

    @property
    def _per_channel(self) -> tuple[int, int, int, int]:
        return 1, self.autoencoder.config["latent_channels"], 1, 1

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one image."""
        side = self.size_px // self.factor
        return self.autoencoder.config["latent_channels"], side, side

    @property
    def cached_shape(self) -> tuple[int, ...]:
        """(K, 2, C, h, w): mean and deviation of the posterior in each of K orientations."""
        return self.orientations, 2, *self.latent_shape

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits: codecs that share them prepare the same cache.

        Weights and config count, the statistics do not.
        """
        weights = hashlib.sha256()
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            weights.update(name.encode())
            weights.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
        config = json.dumps(self.config["autoencoder_config"], sort_keys=True)
        return fingerprint(f"{type(self).__name__} {self.cached_shape} {config} {weights.hexdigest()}")

    @torch.no_grad()
    def prepare(self, images: Tensor) -> Tensor:
        """Encode each orientation of images uint8 [B, H, W, 3].

        Returns
        -------
        Tensor of float16, shape (B, K, 2, C, h, w)
            Mean and standard deviation of the posterior, unscaled.

        Raises
        ------
        InputError
            The images are not `size_px` on a side.
        """
        posteriors = [
            self._posterior(oriented(images, torch.full((len(images),), k))) for k in range(self.orientations)
        ]
        return torch.stack(posteriors, dim=1).to(self.cached_dtype)

    def _posterior(self, images: Tensor) -> Tensor:
        """Return mean and deviation [B, 2, C, h, w] of uint8 [B, H, W, 3] or float [B, 3, H, W]."""
        pixels = to_float(images, self.size_px).to(self.autoencoder.dtype)
        posterior = self.autoencoder.encode(pixels, return_dict=False)[0]
        return torch.stack([posterior.mean, posterior.std], dim=1)

    def fit_statistics(self, prepared: Iterable[Tensor]) -> Self:
        """Take mean and deviation of each channel from batches of `prepare`; returns the codec itself.

        Raises
        ------
        EmptyInputError
            There is no galaxy at all.
        """
        mean, std = channel_statistics(_two_points(batch) for batch in prepared)
        self.mean.copy_(mean)
        self.std.copy_(std)
        return self

    def latents(self, cached: Tensor, orientation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return latents float32 [B, C, h, w] sampled from cached posteriors.

        Parameters
        ----------
        cached : Tensor of float16, shape (B, K, 2, C, h, w)
        orientation : Tensor of int64, shape (B,)
            Which of the K orientations to take, see `codec.oriented`; modulo K.
        noise : Tensor of float32, shape (B, C, h, w), optional
            Standard normal. Default: the mean of the posterior.
        """
        galaxy = torch.arange(len(cached), device=cached.device)
        chosen = cached[galaxy, orientation.to(cached.device) % self.orientations].float()
        mean, std = chosen.unbind(dim=1)
        sampled = mean if noise is None else mean + std * noise
        return (sampled - self.mean) / self.std

    def encode(self, images: Tensor) -> Tensor:
        """Return the posterior's mean as latents [B, C, h, w] of uint8 [B, H, W, 3] or float [B, 3, H, W].

        Raises
        ------
        InputError
            The images are not `size_px` on a side.
        """
        return (self._posterior(images)[:, 0].float() - self.mean) / self.std

    def decode(self, latents: Tensor) -> Tensor:
        """Return images float32 [B, 3, H, W], about [-1, 1] and not clipped."""
        unscaled: Any = (latents.float() * self.std + self.mean).to(self.autoencoder.dtype)
        return self.autoencoder.decode(unscaled, return_dict=False)[0].float()


def _two_points(prepared: Tensor) -> Tensor:
    """Return [2BK, C, h, w]: for each posterior, two latents that share its mean and variance."""
    mean, std = prepared.flatten(0, 1).float().unbind(dim=1)
    return torch.cat([mean + std, mean - std])
