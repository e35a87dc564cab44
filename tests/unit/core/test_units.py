"""Units of work: what counts as done after a kill, and what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galray.core.errors import PublishError, StorageError
from galray.core.storage import PARTIAL, Location, open_location
from galray.core.units import RECORDS, DoUnit, check_complete, clear_partial, done_units

SCHEMA = pa.schema({"number": pa.int64()})
REASONS = ["duplicate_id", "bad_id"]


class Count:
    """A unit gives the numbers below its own; every third is a reject."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        self.done.append(unit["unit"])
        numbers = range(unit["unit"])
        reasons = pa.array([REASONS[0] if n % 3 == 2 else None for n in numbers], pa.string())
        table = pa.table({"number": pa.array(numbers, pa.int64()), "reason": reasons})
        return table.append_column("detail", pa.array([""] * len(table), pa.string()))


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path))


def do(location: Location, *units: int, plan: str = "a") -> list[int]:
    """Do units, and return those for which there was something to do."""
    count = Count()
    doing = DoUnit(location, plan, SCHEMA, lambda: count, ())
    for unit in units:
        assert doing(pa.table({"unit": [unit], "more": ["x"]})).to_pydict() == {"unit": [unit]}
    return count.done


def test_every_row_of_a_unit_is_in_its_files(location):
    do(location, 5)
    (files,) = done_units(location, "a").values()
    assert [(f.path.split("/")[0], f.rows) for f in files] == [("shards", 4), ("rejects", 1)]
    assert pq.read_table(f"{location.path}/{files[0].path}")["number"].to_pylist() == [0, 1, 3, 4]


def test_a_unit_without_rows_is_done_all_the_same(location):
    do(location, 0)
    assert done_units(location, "a") == {0: []}


def test_nothing_is_done_where_nothing_was_begun(location):
    assert done_units(location, "a") == {}


def test_a_unit_is_not_done_twice(location):
    assert do(location, 4, 7) == [4, 7]
    assert do(location, 4, 5, 7) == [5]


def test_shards_without_a_record_are_not_done(location):
    do(location, 4, 5)
    (location / f"{RECORDS}/unit-0000004.json").delete()
    assert set(done_units(location, "a")) == {5}


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_record_without_its_files_is_not_done_and_the_unit_is_done_again(location, damage):
    do(location, 4, 5)
    shard = Path(location.path, "shards/unit-0000004.parquet")
    whole = shard.read_bytes()
    shard.unlink() if damage == "gone" else shard.write_bytes(whole[:-1])
    assert set(done_units(location, "a")) == {5}
    assert do(location, 4, 5) == [4]
    assert shard.read_bytes() == whole


def test_units_of_another_plan_are_refused(location):
    do(location, 4)
    with pytest.raises(PublishError, match="other options or inputs"):
        done_units(location, "b")


def test_records_say_what_was_written(location):
    do(location, 3)
    record = json.loads((location / f"{RECORDS}/unit-0000003.json").read_bytes())
    assert (record["unit"], record["plan"], record["files"][0]["rows"]) == (3, "a", 2)


def test_what_killed_writers_left_is_deleted(location):
    do(location, 3)
    left = Path(location.path, f"shards/unit-0000009.parquet.abc{PARTIAL}")
    left.write_bytes(b"half")
    clear_partial(location)
    assert not left.exists()
    assert set(done_units(location, "a")) == {3}


@pytest.mark.parametrize(
    ("units", "error", "message"),
    [
        ({"unit": [4, 5], "rows": [4, 5]}, None, ""),
        ({"unit": [4, 5], "rows": [4, 6]}, PublishError, "unit 5 has 5 rows, where 6 came in"),
        ({"unit": [4, 5, 6], "rows": [4, 5, 6]}, StorageError, "1 finished units are gone"),
    ],
)
def test_lost_and_doubled_rows_are_not_published(location, units, error, message):
    do(location, 4, 5)
    done = done_units(location, "a")
    if error is None:
        check_complete(location, pa.table(units), done)
    else:
        with pytest.raises(error, match=message):
            check_complete(location, pa.table(units), done)
