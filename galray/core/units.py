"""Work that may be killed at any moment: units known beforehand, each ending with a record of its files.

A unit's shards are written first, whole or not at all, and its record last. A resumed run does the units
that have no record; the manifest is made of the records. Running a unit again replaces its own files.

Ray Data's own resume (``DataContext.checkpoint_config``) keeps the id of every row and loads all of them into
memory; for sinks other than its own it writes them after the data, so that a kill in between doubles rows;
and a manifest needs each file's checksum, which it does not keep. A record for each unit does all three, at
a cost that grows with the units, not with the rows. Scheduling, lost workers and retries remain Ray's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Dataset

from galray.core.cluster import Progress
from galray.core.errors import PublishError, StorageError
from galray.core.manifest import FileRecord, Publication
from galray.core.schema import fingerprint
from galray.core.shards import REJECTS, SHARDS, count_rows, write_parts
from galray.core.storage import PARTIAL, Location

RECORDS = "units"
UNIT = "unit"
ROWS = "rows"
_READERS = 16  # of records, at once
_TASKS = 1024  # more units than these share tasks: each task costs the driver a millisecond

Work = Callable[[dict[str, Any]], pa.Table]


def write_units(
    units: pa.Table,
    work: Callable[..., Work],
    arguments: tuple[Any, ...],
    publication: Publication,
    schema: pa.Schema,
    *,
    plan: Mapping[str, Any],
    first: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    **resources: Any,
) -> None:
    """Do the units that are not done yet, and make their files the publication's.

    Parameters
    ----------
    units : pyarrow.Table
        A row for each unit: ``unit`` int64, each once, and what else tells `work` what to do. Where
        there is a column ``rows``, int64, each unit must end as so many good rows and rejects.
    work : callable
        ``work(*arguments)``, called once in each process, returns the function that is then called
        with one row of `units` after another, as a dict, and returns that unit's rows: those whose
        ``reason`` is null are good, the others rejects. The same unit must give the same rows.
    arguments : tuple
        Hashable, where no actors are asked for.
    publication : Publication
    schema : pyarrow.Schema
        Of the good rows.
    plan : mapping
        All that decides what the units are and what becomes of them, as JSON can hold it.
    first : callable, optional
        What tasks on CPUs make of a unit's row before `work` gets it: for work that holds a GPU.
    **resources
        Of ``Dataset.map_batches``: ``num_cpus``, ``num_gpus``; with ``compute`` or ``concurrency`` the
        units are done by actors, without by tasks, on as many CPUs as the cluster has or gets.

    Raises
    ------
    PublishError
        The folder holds units of another plan, or a unit lost or doubled rows.
    EmptyInputError
        Not one good row came of all units.
    StorageError
        A unit's files are gone when all are done.
    """
    location, plan_id = publication.location, fingerprint(json.dumps(plan, sort_keys=True, default=str))
    clear_partial(location)
    todo = units.filter(pa.array(~np.isin(units[UNIT].to_numpy(), list(done_units(location, plan_id)))))
    if len(todo):
        rows = _dataset(todo) if first is None else _dataset(todo).map(first)
        doing = _done_by(rows, (location, plan_id, schema, work, arguments), resources)
        _watch(doing, location.name, len(units) - len(todo), len(units))
    done = done_units(location, plan_id)
    check_complete(location, units, done)
    for files in done.values():
        publication.add(files)
    count_rows(publication)


def _dataset(todo: pa.Table) -> Dataset:
    # from_arrow would start two more workers, to be told the sizes of tables that are here
    return ray.data.from_items(todo.to_pylist(), override_num_blocks=min(len(todo), _TASKS))


def _done_by(units: Dataset, arguments: tuple[Any, ...], resources: Mapping[str, Any]) -> Dataset:
    how: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", **resources}
    if how.keys() & {"compute", "concurrency"}:
        return units.map_batches(DoUnit, fn_constructor_args=arguments, **how)
    return units.map_batches(_do_unit, fn_args=arguments, **how)


def check_complete(location: Location, units: pa.Table, done: Mapping[int, list[FileRecord]]) -> None:
    """Refuse to publish what lacks a unit, or in which a unit has other rows than it should."""
    missing = set(units[UNIT].to_pylist()) - done.keys()
    if missing:
        raise StorageError(
            f"{location.uri}: the files of {len(missing)} finished units are gone. Go on with --resume."
        )
    if ROWS not in units.column_names:
        return
    for unit, rows in zip(units[UNIT].to_pylist(), units[ROWS].to_pylist(), strict=True):
        written = sum(file.rows or 0 for file in done[unit])
        if written != rows:
            raise PublishError(
                f"{location.uri}: unit {unit} has {written} rows, where {rows} came in. Delete "
                f"{RECORDS}/{_name(unit)}.json there and go on with --resume; if it happens again, report it."
            )


def _watch(doing: Dataset, name: str, done: int, total: int) -> None:
    """Run to the end and tell the progress; of each unit nothing but its number comes back."""
    doing.context.enable_progress_bars = False  # Ray's own counts tasks
    progress = Progress(name, total, "units")
    progress.start_at(done)
    for bundle in doing.iter_internal_ref_bundles():
        progress.advance(bundle.num_rows() or 0)
    progress.close()


class DoUnit:
    """Do one unit, write its files, then their record; an actor of Ray Data, or in one of its tasks."""

    def __init__(
        self,
        location: Location,
        plan_id: str,
        schema: pa.Schema,
        work: Callable[..., Work],
        arguments: tuple[Any, ...],
    ) -> None:
        self._location, self._plan_id, self._schema = location, plan_id, schema
        self._work = work(*arguments)

    def __call__(self, units: pa.Table) -> pa.Table:
        (row,) = units.to_pylist()
        record = _record(self._location, row[UNIT])
        if not record.exists():  # Ray runs a lost worker's task again from its first unit on
            files = write_parts(self._location, _name(row[UNIT]), self._work(row), self._schema)
            content = {UNIT: row[UNIT], "plan": self._plan_id, "files": [asdict(file) for file in files]}
            record.write_bytes(f"{json.dumps(content)}\n".encode())
        return units.select([UNIT])


def _do_unit(units: pa.Table, *arguments: Any) -> pa.Table:
    """Do one unit in a task, with what this process has loaded for the one before."""
    return _doing(*arguments)(units)


@lru_cache(maxsize=1)
def _doing(*arguments: Any) -> DoUnit:
    return DoUnit(*arguments)


def done_units(location: Location, plan_id: str) -> dict[int, list[FileRecord]]:
    """Return the files of each unit that is done; a record whose files are not there is deleted.

    Raises
    ------
    PublishError
        A unit was done for another plan.
    """
    records = _read_records(location)  # before the shards are listed: a unit's are there before its record
    if not records:
        return {}
    sizes = {info.path: info.size for folder in (SHARDS, REJECTS) for info in (location / folder).files()}
    done: dict[int, list[FileRecord]] = {}
    for record in records:
        if record["plan"] != plan_id:
            raise PublishError(
                f"{location.uri} holds unfinished work that was begun with other options or inputs. "
                "Go on with those, give another --output, or delete the folder to start over."
            )
        files = [FileRecord(**file) for file in record["files"]]
        if all(sizes.get(f"{location.path}/{file.path}") == file.bytes for file in files):
            done[record[UNIT]] = files
        else:
            _record(location, record[UNIT]).delete()
    return done


def _read_records(location: Location) -> list[dict[str, Any]]:
    """Read all records, many at once; not as pyarrow reads JSON datasets, for that can wait for itself."""
    places = [location / f"{RECORDS}/{info.base_name}" for info in (location / RECORDS).files()]
    with ThreadPoolExecutor(_READERS) as readers:
        return [json.loads(data) for data in readers.map(Location.read_bytes, places)]


def _record(location: Location, unit: int) -> Location:
    return location / f"{RECORDS}/{_name(unit)}.json"


def _name(unit: int) -> str:
    return f"unit-{unit:07d}"


def clear_partial(location: Location) -> None:
    """Delete what killed writers left behind: files that never got their names."""
    for info in location.files() if location.is_local else ():
        if info.path.endswith(PARTIAL):
            location.filesystem.delete_file(info.path)


def forget_units(location: Location) -> None:
    """Delete the records of a folder that is published: its manifest says all that they say."""
    (location / RECORDS).delete()
