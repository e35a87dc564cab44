"""Candidates as HATS: LSDB opens them, whole and by position."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hats.io.validation import is_valid_catalog
from lsdb.loaders.hats.read_hats import open_catalog

from galray.scan.hats import hats_files
from tests.unit.scan.conftest import FIRST_ID


@pytest.fixture
def folder(candidates: pa.Table, tmp_path: Path) -> Path:
    """Candidates as HATS; one of the five has no position."""
    for path, data in hats_files(candidates, "rings").items():
        file = tmp_path / "candidates.hats" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path / "candidates.hats"


def test_lsdb_reads_every_candidate_that_has_a_position(folder, candidates):
    catalogue = open_catalog(folder)
    placed = candidates.filter(pc.field("ra").is_valid()).drop_columns("image")
    rows = pa.Table.from_pandas(catalogue.compute(), preserve_index=False).sort_by("rank")
    assert len(rows) == len(candidates) - 1
    assert rows.select(placed.column_names).to_pylist() == placed.to_pylist()
    assert rows.schema.field("galaxy_id").type == pa.int64()
    assert rows.schema.field("flags").type == pa.int32()
    assert (catalogue.name, len(catalogue)) == ("rings", len(placed))


def test_lsdb_finds_a_candidate_by_its_position(folder):
    found = open_catalog(folder).cone_search(ra=152.0, dec=2.0, radius_arcsec=1).compute()
    assert found["galaxy_id"].tolist() == [FIRST_ID + 2]


def test_the_layout_is_the_published_one(folder):
    assert is_valid_catalog(folder, strict=True)
    assert {"hats.properties", "partition_info.csv", "dataset"} <= {file.name for file in folder.iterdir()}


def test_candidates_without_any_position_are_no_catalogue(candidates):
    assert hats_files(candidates.filter(pc.field("ra").is_null()), "rings") == {}
