"""The catalogue of a survey as a stream of sources, each with its tile, on Ray Data."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs
from ray.data import Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from galray.core.cluster import say
from galray.core.errors import InputError
from galray.core.shards import read_parquet
from galray.core.storage import Location
from galray.data.blocks import Part, column_names, parts, read_blocks
from galray.data.expressions import Expression
from galray.data.tile_files import Footprint, Footprints, TileFiles
from galray.scan.columns import Columns, ReadColumns
from galray.scan.pixels import AssignTiles

_PARQUET = (".parquet", ".parq", ".pq")
_HATS_PIXEL = "/Npix="  # what a HATS partition's path holds; its other Parquet files repeat rows
_HATS_COLLECTION, _HATS_TABLE = "collection.properties", "hats_primary_table_url"
_HEADERS_PER_TASK = 64


def read_sources(
    location: Location, columns: Columns, selection: Expression | None, tiles: TileFiles
) -> Dataset:
    """Stream a catalogue's sources as `galray.scan.columns.SOURCE_SCHEMA`.

    Parameters
    ----------
    location : Location
        A Parquet, FITS, CSV or VOTable file, or a folder of them (of one kind; HATS partitions too).
    columns : Columns
    selection : Expression or None
        Rows to scan; the others come with the reason ``not_selected``.
    tiles : TileFiles
        Where the catalogue names no tiles, the files are listed and their headers read.

    Raises
    ------
    MissingColumnError, InputError
        Before any work is done.
    """
    files = _catalogue_files(location)
    is_parquet = files[0].path.lower().endswith(_PARQUET)
    names = _parquet_names(files[0]) if is_parquet else column_names(files[0])
    meanings = columns.found_in([name.lower() for name in names], location.uri)
    read = ReadColumns(meanings, selection)
    read.check(names, location.uri)
    if is_parquet:
        wanted = [name for name in names if name.lower() in read.names]
        paths = [file.path for file in files]
        rows = read_parquet(paths, location.filesystem, wanted)
    else:
        rows = ray.data.read_datasource(_TableFiles(files, read.names))
    sources = rows.map_batches(read.__call__, batch_size=None, batch_format="pyarrow")
    if "tile" in meanings:
        return sources
    assign = AssignTiles(_footprints(tiles))
    return sources.map_batches(assign.__call__, batch_size=None, batch_format="pyarrow")


class _TableFiles(Datasource):
    """FITS, CSV and VOTable files, read by as many tasks as their kind allows."""

    def __init__(self, files: list[Location], columns: list[str]) -> None:
        super().__init__()
        self._columns = columns
        self._parts = [part for file in files for part in parts(file)]

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 (the files' sizes say what can be read at once)
        per_task_row_limit: int | None = None,
        data_context: object = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        return [
            ReadTask(
                partial(_blocks, part, self._columns),
                BlockMetadata(None, None, exec_stats=None, input_files=(part.location.path,)),
                per_task_row_limit=per_task_row_limit,
            )
            for part in self._parts
        ]


def _blocks(part: Part, columns: list[str]) -> Iterable[pa.Table]:
    return read_blocks(part, columns)


def _catalogue_files(location: Location) -> list[Location]:
    """List the files of a catalogue, those of HATS partitions only where it has them."""
    kind = location.kind()
    if kind == fs.FileType.NotFound:
        raise InputError(f"{location.uri} does not exist. Check --catalogue.")
    if kind == fs.FileType.File:
        return [location]
    location = _primary_table(location)
    names = [name for name in sorted(location.names()) if not name.rsplit("/", 1)[-1].startswith(("_", "."))]
    parquet = [name for name in names if name.lower().endswith(_PARQUET)]
    hats = [name for name in parquet if _HATS_PIXEL in f"/{name}"]
    if not (chosen := hats or parquet or names):
        raise InputError(f"{location.uri} is an empty folder. Check --catalogue.")
    return [location / name for name in chosen]


def _primary_table(location: Location) -> Location:
    """Return where a folder's sources lie: in one table of a HATS collection, whose margins repeat them."""
    properties = location / _HATS_COLLECTION
    if not properties.exists():
        return location
    lines = (line.partition("=") for line in properties.read_bytes().decode().splitlines())
    tables = [value.strip() for name, _, value in lines if name.strip() == _HATS_TABLE]
    if not tables:
        raise InputError(
            f"{properties.uri} names no {_HATS_TABLE}. Give --catalogue the folder of one of its tables."
        )
    return location / tables[0]


def _parquet_names(file: Location) -> list[str]:
    try:
        return pq.read_schema(file.path, filesystem=file.filesystem).names
    except (pa.ArrowInvalid, ValueError) as error:
        raise InputError(f"{file.uri} is no Parquet catalogue: {error}. Check --catalogue.") from error


def _footprints(tiles: TileFiles) -> Footprints:
    """Read the headers of all tiles, in tasks.

    Raises
    ------
    InputError
        Where there is no tile, or none that can be read.
    """
    names = list(tiles.names())
    if not names:
        raise InputError(
            f"{tiles.location.uri} holds no file named as in --tile-files {tiles.pattern!r}, and "
            "the catalogue has no column of tiles (see --columns.tile)."
        )
    read = ray.remote(_read_footprints)
    chunks = [names[i : i + _HEADERS_PER_TASK] for i in range(0, len(names), _HEADERS_PER_TASK)]
    answers = ray.get([read.remote(tiles, chunk) for chunk in chunks])
    faults = [found for answer in answers for found in answer if isinstance(found, str)]
    if faults:
        say(f"scan: the headers of {len(faults)} of {len(names)} tiles cannot be read: {faults[0]}")
    if len(faults) == len(names):
        raise InputError(f"No tile in {tiles.location.uri} can be read: {faults[0]}")
    return Footprints([found for answer in answers for found in answer if isinstance(found, Footprint)])


def _read_footprints(tiles: TileFiles, names: list[str]) -> list[Footprint | str]:
    return [_footprint_or_fault(tiles, name) for name in names]


def _footprint_or_fault(tiles: TileFiles, name: str) -> Footprint | str:
    try:
        return tiles.footprint(name)
    except InputError as error:
        return str(error)
