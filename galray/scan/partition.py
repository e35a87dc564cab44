"""The catalogue of a survey, cut into the units of a scan: files of sources, each with whole tiles.

The catalogue is read once, laid out by tile and written as the folder ``sources`` below the scan, published
like any other; a scan that is killed before it stands reads the catalogue again, which costs no pixel. From
then on a unit is one of its files (`galray.core.units`), so that the driver's work grows with the units
alone: of each it knows the path and the number of rows, and of no row anything. A billion rows at
``--rows-per-task 65536`` are 15,000 to 30,000 units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.coordinates import SkyCoord
from ray.data import Dataset, Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult
from scipy.spatial import KDTree

from galray.core.errors import EmptyInputError, PublishError
from galray.core.manifest import MANIFEST, FileRecord, Manifest, publish, write_parquet
from galray.core.schema import CUTOUT_FLAGS
from galray.core.shards import SHARDS
from galray.core.storage import Location
from galray.core.units import ROWS, UNIT
from galray.scan.columns import NOT_SELECTED, SOURCE_SCHEMA

SOURCES = "sources"
_ROWS_PER_WRITE = 1 << 16
_LARGEST_TILE_UNITS = 8  # a tile of more than so many units' rows is cut, and opened more than once
_APART = 4.0  # more than any two points of the unit sphere
_PLACE = "place_"
_NOWHERE = 4096  # places of rows without a tile, so that they do not all meet in one task


def prepared(output: Location, asked: Mapping[str, Any]) -> Manifest | None:
    """Return what an earlier run of this scan has prepared, if anything.

    Raises
    ------
    PublishError
        It was prepared from another catalogue, or with other options.
    """
    place = output / SOURCES
    if not (place / MANIFEST).exists():
        return None
    manifest = Manifest.read(place, SOURCES)
    if manifest.config != asked:
        raise PublishError(
            f"{output.uri} holds an unfinished scan of another catalogue, or with other columns, selection, "
            "tiles or rows per task. Go on with those, give another --output, or delete the folder."
        )
    return manifest


def prepare(
    output: Location,
    asked: Mapping[str, Any],
    sources: Dataset,
    rows_per_unit: int,
    blend_radius_arcsec: float,
) -> Manifest:
    """Lay a catalogue's sources out by tile and write them as the units of a scan.

    Parameters
    ----------
    output : Location
        The scan's folder.
    asked : mapping
        What the sources follow from, as JSON has it; its ``catalogue`` is named to people.
    sources : ray.data.Dataset
        Of `galray.scan.columns.SOURCE_SCHEMA`. Rows that were not selected are counted and left out.
    rows_per_unit : int
        Whole tiles are gathered up to so many rows; a tile of eight times as many is cut.
    blend_radius_arcsec : float
        Sources this near to another one on the same tile, selected or not, are flagged as blended.

    Raises
    ------
    EmptyInputError
        No row is selected, or there is none.
    """
    place = output / SOURCES
    sink = SourceSink(place, rows_per_unit, blend_radius_arcsec)
    place.delete()
    with publish(place, SOURCES, asked) as publication:
        _laid_out(sources).write_datasink(sink)
        publication.add([file for written in sink.written for file in written.files])
        not_selected = sum(written.not_selected for written in sink.written)
        if not publication.files:
            raise EmptyInputError(
                f"No row of {asked['catalogue']} is left to scan: {not_selected} are not selected. "
                "Check --catalogue and --select."
            )
        rows = sum(file.rows or 0 for file in publication.files)
        publication.counts |= {"rows": rows, "not_selected": not_selected}
    return Manifest.read(place)


def units_of(files: Manifest) -> pa.Table:
    """Return a unit for each file of rows that a manifest names: ``unit``, ``path``, ``rows``."""
    shards = [file for file in files.files if file.path.startswith(f"{SHARDS}/")]
    columns = {UNIT: range(len(shards)), "path": [f.path for f in shards], ROWS: [f.rows for f in shards]}
    return pa.table(columns, schema=pa.schema({UNIT: pa.int64(), "path": pa.string(), ROWS: pa.int64()}))


def whole_tiles(tiles: Sequence[str | None], rows_per_unit: int) -> list[tuple[int, int]]:
    """Cut rows that are ordered by tile into runs of whole tiles, as first row and last + 1."""
    edges = [i for i in range(1, len(tiles)) if tiles[i] != tiles[i - 1]]
    start, runs = 0, []
    for first, end in pairwise([0, *edges, len(tiles)]):
        if first > start and end - start > rows_per_unit:
            runs.append((start, first))
            start = first
        while end - start > _LARGEST_TILE_UNITS * rows_per_unit:
            runs.append((start, start + rows_per_unit))
            start += rows_per_unit
    return [*runs, (start, len(tiles))] if tiles else []


def blended(sources: pa.Table, radius_arcsec: float) -> np.ndarray:
    """Return which sources have another one within a radius on the same tile; bool, shape (n,)."""
    ra_deg, dec_deg = (pc.fill_null(sources[name], np.nan).to_numpy() for name in ("ra", "dec"))
    on_sky = sources["tile"].is_valid().to_numpy() & (abs(ra_deg) <= 360) & (abs(dec_deg) <= 90)
    near = np.zeros(len(sources), bool)
    if radius_arcsec <= 0 or on_sky.sum() < 2:
        return near
    places: Any = SkyCoord(ra_deg[on_sky], dec_deg[on_sky], unit="deg").cartesian
    codes = sources["tile"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    # the fourth axis keeps tiles apart
    points = np.column_stack([places.xyz.value.T, _APART * codes[on_sky]])
    chord = 2 * np.sin(np.radians(radius_arcsec / 3600) / 2)
    distance, _ = KDTree(points).query(points, k=2, distance_upper_bound=chord)
    near[on_sky] = np.isfinite(distance[:, 1])
    return near


def _laid_out(sources: Dataset) -> Dataset:
    """Bring the rows of a tile into one block; where one task writes all of them, it does so itself."""
    rows = sources.map_batches(placed, batch_size=None, batch_format="pyarrow").materialize()
    return rows if rows.count() <= _ROWS_PER_WRITE else rows.sort(_PLACE)


def placed(sources: pa.Table) -> pa.Table:
    """Say where each row belongs: to its tile, or, without one, to any of many places."""
    nowhere = pa.array([f"~{i % _NOWHERE:04d}" for i in range(len(sources))], pa.string())
    return sources.append_column(_PLACE, pc.coalesce(sources["tile"], nowhere))  # pyright: ignore


@dataclass(frozen=True)
class _Written:
    files: list[FileRecord]
    not_selected: int


class SourceSink(Datasink[_Written]):
    """Write each task's rows as files of whole tiles; a task that Ray runs again replaces its own."""

    def __init__(self, location: Location, rows_per_unit: int, blend_radius_arcsec: float) -> None:
        self._location = location
        self._rows_per_unit = rows_per_unit
        self._blend_radius_arcsec = blend_radius_arcsec
        self.written: list[_Written] = []

    @property
    def min_rows_per_write(self) -> int:
        return max(_ROWS_PER_WRITE, self._rows_per_unit)

    def write(self, blocks: Iterable[Block], ctx) -> _Written:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if len(table)]
        if not tables:
            return _Written([], 0)
        rows = pa.concat_tables(tables).sort_by([(_PLACE, "ascending"), ("galaxy_id", "ascending")])
        flags = blended(rows, self._blend_radius_arcsec) * np.int32(CUTOUT_FLAGS["blended"])
        rows = rows.set_column(rows.schema.get_field_index("flags"), "flags", pa.array(flags))
        rows = rows.select(SOURCE_SCHEMA.names)
        chosen = rows.filter(_is_chosen(rows))
        files = [
            write_parquet(self._location, f"{SHARDS}/part-{ctx.task_idx:05d}-{i:05d}.parquet", chosen[a:b])
            for i, (a, b) in enumerate(whole_tiles(chosen["tile"].to_pylist(), self._rows_per_unit))
        ]
        return _Written(files, len(rows) - len(chosen))

    def on_write_complete(self, write_result: WriteResult[_Written]) -> None:
        self.written = list(write_result.write_returns)


def _is_chosen(rows: pa.Table) -> pa.Array:
    left_out = pc.equal(rows["reason"], NOT_SELECTED)  # pyright: ignore[reportAttributeAccessIssue]
    return pa.array(~left_out.fill_null(False).to_numpy())
