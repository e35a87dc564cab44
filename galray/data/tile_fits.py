"""FITS files -> tiles: hostile headers refused, compression seen through, bands laid onto one grid."""

from __future__ import annotations

import bz2
import gzip
import lzma
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from typing import IO, Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning
from astropy.wcs import WCS, FITSFixedWarning
from astropy.wcs.utils import pixel_to_pixel
from scipy import ndimage

from galray.core.errors import InputError
from galray.data.images import BANDS
from galray.data.tiles import Tile

SAFE_TILE_PIXELS = 3 * 12_000 * 12_000
_SAFE_TILE_BYTES = 8 * SAFE_TILE_PIXELS
_SAME_GRID_PX = 0.01
_SPLINE_ORDER = 3
_SQUARE_PX = 256
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zlib.error, lzma.LZMAError)


def open_tile(
    source: bytes | IO[bytes],
    name: str,
    *,
    bands: Sequence[str] = BANDS,
    saturation: float = np.inf,
    max_pixels: int = SAFE_TILE_PIXELS,
) -> Tile:
    """Read a three-band tile from one file.

    Parameters
    ----------
    source : bytes or binary file
        FITS, also gzip, bzip2 or tile-compressed: one image HDU with three planes, or three
        image HDUs, named (EXTNAME, FILTER or BAND) as `bands` or in their order.
    name : str
        For messages and the catalogue.
    bands : sequence of str
        What stands for g, r, i.
    saturation : float
        Flux from which on a pixel is saturated, where a header has no SATURATE.
    max_pixels : int
        A header that claims more, over all bands, is refused before any pixel is read.

    Returns
    -------
    Tile
        Bands that lie on another grid than the first are resampled onto it.

    Raises
    ------
    InputError
        Where the file is not such a tile, is truncated, or claims too many pixels.
    """
    with _opened(source, name) as hdus:
        planes = [
            _Plane(data, WCS(hdu.header, naxis=2), _saturation(hdu.header, saturation))
            for hdu in _band_hdus(hdus, name, bands, max_pixels)
            for data in (hdu.data if len(hdu.shape) == 3 else [hdu.data])
        ]
    return _tile(planes, name)


def open_bands(
    sources: Sequence[bytes | IO[bytes]],
    name: str,
    *,
    saturation: float = np.inf,
    max_pixels: int = SAFE_TILE_PIXELS,
) -> Tile:
    """Read a tile from three files, the first image of each; otherwise as `open_tile`."""
    planes: dict[bytes | IO[bytes], _Plane] = {}
    for source in dict.fromkeys(sources):  # one file may stand for several bands
        with _opened(source, name) as hdus:
            hdu = _first_plane(hdus, name, max_pixels)
            limit = _saturation(hdu.header, saturation)
            planes[source] = _Plane(hdu.data, WCS(hdu.header, naxis=2), limit)
    return _tile([planes[source] for source in sources], name)


def grid_of(source: bytes | IO[bytes], name: str) -> tuple[WCS, tuple[int, int]]:
    """Read the celestial WCS and the shape (H, W) of a tile's first image; reads no pixel.

    A truncated file has them too: its sources are then set aside by its name, and not as lost.

    Raises
    ------
    InputError
        As `open_tile` does.
    """
    with _opened(source, name, whole=False) as hdus:
        first = next((hdu for hdu in hdus if hdu.is_image and len(hdu.shape) in (2, 3)), None)
        if first is None:
            raise InputError(f"tile {name} holds no image. Check what it is.")
        wcs, shape = WCS(first.header, naxis=2), first.shape[-2:]
    _require_sky(wcs, name)
    return wcs, shape


@dataclass(frozen=True)
class _Plane:
    data: Any
    wcs: WCS
    saturation: float


def _saturation(header: fits.Header, otherwise: float) -> float:
    """Return the flux from which on a pixel is saturated; what is no positive number tells nothing."""
    told = header.get("SATURATE")
    return float(told) if isinstance(told, int | float) and told > 0 else otherwise


@contextmanager
def _opened(source: bytes | IO[bytes], name: str, *, whole: bool = True) -> Iterator[Any]:
    """Open a file's HDUs; what is found wrong with them, then or later, becomes one clear error.

    A compressed file that is read as a `whole` is unpacked first: to seek back in it costs all again.
    """
    try:
        stream = _decompressed(BytesIO(source) if isinstance(source, bytes) else source, whole)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            warnings.simplefilter("ignore", fits.verify.VerifyWarning)
            truncated = "error" if whole else "ignore"
            warnings.filterwarnings(truncated, message=".*truncated.*", category=AstropyUserWarning)
            with fits.open(stream, memmap=False, lazy_load_hdus=True) as hdus:
                yield hdus
    except AstropyUserWarning as error:
        raise InputError(f"tile {name} is truncated: {error}. Copy or download it again.") from error
    except _UNREADABLE as error:
        raise InputError(
            f"tile {name} cannot be read as FITS, or ends too early: {error}. Copy or download it again."
        ) from error


def _decompressed(stream: IO[bytes], whole: bool) -> Any:
    magic = stream.read(3)
    stream.seek(0)
    unpack = gzip.open if magic.startswith(b"\x1f\x8b") else bz2.open if magic == b"BZh" else None
    if unpack is None or not whole:
        return unpack(stream) if unpack else stream
    with unpack(stream) as unpacked:
        data = unpacked.read(_SAFE_TILE_BYTES + 1)
    if len(data) > _SAFE_TILE_BYTES:
        raise ValueError(f"it unpacks to more than {_SAFE_TILE_BYTES} bytes")
    return BytesIO(data)


def _tile(planes: Sequence[_Plane], name: str) -> Tile:
    first = planes[0]
    _require_sky(first.wcs, name)
    data = np.empty((len(planes), *first.data.shape), np.float32)
    for band, plane in enumerate(planes):
        data[band] = plane.data if _same_grid(plane, first) else _resampled(plane, first, name)
    return Tile(data, first.wcs, name, tuple(plane.saturation for plane in planes))


def _require_sky(wcs: WCS, name: str) -> None:
    if not wcs.has_celestial:
        raise InputError(f"tile {name} has no celestial WCS. Add CTYPE, CRVAL, CRPIX and CD to its header.")


def _same_grid(plane: _Plane, first: _Plane) -> bool:
    """Say whether a band's pixels are the first band's, as far as its header tells."""
    if plane is first or plane.data.shape != first.data.shape:
        return plane is first
    if not plane.wcs.has_celestial:
        return True
    height, width = first.data.shape
    x_px = np.array([0, width - 1, 0, width - 1, width / 2])
    y_px = np.array([0, 0, height - 1, height - 1, height / 2])
    there = pixel_to_pixel(first.wcs, plane.wcs, x_px, y_px)
    return bool(np.abs(np.subtract(there, (x_px, y_px))).max() < _SAME_GRID_PX)


def _resampled(plane: _Plane, first: _Plane, name: str) -> np.ndarray:
    """Interpolate a band onto the first band's grid; NaN where it has no pixel, or a bad one.

    Square by square, within each of which one grid is an affine map of the other.
    """
    if not plane.wcs.has_celestial:
        raise InputError(
            f"tile {name}: a band of {plane.data.shape} pixels has no celestial WCS to lay it onto one of "
            f"{first.data.shape}. Add it to its header."
        )
    flux = np.asarray(plane.data, np.float32)
    is_bad = ~np.isfinite(flux)
    coefficients = ndimage.spline_filter(np.where(is_bad, 0, flux), _SPLINE_ORDER)
    height, width = first.data.shape
    result = np.empty((height, width), np.float32)
    for top, left in product(range(0, height, _SQUARE_PX), range(0, width, _SQUARE_PX)):
        square = result[top : top + _SQUARE_PX, left : left + _SQUARE_PX]
        matrix, offset = _affine(first.wcs, plane.wcs, top, left)
        place: dict[str, Any] = {"matrix": matrix, "offset": offset, "prefilter": False}
        place["output_shape"] = square.shape
        ndimage.affine_transform(coefficients, **place, order=_SPLINE_ORDER, output=square, cval=np.nan)
        bad = ndimage.affine_transform(is_bad.astype(np.float32), **place, order=1, cval=1.0)
        square[bad > _SAME_GRID_PX] = np.nan
    return result


def _affine(onto: WCS, wcs: WCS, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    """Map pixels of a square, counted from its corner, to pixels of `wcs`, both as (y, x)."""
    half = _SQUARE_PX / 2
    x_px = left + half + np.array([0, -half, half, 0, 0])
    y_px = top + half + np.array([0, 0, 0, -half, half])
    x, y = pixel_to_pixel(onto, wcs, x_px, y_px)
    there = np.stack([y, x])
    matrix = np.stack([there[:, 4] - there[:, 3], there[:, 2] - there[:, 1]], axis=1) / _SQUARE_PX
    return matrix, there[:, 0] - matrix @ np.array([half, half])


def _band_hdus(hdus: Any, name: str, bands: Sequence[str], max_pixels: int) -> list[Any]:
    """Return the HDU of the cube, or those of the three bands; read no pixels."""
    images = _image_hdus(hdus, name, max_pixels)
    cubes = [hdu for hdu in images if len(hdu.shape) == 3 and hdu.shape[0] == len(BANDS)]
    if cubes:
        return cubes[:1]
    planes = _in_band_order([hdu for hdu in images if len(hdu.shape) == 2], bands)
    if len(planes) == len(BANDS):
        return planes
    shapes = [hdu.shape for hdu in images]
    raise InputError(
        f"tile {name} needs one image of three planes, or three images, for {', '.join(bands)}; "
        f"its images have the shapes {shapes}. Name one file for each band, as in "
        "--tile-files '{tile}-{band}.fits', or stack the bands into one file."
    )


def _first_plane(hdus: Any, name: str, max_pixels: int) -> Any:
    images = [hdu for hdu in _image_hdus(hdus, name, max_pixels) if len(hdu.shape) == 2]
    if not images:
        raise InputError(f"tile {name}: a file of one band holds no image of two axes.")
    return images[0]


def _image_hdus(hdus: Any, name: str, max_pixels: int) -> list[Any]:
    images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2]
    for hdu in images:
        _check_axes(hdu.shape, name, max_pixels)
    return images


def _check_axes(shape: Sequence[int], name: str, max_pixels: int) -> None:
    pixels = 1
    for axis in shape:
        pixels *= axis
    if min(shape) <= 0 or pixels * (1 if len(shape) > 2 else len(BANDS)) > max_pixels:
        raise InputError(
            f"tile {name} claims {'x'.join(map(str, shape))} pixels, where at most {max_pixels} over all "
            "bands are safe to read. Check its NAXIS cards, or split the tile."
        )


def _in_band_order(planes: list, bands: Sequence[str]) -> list:
    by_band = {_band_name(hdu, bands): hdu for hdu in planes}
    return [by_band[band] for band in bands] if set(bands) <= set(by_band) else planes


def _band_name(hdu: Any, bands: Sequence[str]) -> str:
    names = (str(hdu.header.get(key, "")).strip().lower() for key in ("EXTNAME", "FILTER", "BAND"))
    return next((name for name in names if name in bands), "")
