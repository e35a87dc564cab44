"""How a catalogue is cut into the units of a scan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galray.core.errors import PublishError
from galray.core.manifest import FileRecord, Manifest, publish
from galray.core.schema import CUTOUT_FLAGS
from galray.core.storage import Location, open_location
from galray.scan.columns import sources_table
from galray.scan.partition import SOURCES, SourceSink, blended, placed, prepared, units_of, whole_tiles


def test_small_tiles_are_gathered_whole():
    tiles = ["a"] * 3 + ["b"] * 4 + ["c"] * 2 + ["d"] * 9
    assert whole_tiles(tiles, 8) == [(0, 7), (7, 9), (9, 18)]
    assert whole_tiles(tiles, 100) == [(0, 18)]
    assert whole_tiles(tiles, 5) == [(0, 3), (3, 7), (7, 9), (9, 18)]


def test_a_tile_of_many_units_is_cut():
    assert whole_tiles(["a"] * 17, 2) == [(0, 2), (2, 17)]
    assert whole_tiles(["a"] + ["b"] * 20, 2) == [(0, 1), (1, 3), (3, 5), (5, 21)]


@pytest.mark.parametrize("rows_per_unit", [1, 3, 64, 1000])
def test_each_row_belongs_to_one_unit(rows_per_unit):
    rng = np.random.default_rng(0)
    tiles = sorted(rng.choice(list("abcdefgh"), 300).tolist()) + [None] * 20
    runs = whole_tiles(tiles, rows_per_unit)
    assert [row for start, stop in runs for row in range(start, stop)] == list(range(320))
    assert all(stop - start <= 8 * rows_per_unit for start, stop in runs)


def test_no_rows_make_no_unit():
    assert whole_tiles([], 8) == []


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path))


TASK: Any = SimpleNamespace(task_idx=3)  # what Ray tells a sink of its task


def test_sources_are_written_tile_by_tile_and_those_not_selected_counted(location):
    count = 40
    columns = {
        "galaxy_id": list(range(count)),
        "tile": [f"t{i % 3}" if i % 7 else None for i in range(count)],
        "reason": ["not_selected" if i % 5 == 0 else "bad_id" if i == 6 else None for i in range(count)],
    }
    block = placed(sources_table(columns, count))
    written = SourceSink(location, 4, 0.0).write([block.slice(0, 11), block.slice(11)], TASK)
    assert written.not_selected == 8
    tables = [pq.read_table(f"{location.path}/{file.path}") for file in written.files]
    ids = [i for table in tables for i in table["galaxy_id"].to_pylist()]
    assert sorted(ids) == [i for i in range(count) if i % 5]
    for name in ("t0", "t1", "t2"):  # no tile is in two files
        assert sum(name in table["tile"].to_pylist() for table in tables) == 1
    again = SourceSink(location, 4, 0.0).write([block], TASK)
    assert again == written  # a task that Ray runs again replaces its own files


def test_a_unit_is_a_file():
    files = (FileRecord("shards/a.parquet", 9, "", 5), FileRecord("rejects/a.parquet", 9, "", 2))
    units = units_of(Manifest("galaxies", (*files, FileRecord("shards/b.parquet", 9, "", 7))))
    assert units.to_pylist() == [
        {"unit": 0, "path": "shards/a.parquet", "rows": 5},
        {"unit": 1, "path": "shards/b.parquet", "rows": 7},
    ]


def test_what_was_prepared_from_another_catalogue_is_refused(location):
    assert prepared(location, {"catalogue": "a"}) is None
    with publish(location / SOURCES, SOURCES, {"catalogue": "a"}):
        pass
    assert prepared(location, {"catalogue": "a"}) is not None
    with pytest.raises(PublishError, match="another catalogue"):
        prepared(location, {"catalogue": "b"})


def test_rows_without_a_tile_do_not_meet_in_one_place():
    block = placed(sources_table({"tile": pa.array(["a", *[None] * 99], pa.string())}, 100))
    assert block["place_"][0].as_py() == "a"
    assert len(set(block["place_"].to_pylist())) == 100


def test_sources_near_another_one_on_their_tile_are_blended():
    near_deg = 4.9 / 3600
    rows = [  # ra, dec, tile
        (10.0, 60.0, "a", True),
        (10.0 + near_deg / np.cos(np.radians(60.0)), 60.0, "a", True),
        (10.0, 60.0 - 2.2 * near_deg, "a", False),
        (10.0, 60.0, "b", False),
        (359.9999, 0.0, "c", True),
        (0.0001, 0.0, "c", True),
        (None, 1.0, "c", False),
        (0.0, 1.0, None, False),
        (0.0, 1.0, None, False),
    ]
    ra, dec, tile, expected = zip(*rows, strict=True)
    sources = sources_table({"ra": ra, "dec": dec, "tile": tile}, len(rows))
    assert blended(sources, 5.0).tolist() == list(expected)
    assert not blended(sources, 0.0).any()


def test_a_source_is_blended_with_one_that_was_not_selected(location):
    columns = {
        "galaxy_id": [1, 2, 3],
        "ra": [10.0, 10.0005, 11.0],
        "dec": [0.0] * 3,
        "tile": ["a"] * 3,
        "reason": [None, "not_selected", None],
    }
    written = SourceSink(location, 4, 5.0).write([placed(sources_table(columns, 3))], TASK)
    rows = pq.read_table(f"{location.path}/{written.files[0].path}")
    assert rows.select(["galaxy_id", "flags"]).to_pylist() == [
        {"galaxy_id": 1, "flags": CUTOUT_FLAGS["blended"]},
        {"galaxy_id": 3, "flags": 0},
    ]
