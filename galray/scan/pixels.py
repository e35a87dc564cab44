"""Sources -> the classifier's images: cut from tiles, or decoded where cutouts are already made.

`CutSources` and `DecodeGalaxies` take a block of rows and return it as `scanned_schema` has it: each
row with its image, or with the reason why it has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.wcs.utils import proj_plane_pixel_scales

from galray.core.cells import from_cells, to_cells
from galray.core.errors import ImageRejected
from galray.data.images import Rendering, decode_rgb, lupton_rgb, resize
from galray.data.sources import climbs_out
from galray.data.tables import as_text
from galray.data.tile_files import Footprints, TileFiles
from galray.data.tiles import Cutouts, Tile, cut, few_at_once
from galray.scan.columns import SOURCE_SCHEMA, sources_table

GALAXY_COLUMNS = ("galaxy_id", "ra", "dec", "image", "provenance")
_LARGEST_CUTOUT_PX = 2048


def scanned_schema(size_px: int) -> pa.Schema:
    """Return the columns of a block whose images have been made.

    ``pixels`` holds an image a cell, uint8 (size_px, size_px, 3); zeros where ``reason`` is set.
    """
    fields = [(field.name, field.type) for field in SOURCE_SCHEMA]
    return pa.schema([*fields, ("pixels", pa.binary(size_px * size_px * 3))])


class Scanned:
    """A block's rows, each waiting for its image or for the reason why there is none.

    Parameters
    ----------
    sources : pyarrow.Table
        `galray.scan.columns.SOURCE_SCHEMA`; rows with a ``reason`` are set aside already.
    size_px : int
        Side of the images.
    """

    def __init__(self, sources: pa.Table, size_px: int) -> None:
        self._sources = sources
        self.ra_deg, self.dec_deg, self.radius_arcsec = (
            pc.fill_null(sources[name], np.nan).to_numpy() for name in ("ra", "dec", "radius_arcsec")
        )
        self.tile: list[str | None] = sources["tile"].to_pylist()
        self._pixels = np.zeros((len(sources), size_px, size_px, 3), np.uint8)
        self._flags = pc.fill_null(sources["flags"], 0).to_numpy().copy()
        self._reason: list[str | None] = sources["reason"].to_pylist()
        self._detail: list[str | None] = sources["detail"].to_pylist()

    def accept(self, rows: Sequence[int] | np.ndarray, rgb: np.ndarray, flags: Any = 0) -> None:
        """Take images, uint8 (n, H, W, 3), resampled to the block's size, with their flags."""
        size_px = self._pixels.shape[1]
        fits = rgb.shape[1:3] == (size_px, size_px)
        self._pixels[rows] = rgb if fits else [resize(image, size_px) for image in rgb]
        self._flags[rows] |= flags

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
        columns = {name: self._sources[name] for name in SOURCE_SCHEMA.names}
        columns |= {
            "item": self._sources["tile"],
            "reason": self._reason,
            "detail": self._detail,
            "flags": self._flags,
            "pixels": to_cells(self._pixels),
        }
        return pa.table(columns, schema=scanned_schema(self._pixels.shape[1]))


def images_of(block: pa.Table) -> np.ndarray:
    """Return the images of a `scanned_schema` block, uint8 (n, size_px, size_px, 3), without a copy."""
    pixels = from_cells(block["pixels"])
    size_px = int((pixels.shape[1] // 3) ** 0.5)
    return pixels.reshape(len(pixels), size_px, size_px, 3)


@dataclass(frozen=True)
class AssignTiles:
    """Find the tile of each source by the sky that tiles cover.

    Attributes
    ----------
    footprints : Footprints
    """

    footprints: Footprints

    def __call__(self, sources: pa.Table) -> pa.Table:
        ra_deg, dec_deg = (pc.fill_null(sources[name], np.nan).to_numpy() for name in ("ra", "dec"))
        lost = ~_on_the_sky(ra_deg, dec_deg)
        owners = self.footprints.owners(np.where(lost, np.nan, ra_deg), np.where(lost, np.nan, dec_deg))
        waiting = sources["reason"].is_null().to_numpy()
        outside = (owners == None) & ~lost & waiting  # noqa: E711 (an array's elements)
        detail = f"its position lies on none of {len(self.footprints)} tiles"
        columns = {name: sources[name] for name in SOURCE_SCHEMA.names}
        columns |= {
            "tile": owners,
            "reason": _where(outside, "outside_tile", sources["reason"]),
            "detail": _where(outside, detail, sources["detail"]),
        }
        return sources_table(columns, len(sources))


def _where(rows: np.ndarray, text: str, otherwise: pa.ChunkedArray) -> pa.ChunkedArray:
    chosen: Any = pc.if_else(pa.array(rows), text, otherwise)  # pyright: ignore[reportAttributeAccessIssue]
    return chosen


@dataclass(frozen=True)
class Side:
    """How large cutouts are; of `radii`, `arcsec` and `pixels` the first that is not 0 counts.

    Attributes
    ----------
    pixels : int
        Of the tile.
    arcsec : float
        The same piece of sky on tiles of any pixel scale, to half a pixel of the tile.
    radii : float
        Multiples of the source's own radius.
    """

    pixels: int
    arcsec: float = 0.0
    radii: float = 0.0

    def on(self, tile: Tile, radius_arcsec: np.ndarray) -> np.ndarray:
        """Return the sides of sources' cutouts in the tile's pixels; int, shape (n,)."""
        if not (self.radii or self.arcsec):
            return np.full(len(radius_arcsec), self.pixels)
        arcsec = self.radii * radius_arcsec if self.radii else np.full(len(radius_arcsec), self.arcsec)
        arcsec_per_px = 3600 * proj_plane_pixel_scales(tile.wcs).mean()
        return np.clip(np.rint(arcsec / arcsec_per_px), 2, _LARGEST_CUTOUT_PX).astype(int)


@dataclass(frozen=True)
class CutSources:
    """Cut and colour the sources of a block of catalogue rows; cheap to send to workers.

    Attributes
    ----------
    tiles : TileFiles
    side : Side
        Of the cutouts.
    size_px : int
        Side of the images made of them.
    rendering : Rendering
    """

    tiles: TileFiles
    side: Side
    size_px: int
    rendering: Rendering

    def __call__(self, block: pa.Table) -> pa.Table:
        sources = Scanned(block, self.size_px)
        self._reject_misplaced(sources)
        for name, rows in _by_tile(sources):
            try:
                tile = _open(self.tiles, name)
            except ImageRejected as rejection:
                sources.reject(rows, rejection.reason, rejection.detail)
                continue
            self._cut(sources, rows, tile)
        return sources.table()

    def _reject_misplaced(self, sources: Scanned) -> None:
        for row in sources.waiting:
            ra, dec, tile = sources.ra_deg[row], sources.dec_deg[row], sources.tile[row]
            if not _on_the_sky(ra, dec):
                sources.reject([row], "bad_position", f"ra {ra}, dec {dec}")
            elif not tile:
                sources.reject([row], "missing_image", "the row names no tile")
            elif climbs_out(tile):
                sources.reject([row], "unsafe_path", f"the tile is called {tile!r}")
            elif self.side.radii and not sources.radius_arcsec[row] > 0:
                sources.reject([row], "missing_radius", f"the radius is {sources.radius_arcsec[row]} arcsec")

    def _cut(self, sources: Scanned, rows: np.ndarray, tile: Tile) -> None:
        sides_px = self.side.on(tile, sources.radius_arcsec[rows])
        for side_px in map(int, np.unique(sides_px)):
            for few in few_at_once(rows[sides_px == side_px], side_px):
                cutouts: Cutouts = cut(tile, sources.ra_deg[few], sources.dec_deg[few], side_px)
                sources.accept(few, lupton_rgb(cutouts.gri, self.rendering), cutouts.flags)
                outside = few[~cutouts.inside]
                sources.reject(outside, "outside_tile", f"no pixel of it lies on {tile.name}")


def _on_the_sky(ra_deg: Any, dec_deg: Any) -> Any:
    """Say which positions are on the sky; false for what is missing."""
    return (abs(ra_deg) <= 360) & (abs(dec_deg) <= 90)


def _by_tile(sources: Scanned) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tile's name with its rows, so that a tile is opened once for all of them."""
    waiting = sources.waiting
    names = np.array([sources.tile[row] for row in waiting], dtype=np.str_)
    for name in dict.fromkeys(names):
        yield str(name), waiting[names == name]


@lru_cache(maxsize=1)  # catalogues go tile by tile: the next batch most often needs the same one
def _open(tiles: TileFiles, name: str) -> Tile:
    return tiles.open(name)


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
        columns = {name: block[name] for name in ("galaxy_id", "ra", "dec")}
        columns["id_text"] = as_text(block["galaxy_id"])
        columns["tile"] = [json.loads(text).get("image") for text in block["provenance"].to_pylist()]
        galaxies = Scanned(sources_table(columns, len(block)), self.size_px)
        for row in galaxies.waiting:
            try:
                galaxies.accept([row], decode_rgb(block["image"][row].as_py())[None])
            except ImageRejected as rejection:
                galaxies.reject([row], rejection.reason, rejection.detail)
        return galaxies.table()
