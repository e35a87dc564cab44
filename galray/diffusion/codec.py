"""Pixels to latents and back: the space in which the denoiser works.

Images are uint8 [B, H, W, 3]; as floats they are [B, 3, H, W] in [-1, 1]. Latents are float32
[B, C, h, w] of about zero mean and unit variance, which is what the noise levels of
`galray.diffusion.objective` are made for.

Training reads each galaxy many times and prepares it once: ``codec.prepare(images)`` is what a cache
holds, and ``codec.latents(cached, orientation, noise)`` is what a step asks of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from galray.core.errors import ConfigError, EmptyInputError, InputError
from galray.core.schema import fingerprint

RGB = 3
N_ORIENTATIONS = 8  # symmetries of the square
_HALVINGS = 30  # to a thousandth of a thousandth of a level


@runtime_checkable
class Codec(Protocol):
    """What training, sampling and the latent cache need of a codec.

    Attributes
    ----------
    size_px : int
        Height and width of the images.
    detail_std : float
        Deviation of the latents on small scales, at most 1.
    orientations : int
        How many orientations of a galaxy `latents` tells apart: draw from 0 to this, exclusive.
    cached_dtype : torch.dtype
        Type of what `prepare` returns.
    mean, std : Tensor of float32
        Statistics of the latents, which are brought to zero mean and unit variance.
    """

    size_px: int
    detail_std: float
    orientations: int
    cached_dtype: torch.dtype
    mean: Tensor
    std: Tensor

    def to(self, device: Any, /) -> Self:
        """Move the codec; as ``nn.Module.to``."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one image."""
        ...

    @property
    def cached_shape(self) -> tuple[int, ...]:
        """Shape of what `prepare` returns for one galaxy."""
        ...

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits: codecs that share them prepare the same cache.

        The statistics do not count, so that they can be fitted to the cache itself.
        """
        ...

    def prepare(self, images: Tensor) -> Tensor:
        """Images, uint8 [B, H, W, 3], to what is worth caching of them, [B, *cached_shape]."""
        ...

    def fit_statistics(self, prepared: Iterable[Tensor]) -> Self:
        """Take mean and deviation of the latents from batches of `prepare`; returns the codec itself."""
        ...

    def latents(self, cached: Tensor, orientation: Tensor, noise: Tensor | None = None) -> Tensor:
        """Cached galaxies to latents float32 [B, C, h, w], each in its orientation.

        `orientation` is int64 [B], see `oriented`; `noise`, standard normal float32 [B, C, h, w], samples the
        posterior of a learned encoder, and None takes its mean.
        """
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
    orientations = N_ORIENTATIONS  # turning pixels is exact and costs next to nothing
    cached_dtype = torch.uint8

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
        return cls(size_px, fold).fit_statistics(batches)

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

    @property
    def cached_shape(self) -> tuple[int, ...]:
        """(H, W, 3): the image itself is the smallest form of its latents."""
        return self.size_px, self.size_px, RGB

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits: codecs that share them prepare the same cache."""
        return fingerprint(f"{type(self).__name__} {self.cached_shape}")

    def prepare(self, images: Tensor) -> Tensor:
        """Return the images, uint8 [B, H, W, 3].

        Raises
        ------
        InputError
            The images are not uint8, or not `size_px` on a side.
        """
        to_float(images[:1], self.size_px)
        if images.dtype != torch.uint8:
            raise InputError(f"Pixels are cached as uint8 [B, H, W, 3] and came as {images.dtype}.")
        return images

    def fit_statistics(self, prepared: Iterable[Tensor]) -> Self:
        """Take mean and deviation of each colour from batches of images; returns the codec itself.

        Raises
        ------
        EmptyInputError
            There is no image at all.
        """
        mean, std = channel_statistics(to_float(batch) for batch in prepared)
        self.mean.copy_(mean)
        self.std.copy_(std)
        return self

    def latents(self, cached: Tensor, orientation: Tensor, noise: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return latents float32 [B, C, h, w] of images uint8 [B, H, W, 3], each turned as `oriented` does.

        Nothing is random about pixels: `noise` is ignored.
        """
        return self.encode(oriented(cached, orientation))

    def encode(self, images: Tensor) -> Tensor:
        """Return latents float32 [B, 3 fold^2, H/fold, W/fold] of uint8 [B, H, W, 3] or float [B, 3, H, W].

        Raises
        ------
        InputError
            The images are not `size_px` on a side.
        """
        return pixel_unshuffle((to_float(images, self.size_px) - self.mean) / self.std, self.fold)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images float32 [B, 3, H, W], about [-1, 1] and not clipped."""
        return pixel_shuffle(latents.float(), self.fold) * self.std + self.mean


def oriented(images: Tensor, orientation: Tensor) -> Tensor:
    """Return each image in one of the 8 orientations of the square; exact, whatever the type.

    Parameters
    ----------
    images : Tensor
        uint8 [B, H, W, 3], or floating-point [B, C, H, W]: images or latents; square.
    orientation : Tensor of int64, shape (B,)
        Bit 0 mirrors left and right, then bit 1 mirrors top and bottom, then bit 2 swaps rows and columns. 0
        leaves an image as it is; the first 1, 2, 4 and 8 numbers are each closed under composition.

    Returns
    -------
    Tensor
        Shape and type of `images`.

    Notes
    -----
    A survey has no up and no handedness: all 8 are equally likely galaxies.
    """
    rows, columns = (1, 2) if images.dtype == torch.uint8 else (2, 3)
    if images.shape[rows] != images.shape[columns]:
        raise InputError(f"Only square images have 8 orientations, and these are {tuple(images.shape)}.")
    bits = orientation.to(images.device).view(-1, 1, 1, 1)
    images = torch.where((bits & 1).bool(), images.flip(columns), images)
    images = torch.where((bits & 2).bool(), images.flip(rows), images)
    return torch.where((bits & 4).bool(), images.transpose(rows, columns), images)


def channel_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, float32 [1, C, 1, 1] each, of every channel of batches [B, C, h, w].

    Raises
    ------
    EmptyInputError
        There is nothing in them.
    """
    count, total, total_of_squares = 0, torch.zeros(1).double(), torch.zeros(1).double()
    for batch in batches:
        values = batch.double()
        count += values.numel() // values.shape[1]
        total = total + values.sum(dim=(0, 2, 3)).cpu()
        total_of_squares = total_of_squares + values.square().sum(dim=(0, 2, 3)).cpu()
    if not count:
        raise EmptyInputError("No image to fit the codec's statistics to: is the training split empty?")
    mean = total / count
    std = (total_of_squares / count - mean.square()).clamp_min(0.0).sqrt()
    # Blank images only (all one colour) have no deviation to scale by.
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    return mean.float().view(1, -1, 1, 1), std.float().view(1, -1, 1, 1)


def to_float(images: Tensor, size_px: int | None = None) -> Tensor:
    """Return float32 [B, 3, H, W] in [-1, 1] of uint8 [B, H, W, 3]; floats pass unchanged.

    Raises
    ------
    InputError
        The tensor has not four axes, is neither uint8 nor floating-point, or is not of RGB images
        `size_px` on a side, if that is given.
    """
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(
            "Images must be uint8 [B, H, W, 3] or float [B, 3, H, W], "
            f"not {images.dtype} {tuple(images.shape)}."
        )
    pixels = images
    if images.dtype == torch.uint8:
        pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    if size_px and tuple(pixels.shape[1:]) != (RGB, size_px, size_px):
        raise InputError(
            f"The codec is for RGB images of {size_px} x {size_px} px and got a batch of shape "
            f"{tuple(images.shape)}. Resize the images, or choose a preset of their size."
        )
    return pixels.float()


def to_uint8(pixels: Tensor) -> Tensor:
    """Return uint8 [B, H, W, 3] of float [B, 3, H, W]; the inverse of `to_float`, see `within_range`."""
    levels = ((within_range(pixels.float()) + 1.0) * 127.5).round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def within_range(pixels: Tensor) -> Tensor:
    """Return the nearest image within [-1, 1] that has as much light in each of its colours.

    Of all y within bounds and with the sum of x, the one that is nearest to x by least squares is
    ``clip(x - c)``, with one c for all pixels. To clip x itself makes faint galaxies brighter: a sky close to
    black has noise beyond it on one side alone.

    Parameters
    ----------
    pixels : Tensor of float32, shape (B, C, H, W)
        Within bounds already, they are returned as they are, but for rounding.
    """
    places = (-2, -1)
    light = pixels.mean(places, keepdim=True).clamp(-1, 1)
    low, high = pixels.amin(places, keepdim=True) - 1, pixels.amax(places, keepdim=True) + 1
    for _ in range(_HALVINGS):  # the light that is left falls as c rises
        c = (low + high) / 2
        bright = (pixels - c).clamp(-1, 1).mean(places, keepdim=True) > light
        low, high = torch.where(bright, c, low), torch.where(bright, high, c)
    return (pixels - (low + high) / 2).clamp(-1, 1)
