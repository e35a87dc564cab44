"""Cutouts of many sources from one three-band FITS tile, through its WCS.

A tile is opened once; its pixels stay as FITS has them (first row at the bottom). A cutout of
`size_px` pixels is centred on its source: the source falls on pixel coordinate
``((size_px - 1) / 2, (size_px - 1) / 2)``, the middle of the four central pixels of an even cutout.
Tiles are shifted by the fraction of a pixel that this takes with a cubic spline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from astropy.wcs import WCS
from scipy import ndimage

from galray.core.schema import CUTOUT_FLAGS
from galray.data.images import BANDS

EDGE = CUTOUT_FLAGS["edge"]
BAD_PIXELS = CUTOUT_FLAGS["bad_pixels"]

# Coadds and reprojections mark sky they never saw with exact zeros; scattered zeros are just faint sky.
BLANK_SHARE = 0.01

SPLINE_ORDER = 3
# A spline's value depends on pixels this near to better than 1e-4 of a pixel's flux.
_SPLINE_REACH_PX = 8


@dataclass(frozen=True)
class Tile:
    """Three aligned bands of sky.

    Attributes
    ----------
    data : ndarray of float32, shape (3, H, W)
        Flux; the first row at the bottom. NaN where a pixel is bad.
    wcs : astropy.wcs.WCS
        Celestial, two axes.
    name : str
    """

    data: np.ndarray
    wcs: WCS
    name: str

    @cached_property
    def finite(self) -> np.ndarray:
        """Where a pixel is usable in every band; bool, shape (H, W)."""
        return np.logical_and.reduce(np.isfinite(self.data))

    @cached_property
    def spline(self) -> np.ndarray:
        """Cubic-spline coefficients of each band, bad pixels as zero; float32, shape (3, H, W)."""
        return spline_coefficients(np.where(np.isfinite(self.data), self.data, np.float32(0.0)))


@dataclass(frozen=True)
class Cutouts:
    """Cutouts of n sources.

    Attributes
    ----------
    gri : ndarray of float32, shape (n, 3, size_px, size_px)
        Zero where the tile has no pixel, or a bad one.
    flags : ndarray of int32, shape (n,)
        Bits of ``schema.CUTOUT_FLAGS``: EDGE where padded, BAD_PIXELS where pixels were filled.
    inside : ndarray of bool, shape (n,)
        False where no pixel of the cutout lies on the tile, or the position is not on its sky.
    """

    gri: np.ndarray
    flags: np.ndarray
    inside: np.ndarray


def cut(tile: Tile, ra_deg: np.ndarray, dec_deg: np.ndarray, size_px: int) -> Cutouts:
    """Cut a square around each source, at the tile's own pixel scale.

    Parameters
    ----------
    tile : Tile
    ra_deg, dec_deg : ndarray of float64, shape (n,)
        J2000 positions.
    size_px : int
        Side of the cutouts.

    Returns
    -------
    Cutouts
    """
    x_px, y_px = pixel_positions(tile.wcs, ra_deg, dec_deg)
    count = len(x_px)
    gri = np.zeros((count, len(BANDS), size_px, size_px), np.float32)
    flags = np.zeros(count, np.int32)
    inside = np.zeros(count, bool)
    for k in range(count):
        if _overlaps(tile, x_px[k], y_px[k], size_px):
            inside[k] = True
            flags[k] = _cut_one(tile, x_px[k], y_px[k], gri[k])
    return Cutouts(gri=gri, flags=flags, inside=inside)


def spline_coefficients(gri: np.ndarray) -> np.ndarray:
    """Return the cubic-spline coefficients of each band; float32, shape (3, H, W)."""
    return np.stack([ndimage.spline_filter(plane, SPLINE_ORDER, mode="mirror") for plane in gri]).astype(
        np.float32
    )


def sample_square(coefficients: np.ndarray, x_px: float, y_px: float, size_px: int) -> np.ndarray:
    """Interpolate a square of pixels centred on a position.

    Parameters
    ----------
    coefficients : ndarray of float32, shape (3, H, W)
        From `spline_coefficients`.
    x_px, y_px : float
        The centre, in pixels counted from the middle of the first.
    size_px : int

    Returns
    -------
    ndarray of float32, shape (3, size_px, size_px)
        Zero beyond the edges.
    """
    corner = (y_px - (size_px - 1) / 2, x_px - (size_px - 1) / 2)
    first = np.floor(corner).astype(int) - _SPLINE_REACH_PX
    offset: Any = np.asarray(corner) - first  # scipy's stubs know only a scalar
    patch = _padded(coefficients, first, size_px + 2 * _SPLINE_REACH_PX)
    return np.stack(
        [
            ndimage.affine_transform(
                plane,
                np.ones(2),
                offset,
                output_shape=(size_px, size_px),
                output=np.float32,
                order=SPLINE_ORDER,
                mode="constant",
                prefilter=False,
            )
            for plane in patch
        ]
    )


def pixel_positions(wcs: WCS, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel positions; NaN where a position is missing, or behind the tangent plane."""
    x_px, y_px = wcs.all_world2pix(np.asarray(ra_deg, float), np.asarray(dec_deg, float), 0, quiet=True)
    ra_back, dec_back = wcs.all_pix2world(x_px, y_px, 0)
    # The gnomonic projection maps the far side of the sky onto the tile too: a position must come back.
    apart = np.hypot((ra_back - ra_deg + 180) % 360 - 180, dec_back - dec_deg)
    lost = ~(apart < 0.1)
    return np.where(lost, np.nan, x_px), np.where(lost, np.nan, y_px)


def _overlaps(tile: Tile, x_px: float, y_px: float, size_px: int) -> bool:
    height, width = tile.data.shape[1:]
    half = size_px / 2
    return -half < x_px + 0.5 < width + half and -half < y_px + 0.5 < height + half


def _cut_one(tile: Tile, x_px: float, y_px: float, out: np.ndarray) -> int:
    """Write one cutout into `out`, shape (3, size_px, size_px); return its flags."""
    size_px = out.shape[-1]
    first = np.rint([y_px - (size_px - 1) / 2, x_px - (size_px - 1) / 2]).astype(int)
    on_tile = _padded(np.ones((1, *tile.finite.shape), bool), first, size_px)[0]
    finite = _padded(tile.finite[None], first, size_px)[0]
    blank = (_padded(tile.data, first, size_px) == 0) & on_tile
    out[:] = sample_square(tile.spline, x_px, y_px, size_px)
    out[:, ~finite] = 0.0
    is_bad = (on_tile & ~finite).any() or (blank.mean(axis=(1, 2)) > BLANK_SHARE).any()
    return (0 if on_tile.all() else EDGE) | (BAD_PIXELS if is_bad else 0)


def _padded(planes: np.ndarray, first: np.ndarray, size_px: int) -> np.ndarray:
    """Return the square of `planes`, shape (k, H, W), whose lowest corner is `first` (y, x); zeros beyond."""
    height, width = planes.shape[1:]
    top, left = np.maximum(first, 0)
    bottom, right = min(first[0] + size_px, height), min(first[1] + size_px, width)
    square = np.zeros((len(planes), size_px, size_px), planes.dtype)
    if top < bottom and left < right:
        square[:, top - first[0] : bottom - first[0], left - first[1] : right - first[1]] = planes[
            :, top:bottom, left:right
        ]
    return square
