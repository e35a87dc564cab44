"""Sources -> the classifier's images: cut from tiles, or decoded where cutouts are already made.

`CutSources` and `DecodeGalaxies` take a block of rows and return it as `scanned_schema` has it: each
row with its image, or with the reason why it has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from galray.core.errors import ImageRejected, InputError, StorageDenied, StorageError, StorageUnreachable
from galray.core.storage import Location
from galray.data.images import Rendering, decode_rgb, lupton_rgb, resize
from galray.data.sources import climbs_out
from galray.data.tables import as_floats, as_ids, as_text
from galray.data.tiles import Cutouts, Tile, cut, open_tile

CATALOGUE_COLUMNS = ("galaxy_id", "ra", "dec", "tile")
GALAXY_COLUMNS = ("galaxy_id", "ra", "dec", "image", "provenance")


def scanned_schema(size_px: int) -> pa.Schema:
    """Return the columns of a block whose images have been made.

    ``pixels`` holds an image a cell, uint8 (size_px, size_px, 3); zeros where ``reason`` is set.
    """
    numbers = [("galaxy_id", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64()), ("flags", pa.int32())]
    texts = [(name, pa.string()) for name in ("tile", "id_text", "item", "reason", "detail")]
    return pa.schema([*numbers, *texts, ("pixels", pa.binary(size_px * size_px * 3))])


class Scanned:
    """A block's rows, each waiting for its image or for the reason why there is none.

    Parameters
    ----------
    block : pyarrow.Table
        ``galaxy_id``, ``ra``, ``dec``.
    tile : sequence of str or None, length n
        Where each image is taken from.
    size_px : int
        Side of the images.
    """

    def __init__(self, block: pa.Table, tile: Sequence[str | None], size_px: int) -> None:
        self.galaxy_id, trusted = as_ids(block["galaxy_id"])
        self.ra_deg, self.dec_deg = (as_floats(block[name])[0] for name in ("ra", "dec"))
        self.tile = tile
        self._id_text = as_text(block["galaxy_id"]).to_pylist()
        self._pixels = np.zeros((len(block), size_px, size_px, 3), np.uint8)
        self._flags = np.zeros(len(block), np.int32)
        self._reason: list[str | None] = [None] * len(block)
        self._detail: list[str | None] = [None] * len(block)
        for row in np.flatnonzero(~trusted).tolist():
            self.reject([row], "bad_id", f"the id is {self._id_text[row]!r}")

    def accept(self, row: int, rgb: np.ndarray, flags: int = 0) -> None:
        """Take an image, uint8 (H, W, 3), resampled to the block's size."""
        self._pixels[row] = resize(rgb, self._pixels.shape[1])
        self._flags[row] = flags

    def reject(self, rows: Sequence[int] | np.ndarray, reason: str, detail: str) -> None:
        """Set rows aside for one of ``schema.REJECT_REASONS``."""
        for row in rows:
            self._reason[row], self._detail[row] = reason, detail

    @property
    def waiting(self) -> np.ndarray:
        """Rows that are not set aside; int, shape (k,)."""
        return np.flatnonzero([reason is None for reason in self._reason])

    def table(self) -> pa.Table:
        """Return the block with `scanned_schema`'s columns."""
        columns = {
            "galaxy_id": self.galaxy_id,
            "ra": pa.array(self.ra_deg, from_pandas=True),
            "dec": pa.array(self.dec_deg, from_pandas=True),
            "flags": self._flags,
            "tile": self.tile,
            "id_text": self._id_text,
            "item": self.tile,
            "reason": self._reason,
            "detail": self._detail,
            "pixels": _cells(self._pixels),
        }
        return pa.table(columns, schema=scanned_schema(self._pixels.shape[1]))


def images_of(block: pa.Table) -> np.ndarray:
    """Return the images of a `scanned_schema` block, uint8 (n, size_px, size_px, 3), without a copy."""
    cells = block["pixels"].combine_chunks()
    width = cells.type.byte_width
    size_px = int((width // 3) ** 0.5)
    pixels = np.frombuffer(cells.buffers()[1], np.uint8, len(cells) * width, cells.offset * width)
    return pixels.reshape(len(cells), size_px, size_px, 3)


def _cells(pixels: np.ndarray) -> pa.Array:
    kind = pa.binary(int(np.prod(pixels.shape[1:])))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(pixels), [None, pa.py_buffer(pixels)])


@dataclass(frozen=True)
class CutSources:
    """Cut and colour the sources of a block of catalogue rows; cheap to send to workers.

    Attributes
    ----------
    tiles : Location
        The folder of the tiles.
    suffix : str
        Follows a tile's name in its file's.
    cutout_px : int
        Side of the cutouts, in the tiles' own pixels.
    size_px : int
        Side of the images made of them.
    rendering : Rendering
    """

    tiles: Location
    suffix: str
    cutout_px: int
    size_px: int
    rendering: Rendering

    def __call__(self, block: pa.Table) -> pa.Table:
        sources = Scanned(block, as_text(block["tile"]).to_pylist(), self.size_px)
        self._reject_misplaced(sources)
        for name, rows in _by_tile(sources):
            try:
                tile = _open(self.tiles, f"{name}{self.suffix}")
            except ImageRejected as rejection:
                sources.reject(rows, rejection.reason, rejection.detail)
                continue
            self._cut(sources, rows, tile)
        return sources.table()

    def _reject_misplaced(self, sources: Scanned) -> None:
        for row in sources.waiting:
            ra, dec, tile = sources.ra_deg[row], sources.dec_deg[row], sources.tile[row]
            if not (np.isfinite(ra) and abs(ra) <= 360 and abs(dec) <= 90):
                sources.reject([row], "bad_position", f"ra {ra}, dec {dec}")
            elif not tile:
                sources.reject([row], "missing_image", "the row names no tile")
            elif climbs_out(tile):
                sources.reject([row], "unsafe_path", f"the tile is called {tile!r}")

    def _cut(self, sources: Scanned, rows: np.ndarray, tile: Tile) -> None:
        cutouts: Cutouts = cut(tile, sources.ra_deg[rows], sources.dec_deg[rows], self.cutout_px)
        for row, gri, flags in zip(rows, cutouts.gri, cutouts.flags, strict=True):
            sources.accept(row, lupton_rgb(gri, self.rendering), flags)
        sources.reject(rows[~cutouts.inside], "outside_tile", f"no pixel of it lies on {tile.name}")


def _by_tile(sources: Scanned) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tile's name with its rows, so that a tile is opened once for all of them."""
    waiting = sources.waiting
    names = np.array([sources.tile[row] for row in waiting], dtype=np.str_)
    for name in dict.fromkeys(names):
        yield str(name), waiting[names == name]


@lru_cache(maxsize=1)  # catalogues go tile by tile: the next batch most often needs the same one
def _open(tiles: Location, name: str) -> Tile:
    """Open a tile, or say why its sources must be set aside; a store that is out of reach is no reason."""
    place = tiles / name
    try:
        data = place.read_bytes()
    except InputError as error:
        raise ImageRejected("missing_image", str(error)) from error
    except (StorageUnreachable, StorageDenied):
        raise
    except StorageError as error:
        raise ImageRejected("unreadable_file", str(error)) from error
    try:
        return open_tile(data, name)
    except InputError as error:
        raise ImageRejected("unreadable_file", str(error)) from error


@dataclass(frozen=True)
class DecodeGalaxies:
    """Decode the images of a block of galaxy shards; cheap to send to workers.

    Attributes
    ----------
    size_px : int
        Side of the images handed on.
    """

    size_px: int

    def __call__(self, block: pa.Table) -> pa.Table:
        origin = [json.loads(text).get("image") for text in block["provenance"].to_pylist()]
        galaxies = Scanned(block, origin, self.size_px)
        for row in galaxies.waiting:
            try:
                galaxies.accept(row, decode_rgb(block["image"][row].as_py()))
            except ImageRejected as rejection:
                galaxies.reject([row], rejection.reason, rejection.detail)
        return galaxies.table()
