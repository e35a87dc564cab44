"""Pixels to latents and back: the space in which the denoiser works.

Images are uint8 [B, H, W, 3]; as floats they are [B, 3, H, W] in [-1, 1]. Latents are float32
[B, C, h, w] of about zero mean and unit variance, which is what the noise levels of
`galray.diffusion.objective` are made for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from galray.core.errors import ConfigError, EmptyInputError, InputError

RGB = 3


@runtime_checkable
class Codec(Protocol):
    """What the denoiser needs of a codec.

    Attributes
    ----------
    detail_std : float
        Deviation of the latents on small scales, at most 1.
    """

    detail_std: float

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one image."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images, uint8 [B, H, W, 3] or float [B, 3, H, W] in [-1, 1], to latents float32 [B, C, h, w]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images, float32 [B, 3, H, W], about [-1, 1] and not clipped."""
        ...


class PixelCodec(ModelMixin, ConfigMixin):
    """Fold each block of ``fold x fold`` pixels into channels; exact both ways.

    The denoiser then works at ``1/fold`` of the resolution, which is what makes it affordable on a
    CPU, and nothing is lost, as it would be in a learned autoencoder.

    Parameters
    ----------
    size_px : int
        Height and width of the images.
    fold : int
        Side of the block; 1 leaves pixels as they are.
    detail_std : float
        Deviation of the latents on small scales. Most of an image is empty sky, so it is well below
        the 1 that the few bright pixels make of the whole; see `denoiser.preconditioning`.

    Attributes
    ----------
    mean, std : Tensor of float32, shape (1, 3, 1, 1)
        Of each colour in [-1, 1] over the training set; saved with the weights. Galaxies are bright
        specks on black sky: unscaled, the latents' mean is about -0.9 and their deviation 0.2, and
        nearly all noise levels would drown them. See `fit`.

    Raises
    ------
    ConfigError
        `size_px` is no multiple of `fold`, or `detail_std` is not positive.
    """

    mean: Tensor
    std: Tensor

    @register_to_config
    def __init__(self, size_px: int = 64, fold: int = 2, detail_std: float = 0.25) -> None:
        super().__init__()
        if fold < 1 or size_px < 1 or size_px % fold:
            raise ConfigError(
                f"size_px={size_px} is no multiple of fold={fold}. Choose a fold that divides it."
            )
        if not detail_std > 0:
            raise ConfigError(f"detail_std={detail_std} must be above 0: it is a standard deviation.")
        self.size_px, self.fold, self.detail_std = size_px, fold, detail_std
        self.register_buffer("mean", torch.zeros(1, RGB, 1, 1))
        self.register_buffer("std", torch.ones(1, RGB, 1, 1))

    @classmethod
    def fit(cls, batches: Iterable[Tensor], *, size_px: int, fold: int) -> Self:
        """Return a codec with the mean and deviation of the given images.

        Parameters
        ----------
        batches : iterable of Tensor
            uint8 [B, H, W, 3] or float [B, 3, H, W]; a few thousand images settle both numbers to 1%.
        size_px, fold : int

        Raises
        ------
        EmptyInputError
            There is no image at all.
        """
        count, total, total_of_squares = 0, torch.zeros(RGB).double(), torch.zeros(RGB).double()
        for batch in batches:
            pixels = to_float(batch).double()
            count += pixels.numel() // RGB
            total += pixels.sum(dim=(0, 2, 3)).cpu()
            total_of_squares += pixels.square().sum(dim=(0, 2, 3)).cpu()
        if not count:
            raise EmptyInputError("No image to fit the codec's statistics to: is the training split empty?")
        mean = total / count
        std = (total_of_squares / count - mean.square()).clamp_min(0.0).sqrt()
        # Blank images only (all one colour) have no deviation to scale by.
        std = torch.where(std > 1e-6, std, torch.ones_like(std))
        return cls.from_statistics(mean.tolist(), std.tolist(), size_px=size_px, fold=fold)

    @classmethod
    def from_statistics(cls, mean: Sequence[float], std: Sequence[float], *, size_px: int, fold: int) -> Self:
        """Return a codec with known mean and deviation of each of the 3 colours in [-1, 1].

        Raises
        ------
        ConfigError
            Not 3 numbers each, or a deviation that is not positive.
        """
        if len(mean) != RGB or len(std) != RGB or min(std) <= 0:
            raise ConfigError(f"mean={mean} and std={std} must have 3 numbers each, the deviations above 0.")
        codec = cls(size_px, fold)
        codec.mean.copy_(torch.tensor(mean).view(1, RGB, 1, 1))
        codec.std.copy_(torch.tensor(std).view(1, RGB, 1, 1))
        return codec

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one image."""
        side = self.size_px // self.fold
        return RGB * self.fold**2, side, side

    def encode(self, images: Tensor) -> Tensor:
        """Return latents float32 [B, 3 fold^2, H/fold, W/fold] of uint8 [B, H, W, 3] or float [B, 3, H, W].

        Raises
        ------
        InputError
            The images are not `size_px` on a side.
        """
        pixels = to_float(images)
        if tuple(pixels.shape[1:]) != (RGB, self.size_px, self.size_px):
            raise InputError(
                f"The codec is for RGB images of {self.size_px} x {self.size_px} px and got a batch of shape "
                f"{tuple(images.shape)}. Resize the images, or choose a preset of their size."
            )
        return pixel_unshuffle((pixels - self.mean) / self.std, self.fold)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images float32 [B, 3, H, W], about [-1, 1] and not clipped."""
        return pixel_shuffle(latents.float(), self.fold) * self.std + self.mean


def to_float(images: Tensor) -> Tensor:
    """Return float32 [B, 3, H, W] in [-1, 1] of uint8 [B, H, W, 3]; floats pass unchanged.

    Raises
    ------
    InputError
        The tensor has not four axes, or is neither uint8 nor floating-point.
    """
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(
            "Images must be uint8 [B, H, W, 3] or float [B, 3, H, W], "
            f"not {images.dtype} {tuple(images.shape)}."
        )
    if images.dtype == torch.uint8:
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return images.float()


def to_uint8(pixels: Tensor) -> Tensor:
    """Return uint8 [B, H, W, 3] of float [B, 3, H, W] in [-1, 1], clipped; the inverse of `to_float`."""
    levels = ((pixels.float() + 1.0) * 127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
