"""Cutouts of many sources from one three-band FITS tile, through its WCS.

A tile is opened once; its pixels stay as FITS has them (first row at the bottom). A cutout of
`size_px` pixels is centred on its source: the source falls on pixel coordinate
``((size_px - 1) / 2, (size_px - 1) / 2)``, the middle of the four central pixels of an even cutout.
Tiles are shifted by the fraction of a pixel that this takes with a cubic spline. A shift by a spline is
a convolution along each axis (Unser, Aldroubi & Eden 1993, IEEE Trans. Signal Processing 41, 821), which
is done as products of small matrices, for many cutouts at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS

from galray.core.schema import CUTOUT_FLAGS
from galray.data.images import BANDS

EDGE = CUTOUT_FLAGS["edge"]
BAD_PIXELS = CUTOUT_FLAGS["bad_pixels"]
SATURATED = CUTOUT_FLAGS["saturated"]

# Coadds and reprojections mark sky they never saw with exact zeros; scattered zeros are just faint sky.
BLANK_SHARE = 0.01

# A spline's value depends on pixels this near to better than 1e-4 of a pixel's flux.
_SPLINE_REACH_PX = 8
_SPLINE_POLE = np.sqrt(3) - 2
_PIXELS_AT_ONCE = 1 << 18


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
    saturation : tuple of float
        Flux of each band from which on a pixel is saturated; infinite where unknown.
    """

    data: np.ndarray
    wcs: WCS
    name: str
    saturation: tuple[float, ...] = (np.inf,) * len(BANDS)


@dataclass(frozen=True)
class Cutouts:
    """Cutouts of n sources.

    Attributes
    ----------
    gri : ndarray of float32, shape (n, 3, size_px, size_px)
        Zero where the tile has no pixel, or a bad one.
    flags : ndarray of int32, shape (n,)
        Bits of ``schema.CUTOUT_FLAGS``: EDGE where padded, BAD_PIXELS where pixels were filled,
        SATURATED where a pixel of any band is.
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
    inside = _overlaps(tile, x_px, y_px, size_px)
    for rows in few_at_once(np.flatnonzero(inside), size_px):
        gri[rows], flags[rows] = _cut_few(tile, x_px[rows], y_px[rows], size_px)
    return Cutouts(gri=gri, flags=flags, inside=inside)


def sample_squares(flux: np.ndarray, x_px: np.ndarray, y_px: np.ndarray, size_px: int) -> np.ndarray:
    """Interpolate squares of pixels, each centred on a position, with cubic splines.

    Parameters
    ----------
    flux : ndarray of float32, shape (3, H, W)
    x_px, y_px : ndarray of float64, shape (n,)
        The centres, in pixels counted from the middle of the first.
    size_px : int

    Returns
    -------
    ndarray of float32, shape (n, 3, size_px, size_px)
        Bad pixels count as zero; beyond the edges the image goes on as its mirror image.
    """
    bottom, left = (centre - (size_px - 1) / 2 for centre in (y_px, x_px))
    y, x = (np.floor(corner).astype(int) - _SPLINE_REACH_PX + 1 for corner in (bottom, left))
    patches = _squares(flux, y, x, size_px + 2 * _SPLINE_REACH_PX - 1)
    np.copyto(patches, 0, where=~np.isfinite(patches))
    across, along = (_shifts(corner % 1, size_px)[:, None] for corner in (bottom, left))
    return across @ patches @ along.swapaxes(-1, -2)


def spline_weights(shift_px: np.ndarray) -> np.ndarray:
    """Return the weights with which pixels make up the value between two of them.

    Parameters
    ----------
    shift_px : ndarray of float64, shape (n,)
        How far beyond a pixel, in [0, 1).

    Returns
    -------
    ndarray of float32, shape (n, 16)
        Of the pixels from 7 before that pixel to 8 after it; they sum to 1.

    Notes
    -----
    The cubic B-spline, sampled, convolved with the inverse of the filter that it is at whole pixels,
    ``sqrt(3) z**abs(k)`` with the pole ``z = sqrt(3) - 2``.
    """
    pixel = np.arange(1 - _SPLINE_REACH_PX, _SPLINE_REACH_PX + 1)
    knot = np.arange(-1, 3)
    inverse = _SPLINE_POLE ** np.abs(pixel[:, None] - knot)
    weights = _b_spline(shift_px[:, None] - knot) @ inverse.T
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _b_spline(x: np.ndarray) -> np.ndarray:
    """Return the cubic B-spline at `x`."""
    x = np.abs(x)
    near, far = 2 / 3 - x**2 + x**3 / 2, np.clip(2 - x, 0, None) ** 3 / 6
    return np.where(x < 1, near, far)


def _shifts(shift_px: np.ndarray, size_px: int) -> np.ndarray:
    """Return the matrices that shift lines of pixels; float32, shape (n, size_px, size_px + 15)."""
    weights = spline_weights(shift_px)
    matrices = np.zeros((len(weights), size_px, size_px + weights.shape[1] - 1), np.float32)
    row = np.arange(size_px)[:, None]
    matrices[:, row, row + np.arange(weights.shape[1])] = weights[:, None]
    return matrices


def pixel_positions(wcs: WCS, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel positions; NaN where a position is missing, or behind the tangent plane."""
    x_px, y_px = wcs.all_world2pix(np.asarray(ra_deg, float), np.asarray(dec_deg, float), 0, quiet=True)
    ra_back, dec_back = wcs.all_pix2world(x_px, y_px, 0)
    # The gnomonic projection maps the far side of the sky onto the tile too: a position must come back.
    apart = np.hypot((ra_back - ra_deg + 180) % 360 - 180, dec_back - dec_deg)
    lost = ~(apart < 0.1)
    return np.where(lost, np.nan, x_px), np.where(lost, np.nan, y_px)


def _overlaps(tile: Tile, x_px: np.ndarray, y_px: np.ndarray, size_px: int) -> np.ndarray:
    """Say which squares have a pixel on the tile; false where the position is not known."""
    height, width = tile.data.shape[1:]
    half = size_px / 2
    on_rows = (-half < y_px + 0.5) & (y_px + 0.5 < height + half)
    return on_rows & (-half < x_px + 0.5) & (x_px + 0.5 < width + half)


def few_at_once(rows: np.ndarray, size_px: int) -> Iterator[np.ndarray]:
    """Yield rows in groups whose cutouts are few enough to stay in the processor's caches."""
    count = max(_PIXELS_AT_ONCE // (len(BANDS) * (size_px + 2 * _SPLINE_REACH_PX) ** 2), 1)
    yield from (rows[i : i + count] for i in range(0, len(rows), count))


def _cut_few(tile: Tile, x_px: np.ndarray, y_px: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Return some cutouts, shape (n, 3, size_px, size_px), and their flags."""
    y, x = (np.rint(centre - (size_px - 1) / 2).astype(int) for centre in (y_px, x_px))
    height, width = tile.data.shape[1:]
    on_tile = _within(y, size_px, height)[:, :, None] & _within(x, size_px, width)[:, None, :]
    nearest = _squares(tile.data, y, x, size_px)
    finite = np.isfinite(nearest).all(axis=1)
    blank = ((nearest == 0) & on_tile[:, None]).mean(axis=(2, 3)) > BLANK_SHARE
    bad = (on_tile & ~finite).any(axis=(1, 2)) | blank.any(axis=1)
    limit = np.array(tile.saturation, np.float32)[:, None, None]
    saturated = ((nearest >= limit) & on_tile[:, None]).any(axis=(1, 2, 3))
    edge = ~on_tile.all(axis=(1, 2))
    gri = sample_squares(tile.data, x_px, y_px, size_px)
    gri *= (finite & on_tile)[:, None]
    return gri, edge * EDGE | bad * BAD_PIXELS | saturated * SATURATED


def _within(first: np.ndarray, size_px: int, length: int) -> np.ndarray:
    """Say which pixels of lines lie within 0 and `length`; bool, shape (n, size_px)."""
    pixel = first[:, None] + np.arange(size_px)
    return (pixel >= 0) & (pixel < length)


def _squares(planes: np.ndarray, y: np.ndarray, x: np.ndarray, size_px: int) -> np.ndarray:
    """Return squares of `planes`, shape (k, H, W), by their lowest corners; shape (n, k, side, side).

    One after the other: lines of pixels are copied ten times as fast as pixels are gathered.
    """
    squares = np.empty((len(y), len(planes), size_px, size_px), planes.dtype)
    height, width = planes.shape[1:]
    side = np.arange(size_px)
    for square, bottom, left in zip(squares, y.tolist(), x.tolist(), strict=True):
        if 0 <= bottom <= height - size_px and 0 <= left <= width - size_px:
            square[:] = planes[:, bottom : bottom + size_px, left : left + size_px]
        else:
            rows, columns = _mirrored(bottom + side, height), _mirrored(left + side, width)
            square[:] = planes[:, rows[:, None], columns]
    return squares


def _mirrored(pixel: np.ndarray, length: int) -> np.ndarray:
    """Fold pixels beyond the edges back, the edge pixel itself not doubled."""
    period = max(2 * (length - 1), 1)
    pixel = np.abs(pixel) % period
    return np.minimum(pixel, period - pixel) if length > 1 else np.zeros_like(pixel)
