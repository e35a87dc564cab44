"""Parquet shards of any galray table: a Ray Data sink that checksums, a reader that trusts manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs
from ray.data import DataContext, Dataset, Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult
from ray.data.expressions import Expr

from galray.core.errors import EmptyInputError, InputError
from galray.core.manifest import ROWS_PER_ROW_GROUP, FileRecord, Manifest, Publication, write_parquet
from galray.core.schema import REJECT_REASONS, REJECT_SCHEMA
from galray.core.storage import Location

SHARDS = "shards"
REJECTS = "rejects"


class ShardSink(Datasink[list[FileRecord]]):
    """Write each task's rows as one shard of good rows and one of rejects.

    A row whose ``reason`` is null is good; any other is a reject. File names follow from the task,
    so that a task that Ray runs again replaces its own files, and only the records that tasks
    return reach the manifest.

    Parameters
    ----------
    location : Location
        The folder that is being published.
    schema : pyarrow.Schema
        What a good row is cast to; columns beyond it are left out.
    rows_per_shard : int
        Ray gathers about so many rows before a task writes them.
    rows_per_row_group : int
        What a reader must read at once.
    """

    def __init__(
        self,
        location: Location,
        schema: pa.Schema,
        rows_per_shard: int = 2048,
        rows_per_row_group: int = ROWS_PER_ROW_GROUP,
    ) -> None:
        self._location = location
        self._schema = schema
        self._rows_per_shard = rows_per_shard
        self._rows_per_row_group = rows_per_row_group
        self.records: list[FileRecord] = []

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_shard

    def write(self, blocks: Iterable[Block], ctx) -> list[FileRecord]:
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:
            return []
        rows = pa.concat_tables(tables, promote_options="permissive")
        name, per_group = f"part-{ctx.task_idx:05d}", self._rows_per_row_group
        return write_parts(self._location, name, rows, self._schema, per_group)

    def on_write_complete(self, write_result: WriteResult[list[FileRecord]]) -> None:
        self.records = [record for records in write_result.write_returns for record in records]


def write_parts(
    location: Location,
    name: str,
    rows: pa.Table,
    schema: pa.Schema,
    rows_per_row_group: int = ROWS_PER_ROW_GROUP,
) -> list[FileRecord]:
    """Write rows as one shard of good ones and one of rejects; a part without rows has no file.

    Parameters
    ----------
    location : Location
        The folder that is being published.
    name : str
        Of both files, without ending.
    rows : pyarrow.Table
        With ``reason``: null in a good row.
    schema : pyarrow.Schema
        What a good row is cast to.
    rows_per_row_group : int
        What a reader must read at once.
    """
    path, per_group = f"{SHARDS}/{name}.parquet", rows_per_row_group
    if len(rows) and rows["reason"].null_count == len(rows):  # most often, and without a copy of the images
        return [write_parquet(location, path, conform(rows, schema), per_group)]
    parts = [
        (path, rows.filter(rows["reason"].is_null()), schema),
        (f"{REJECTS}/{name}.parquet", rows.filter(rows["reason"].is_valid()), REJECT_SCHEMA),
    ]
    return [write_parquet(location, at, conform(part, to), per_group) for at, part, to in parts if len(part)]


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Select and cast columns to a schema; a column that is absent becomes null."""
    columns = [
        rows[field.name].cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def write_shards(dataset: Dataset, publication: Publication, schema: pa.Schema, **options: int) -> None:
    """Run a pipeline into a publication: shards, rejects and their counts.

    Raises
    ------
    EmptyInputError
        Where not one good row is left; the commonest reasons are named.
    """
    sink = ShardSink(publication.location, schema, **options)
    dataset.write_datasink(sink)
    publication.add(sink.records)
    count_rows(publication)


def count_rows(publication: Publication) -> None:
    """Set ``rows_in = rows_out + rejects`` from the files written, rejects by reason too."""
    rows_out = sum(f.rows or 0 for f in publication.files if f.path.startswith(f"{SHARDS}/"))
    rejected = [f for f in publication.files if f.path.startswith(f"{REJECTS}/")]
    by_reason = reject_reasons(publication.location, rejected)
    publication.counts |= {
        "rows_in": rows_out + sum(by_reason.values()),
        "rows_out": rows_out,
        "rejects": sum(by_reason.values()),
    } | {f"rejects.{reason}": count for reason, count in sorted(by_reason.items())}
    if rows_out == 0:
        causes = ", ".join(f"{n} x {reason} ({REJECT_REASONS[reason]})" for reason, n in by_reason.items())
        raise EmptyInputError(
            f"Not one usable row is left for {publication.location.uri}: {causes or 'no row came in'}."
        )


def rejects_told(counts: Mapping[str, int]) -> str:
    """Say how many rows were set aside, and why: ``3 rejects (2 duplicate_id, 1 missing_image)``."""
    reasons = [
        f"{n} {name.removeprefix('rejects.')}" for name, n in counts.items() if name.startswith("rejects.")
    ]
    return f"{counts['rejects']} rejects" + (f" ({', '.join(reasons)})" if reasons else "")


def reject_reasons(location: Location, records: Sequence[FileRecord]) -> dict[str, int]:
    """Count rejects by reason, most frequent first."""
    counts: dict[str, int] = {}
    for record in records:
        path = f"{location.path}/{record.path}"
        column = pq.read_table(path, columns=["reason"], filesystem=location.filesystem)["reason"]
        for entry in column.value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def read_shards(
    location: Location,
    kind: str,
    columns: Sequence[str] | None = None,
    where: Expr | None = None,
) -> Dataset:
    """Stream a published table; only files that its manifest names are read.

    Parameters
    ----------
    location : Location
    kind : str
        What the folder must hold.
    columns : sequence of str, optional
    where : ray.data expression, optional
        Rows to keep; Ray pushes both down into the Parquet reader.
    """
    table = read_parquet(shard_paths(location, kind), location.filesystem)
    table = table if where is None else table.filter(expr=where)
    return table.select_columns(list(columns)) if columns else table


def whole_table(dataset: Dataset) -> pa.Table:
    """Run a pipeline whose rows are few or narrow enough to be held here, and return them."""
    blocks: Any = dataset.to_arrow_refs()
    return pa.concat_tables(ray.get(blocks))


def read_parquet(
    paths: Sequence[str], filesystem: fs.FileSystem, columns: Sequence[str] | None = None
) -> Dataset:
    """Stream Parquet files; Ray first looks at a few of them, of which a log need not tell."""
    context = DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        table = ray.data.read_parquet(
            list(paths), filesystem=filesystem, columns=list(columns) if columns else None, partitioning=None
        )
    finally:
        context.enable_progress_bars = shown
    table.context.enable_progress_bars = shown
    return table


def shard_paths(location: Location, kind: str) -> list[str]:
    """Return the paths of a published table's shards.

    Raises
    ------
    InputError
        Where a file that the manifest names is gone or has another size.
    """
    manifest = Manifest.read(location, kind)
    sizes = {info.path: info.size for info in (location / SHARDS).files()}
    for record in manifest.files:
        path = f"{location.path}/{record.path}"
        if record.path.startswith(f"{SHARDS}/") and sizes.get(path) != record.bytes:
            raise InputError(
                f"{location.uri}/{record.path} is not the file that was published: "
                f"{sizes.get(path)} bytes, not {record.bytes}. Make {location.name} again."
            )
    return manifest.paths(location, SHARDS)
