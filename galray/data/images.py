"""The pixel conventions of galray, said once: check, decode, crop, resize, encode, colour.

An image is uint8 RGB, shape (H, W, 3), its first row at the top of the picture. Networks see
float32 in [-1, 1], channel first. Three-band survey pixels are float32, shape (3, H, W), bands in
the order g, r, i, their first row at the bottom of the sky as FITS has it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from galray.core.errors import ConfigError, ImageRejected, InputError

BANDS = ("g", "r", "i")
SAFE_PIXELS = 4096 * 4096

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"IEND\xaeB\x60\x82"
_PNG_RGB = 2
_PNG_COLOUR_TYPES = {0: "greyscale", 2: "RGB", 3: "palette", 4: "greyscale with alpha", 6: "RGBA"}
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
# Start-of-frame markers that Pillow decodes: baseline, extended, progressive; Huffman and arithmetic.
_JPEG_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
_JPEG_UNREADABLE_FRAMES = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF))
_JPEG_COLOURS = {1: "greyscale", 4: "CMYK"}
_PADDING = b"\x00 \t\r\n"
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
_IHDR = struct.Struct(">I4sIIBB")


@dataclass(frozen=True)
class Rendering:
    """How three bands of flux become a colour picture; recorded in manifests.

    The asinh stretch of Lupton et al. (2004, PASP 116, 133): i, r, g drive red, green, blue.

    Attributes
    ----------
    stretch : float
        Linear range of the stretch, in scaled flux per pixel.
    q : float
        Asinh softening; larger compresses bright centres more.
    scale : tuple of float
        Factor on the flux of g, r, i before the stretch. Blue light is faint: g gets the most.
    minimum : tuple of float
        Scaled flux of g, r, i that becomes black.

    Notes
    -----
    The defaults give calibrated SDSS frames, in nanomaggies per 0.396 arcsec pixel, the colours,
    brightness and near-black sky of the pictures that Galaxy Zoo 2 showed.
    """

    stretch: float = 0.7
    q: float = 7.5
    scale: tuple[float, float, float] = (1.88, 1.21, 1.0)
    minimum: tuple[float, float, float] = (-0.004, -0.004, -0.004)

    def __post_init__(self) -> None:
        if self.stretch <= 0 or self.q <= 0 or min(self.scale) <= 0:
            raise ConfigError(
                f"stretch, q and every scale must be positive, not {self}. Mend the rendering options."
            )


def check_image(
    data: bytes, *, expected_size_px: tuple[int, int] | None, max_pixels: int = SAFE_PIXELS, decode: bool
) -> tuple[int, int]:
    """Return an image's size, or say why it cannot be used.

    Parameters
    ----------
    data : bytes
        The whole file.
    expected_size_px : tuple of int or None
        Height and width that it must have; None accepts any.
    max_pixels : int
        A header that claims more is refused before anything is decoded.
    decode : bool
        Also decode the compressed data to their end. Without it only headers and the end are read,
        some fifty times faster, which finds everything but damage inside the compressed data.

    Returns
    -------
    tuple of int
        Height and width in pixels.

    Raises
    ------
    ImageRejected
        With the reason not_an_image, truncated_image, decompression_bomb, wrong_mode or wrong_size.
    """
    size_px, mode_fault = _read_header(data)
    _check_claim(size_px, max_pixels)
    if not _is_complete(data):
        raise ImageRejected("truncated_image", f"{len(data)} bytes, without the image's end marker")
    if mode_fault:
        raise ImageRejected("wrong_mode", f"{mode_fault}, where 8-bit RGB is needed")
    if expected_size_px is not None and size_px != tuple(expected_size_px):
        raise ImageRejected("wrong_size", f"{_by(size_px)} pixels, where {_by(expected_size_px)} is expected")
    if decode:
        with _opened(data) as image:
            # At an eighth of its size a JPEG is still read to its last bit, in half the time.
            image.draft(None, (1, 1))
            image.load()
    return size_px


def decode_rgb(data: bytes) -> np.ndarray:
    """Decode a JPEG or PNG.

    Parameters
    ----------
    data : bytes

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    ImageRejected
        Where the bytes do not decode.
    """
    with _opened(data) as image:
        return np.array(image.convert("RGB"))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a JPEG or PNG; what Pillow says of its faults, then or later, becomes a rejection."""
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise ImageRejected("decompression_bomb", str(error)) from error
    except UnidentifiedImageError as error:
        raise ImageRejected("not_an_image", "neither a JPEG nor a PNG") from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        reason = "truncated_image" if "truncated" in str(error).lower() else "not_an_image"
        raise ImageRejected(reason, str(error)) from error


def encode_jpeg(rgb: np.ndarray, quality: int = 90) -> bytes:
    """Encode uint8 RGB, shape (H, W, 3), as JPEG with full-resolution colour."""
    buffer = BytesIO()
    # Dust is seen by its colour: half-resolution chroma would wash thin lanes out.
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def encode_png(rgb: np.ndarray) -> bytes:
    """Encode uint8 RGB, shape (H, W, 3), as PNG, losing nothing."""
    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def resize(rgb: np.ndarray, size_px: int) -> np.ndarray:
    """Resample uint8 RGB, shape (H, W, 3), to (size_px, size_px, 3) without aliasing."""
    if rgb.shape[:2] == (size_px, size_px):
        return rgb
    return np.array(Image.fromarray(rgb).resize((size_px, size_px), Image.Resampling.LANCZOS))


def crop_centre(rgb: np.ndarray, size_px: int) -> np.ndarray:
    """Return the central (size_px, size_px, 3) of uint8 RGB, shape (H, W, 3).

    Raises
    ------
    InputError
        Where the image is smaller than that.
    """
    height, width = rgb.shape[:2]
    if size_px > min(height, width):
        raise InputError(
            f"an image of {_by((height, width))} pixels has no central {_by((size_px, size_px))}. Crop less."
        )
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return rgb[top : top + size_px, left : left + size_px]


def to_tensor_range(rgb: np.ndarray) -> np.ndarray:
    """Map uint8 (..., H, W, 3) to float32 (..., 3, H, W), 0 to -1 and 255 to 1."""
    scaled = rgb.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def from_tensor_range(tensor: np.ndarray) -> np.ndarray:
    """Map float (..., 3, H, W) in [-1, 1] to uint8 (..., H, W, 3); clips, and rounds to nearest."""
    levels = np.rint((np.clip(tensor, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(levels, -3, -1))


def lupton_rgb(gri: np.ndarray, rendering: Rendering) -> np.ndarray:
    """Colour three-band pixels as SDSS does; the one road from flux to pictures.

    Parameters
    ----------
    gri : ndarray of float32, shape (..., 3, H, W)
        Flux in g, r, i, the first row at the bottom, as FITS has it.
    rendering : Rendering

    Returns
    -------
    ndarray of uint8, shape (..., H, W, 3)
        The first row at the top: north up where the tile has it so.
    """
    # Here, for it takes a third of a second, and most of Ray's processes see finished pictures alone.
    from astropy.visualization import ManualInterval, make_lupton_rgb

    bands = np.moveaxis(gri, -3, 0)
    shape = bands.shape[1:]
    g, r, i = (
        plane.reshape(-1, shape[-1]) * np.float32(scale)
        for plane, scale in zip(bands, rendering.scale, strict=True)
    )
    # A maximum, which nothing depends on, keeps astropy from looking for one.
    intervals = [ManualInterval(vmin=minimum, vmax=1.0) for minimum in rendering.minimum[::-1]]
    asinh: dict[str, Any] = {"stretch": rendering.stretch, "Q": rendering.q}
    with np.errstate(invalid="ignore"):  # astropy divides 0 by 0 where a pixel is exactly black
        rgb = make_lupton_rgb(i, r, g, interval=intervals, **asinh)
    return np.ascontiguousarray(rgb.reshape(*shape, 3)[..., ::-1, :, :])


def _by(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]}"


def _check_claim(size_px: tuple[int, int], max_pixels: int) -> None:
    height, width = size_px
    if height * width > max_pixels:
        raise ImageRejected(
            "decompression_bomb", f"the header claims {_by(size_px)} pixels, more than {max_pixels}"
        )
    if height == 0 or width == 0:
        raise ImageRejected("not_an_image", f"the header claims {_by(size_px)} pixels")


def _read_header(data: bytes) -> tuple[tuple[int, int], str]:
    """Return (height, width), and what is wrong with the colour mode, or an empty string."""
    try:
        if data.startswith(_JPEG_START):
            return _read_jpeg_frame(data)
        if data.startswith(_PNG_SIGNATURE):
            return _read_png_header(data)
    except struct.error as error:
        raise ImageRejected("truncated_image", f"the header is cut after {len(data)} bytes") from error
    if data and (_PNG_SIGNATURE.startswith(data) or _JPEG_START.startswith(data)):
        raise ImageRejected("truncated_image", f"the header is cut after {len(data)} bytes")
    raise ImageRejected("not_an_image", _describe(data))


def _describe(data: bytes) -> str:
    return f"{len(data)} bytes that begin with {bytes(data[:8])!r}" if data else "the file is empty"


def _read_jpeg_frame(data: bytes) -> tuple[tuple[int, int], str]:
    """Walk the JPEG segments (ITU-T T.81, Annex B) up to the frame header."""
    at = 2
    while True:
        prefix, marker, length = _SEGMENT.unpack_from(data, at)
        if prefix != 0xFF:
            raise ImageRejected("not_an_image", f"no JPEG segment begins at byte {at}")
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if marker in _JPEG_FRAMES:
            break
        if marker in _JPEG_UNREADABLE_FRAMES or marker in (0xD8, 0xD9, 0xDA):
            raise ImageRejected("not_an_image", f"a JPEG that cannot be decoded (marker {marker:#x})")
        at += 2 + length
    bits, height, width, components = _FRAME.unpack_from(data, at + 4)
    if bits != 8:
        return (height, width), f"{bits}-bit JPEG"
    return (height, width), "" if components == 3 else _JPEG_COLOURS.get(components, f"{components} channels")


def _read_png_header(data: bytes) -> tuple[tuple[int, int], str]:
    _, kind, width, height, bits, colour = _IHDR.unpack_from(data, len(_PNG_SIGNATURE))
    if kind != b"IHDR":
        raise ImageRejected("not_an_image", "a PNG without its header chunk")
    usable = bits == 8 and colour == _PNG_RGB
    return (height, width), "" if usable else f"{bits}-bit {_PNG_COLOUR_TYPES.get(colour, 'unknown')} PNG"


def _is_complete(data: bytes) -> bool:
    end = _JPEG_END if data.startswith(_JPEG_START) else _PNG_END
    tail = data[-4096:].rstrip(_PADDING)  # a short tail first: stripping the whole file copies it
    return (tail or data.rstrip(_PADDING)).endswith(end)
