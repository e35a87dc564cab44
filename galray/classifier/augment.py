"""How training images are varied: galaxies have no up or down, nor an exact place or size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from galray.core.config import require


@dataclass(frozen=True)
class Augmentation:
    """Turns, mirror images, shifts and zooms, all in one resampling."""

    rotation: Literal["any", "quarter", "none"] = "any"
    """Angles that images are turned by; quarter turns move pixels and blend none."""
    flip: bool = True
    max_shift: float = 0.05
    """Largest shift along each axis, as a share of the image's side."""
    max_zoom: float = 1.1
    """Largest factor that sizes grow or shrink by; 1 keeps them."""

    def __post_init__(self) -> None:
        require(
            0 <= self.max_shift < 0.5, f"--augmentation.max-shift {self.max_shift} is not within 0 and 0.5."
        )
        require(1 <= self.max_zoom <= 2, f"--augmentation.max-zoom {self.max_zoom} is not within 1 and 2.")

    @property
    def varies(self) -> bool:
        """Whether it changes images at all."""
        return self != NONE

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw an affine map for each image.

        Parameters
        ----------
        count : int
        generator : torch.Generator
            On the CPU: the same state gives the same maps for every device.

        Returns
        -------
        Tensor of float32, shape (count, 2, 3)
            From the place of a pixel to where it is taken from, in units of half the image's side, as
            `torch.nn.functional.affine_grid` has it.
        """
        uniform = torch.rand(count, 5, generator=generator)
        angle = self._angle(uniform[:, 0])
        mirror = torch.where(uniform[:, 1] < 0.5, -1.0, 1.0) if self.flip else torch.ones(count)
        scale = self.max_zoom ** (2 * uniform[:, 2] - 1)
        shift = 2 * self.max_shift * (2 * uniform[:, 3:] - 1)
        cosine, sine = angle.cos() * scale, angle.sin() * scale
        rows = [cosine * mirror, -sine, shift[:, 0], sine * mirror, cosine, shift[:, 1]]
        return torch.stack(rows, dim=1).view(count, 2, 3)

    def _angle(self, uniform: Tensor) -> Tensor:
        if self.rotation == "any":
            return uniform * (2 * math.pi)
        turns = (uniform * 4).floor() if self.rotation == "quarter" else torch.zeros_like(uniform)
        return turns * (math.pi / 2)


NONE = Augmentation("none", False, 0.0, 1.0)


def resample(images: Tensor, maps: Tensor) -> Tensor:
    """Return images resampled along affine maps, bilinearly.

    Parameters
    ----------
    images : Tensor of uint8, shape (B, H, W, C)
    maps : Tensor of float32, shape (B, 2, 3)
        See `Augmentation.draw`.

    Returns
    -------
    Tensor of uint8, shape (B, H, W, C)
        On the same device; what moves in is the mirror image of the edge.
    """
    pixels = images.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(maps.to(images.device), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # in the order that images come in: the network's convolutions are fastest so
    return moved.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
