"""Cutouts of many sources from one three-band FITS tile, through its WCS.

A tile is opened once; its pixels stay as FITS has them (first row at the bottom). A cutout of
`size_px` pixels is centred on its source: the source falls on pixel coordinate
``((size_px - 1) / 2, (size_px - 1) / 2)``, the middle of the four central pixels of an even cutout.
Tiles are shifted by the fraction of a pixel that this takes with a cubic spline.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import IO, Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS, FITSFixedWarning
from scipy import ndimage

from galray.core.errors import InputError
from galray.core.schema import CUTOUT_FLAGS
from galray.data.images import BANDS

EDGE = CUTOUT_FLAGS["edge"]
BAD_PIXELS = CUTOUT_FLAGS["bad_pixels"]

SAFE_TILE_PIXELS = 3 * 12_000 * 12_000
# Coadds and reprojections mark sky they never saw with exact zeros; scattered zeros are just faint sky.
BLANK_SHARE = 0.01

_SPLINE_ORDER = 3
# A spline's value depends on pixels this near to better than 1e-4 of a pixel's flux.
_SPLINE_REACH_PX = 8
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zlib.error, lzma.LZMAError)


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


def open_tile(source: bytes | IO[bytes], name: str, *, max_pixels: int = SAFE_TILE_PIXELS) -> Tile:
    """Read a three-band tile.

    Parameters
    ----------
    source : bytes or binary file
        FITS, also gzip, bzip2 or tile-compressed: one image HDU with three planes, or three
        image HDUs of one shape, named (EXTNAME, FILTER or BAND) or ordered g, r, i.
    name : str
        For messages and the catalogue.
    max_pixels : int
        A header that claims more, over all bands, is refused before any pixel is read.

    Returns
    -------
    Tile

    Raises
    ------
    InputError
        Where the file is not such a tile, is truncated, or claims too many pixels.
    """
    try:
        stream = _decompressed(BytesIO(source) if isinstance(source, bytes) else source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            warnings.simplefilter("ignore", fits.verify.VerifyWarning)
            warnings.filterwarnings("error", message=".*truncated.*", category=AstropyUserWarning)
            with fits.open(stream, memmap=False, lazy_load_hdus=True) as hdus:
                planes = _band_hdus(hdus, name, max_pixels)
                data = _stack(planes)
                wcs = WCS(planes[0].header, naxis=2)
    except AstropyUserWarning as error:
        raise InputError(f"tile {name} is truncated: {error}. Copy or download it again.") from error
    except _UNREADABLE as error:
        raise InputError(
            f"tile {name} cannot be read as FITS, or ends too early: {error}. Copy or download it again."
        ) from error
    if not wcs.has_celestial:
        raise InputError(f"tile {name} has no celestial WCS. Add CTYPE, CRVAL, CRPIX and CD to its header.")
    return Tile(data=data, wcs=wcs, name=name)


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
    x_px, y_px = _pixel_positions(tile.wcs, ra_deg, dec_deg)
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
    return np.stack([ndimage.spline_filter(plane, _SPLINE_ORDER, mode="mirror") for plane in gri]).astype(
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
                order=_SPLINE_ORDER,
                mode="constant",
                prefilter=False,
            )
            for plane in patch
        ]
    )


def _decompressed(stream: IO[bytes]) -> Any:
    magic = stream.read(3)
    stream.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.open(stream)
    return bz2.open(stream) if magic == b"BZh" else stream


def _band_hdus(hdus: Any, name: str, max_pixels: int) -> list[Any]:
    """Return the HDU of the cube, or those of g, r and i; read no pixels."""
    images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2]
    for hdu in images:
        _check_axes(hdu.shape, name, max_pixels)
    cubes = [hdu for hdu in images if len(hdu.shape) == 3 and hdu.shape[0] == len(BANDS)]
    if cubes:
        return cubes[:1]
    planes = _in_band_order([hdu for hdu in images if len(hdu.shape) == 2])
    if len({hdu.shape for hdu in planes}) == 1 and len(planes) == len(BANDS):
        return planes
    shapes = [hdu.shape for hdu in images]
    raise InputError(
        f"tile {name} needs one image of three planes, or three images of one shape for g, r and i; "
        f"its images have the shapes {shapes}. Stack the bands into one file."
    )


def _check_axes(shape: Sequence[int], name: str, max_pixels: int) -> None:
    pixels = 1
    for axis in shape:
        pixels *= axis
    if min(shape) <= 0 or pixels * (1 if len(shape) > 2 else len(BANDS)) > max_pixels:
        raise InputError(
            f"tile {name} claims {'x'.join(map(str, shape))} pixels, where at most {max_pixels} over all "
            "bands are safe to read. Check its NAXIS cards, or split the tile."
        )


def _in_band_order(planes: list) -> list:
    by_band = {_band_name(hdu): hdu for hdu in planes}
    return [by_band[band] for band in BANDS] if set(BANDS) <= set(by_band) else planes


def _band_name(hdu) -> str:
    names = (str(hdu.header.get(key, "")).strip().lower() for key in ("EXTNAME", "FILTER", "BAND"))
    return next((name for name in names if name in BANDS), "")


def _stack(planes: list) -> np.ndarray:
    data = planes[0].data if len(planes) == 1 else np.stack([hdu.data for hdu in planes])
    return np.ascontiguousarray(data, dtype=np.float32)


def _pixel_positions(wcs: WCS, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
