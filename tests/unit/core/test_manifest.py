"""Published whole or not at all; fingerprints; ancestry."""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galray.core.errors import InputError, LineageError, PublishError
from galray.core.manifest import (
    MANIFEST,
    UNFINISHED,
    FileRecord,
    Manifest,
    ancestry,
    local_folder,
    publish,
    standing,
    write_parquet,
)
from galray.core.storage import open_location


@pytest.fixture
def place(tmp_path):
    return open_location(str(tmp_path / "galaxies"))


def make(location, content=b"data", kind="galaxies", parents=()):
    known = {parent.uri: Manifest.read(parent).fingerprint for parent in parents}
    with publish(location, kind, {"seed": 1}, known) as publication:
        publication.write("shards/a", content, rows=3)
        publication.counts["rows_out"] = 3
    return Manifest.read(location)


def test_a_publication_says_what_it_holds(place):
    manifest = make(place)
    assert manifest.files == (FileRecord("shards/a", 4, hashlib.sha256(b"data").hexdigest(), 3),)
    assert (manifest.kind, manifest.counts, manifest.config) == ("galaxies", {"rows_out": 3}, {"seed": 1})
    assert manifest.code_version.startswith("0.")
    assert manifest.paths(place, "shards") == [f"{place.path}/shards/a"]
    assert manifest.paths(place, "rejects") == []
    assert not (place / UNFINISHED).exists()


def interrupt(location):
    """Leave a publication after its first file."""
    with suppress(KeyboardInterrupt), publish(location, "galaxies") as publication:
        publication.write("shards/a", b"data")
        raise KeyboardInterrupt


def test_nothing_is_read_before_the_manifest_is_written(place):
    with publish(place, "galaxies") as publication:
        publication.write("shards/a", b"data")
        with pytest.raises(InputError, match=r"is unfinished.*Run the job"):
            Manifest.read(place)
    assert Manifest.read(place).kind == "galaxies"


def test_a_failure_after_the_first_file_is_unfinished_work(place):
    interrupt(place)
    assert not (place / MANIFEST).exists()
    with pytest.raises(PublishError, match=r"unfinished work.*--resume"):
        standing(place, "galaxies", resume=False)
    assert standing(place, "galaxies", resume=True) is None


def test_a_failure_before_the_first_file_leaves_no_trace(place):
    with pytest.raises(ValueError, match="early"), publish(place, "galaxies"):
        raise ValueError("early")
    assert place.files() == []
    assert standing(place, "galaxies", resume=False) is None


def test_what_stands_is_kept_or_refused_never_replaced(place):
    manifest = make(place)
    assert standing(place, "galaxies", resume=True) == manifest
    with pytest.raises(PublishError, match=r"already published.*--resume"):
        standing(place, "galaxies", resume=False)


def test_another_kind_is_refused(place):
    make(place)
    with pytest.raises(InputError, match="'galaxies', but 'denoiser' is needed"):
        Manifest.read(place, "denoiser")


def test_a_newer_schema_is_refused(place):
    make(place)
    content = json.loads((place / MANIFEST).read_bytes()) | {"schema_version": 99}
    (place / MANIFEST).write_bytes(json.dumps(content).encode())
    with pytest.raises(InputError, match="upgrade"):
        Manifest.read(place)


@pytest.mark.parametrize("damage", [b"", b'{"kind": "gal', b"[]", b"{}"])
def test_a_damaged_manifest_is_bad_input(place, damage):
    (place / MANIFEST).write_bytes(damage)
    with pytest.raises(InputError, match="manifest"):
        Manifest.read(place)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match="does not hold galray's output"):
        Manifest.read(open_location(str(tmp_path)))


def test_fingerprints_follow_the_content_alone(place, tmp_path):
    manifest = make(place)
    assert make(open_location(str(tmp_path / "twin"))).fingerprint == manifest.fingerprint
    assert make(open_location(str(tmp_path / "other")), b"DATA").fingerprint != manifest.fingerprint
    assert replace(manifest, counts={"rows_out": 4}).fingerprint != manifest.fingerprint
    assert replace(manifest, created_utc="later").fingerprint == manifest.fingerprint


def test_ancestry_is_followed_to_its_roots(tmp_path):
    survey, galaxies, denoiser = (
        open_location(str(tmp_path / n)) for n in ("survey", "galaxies", "denoiser")
    )
    make(survey, kind="survey")
    make(galaxies, parents=[survey])
    make(denoiser, kind="denoiser", parents=[galaxies, survey])
    assert {uri: m.kind for uri, m in ancestry(denoiser).items()} == {
        survey.uri: "survey",
        galaxies.uri: "galaxies",
        denoiser.uri: "denoiser",
    }


def test_a_changed_ancestor_is_refused(tmp_path):
    survey, galaxies = open_location(str(tmp_path / "survey")), open_location(str(tmp_path / "galaxies"))
    make(survey, kind="survey")
    make(galaxies, parents=[survey])
    survey.delete()
    with pytest.raises(LineageError, match="which is gone"):
        ancestry(galaxies)
    make(survey, b"other", kind="survey")
    with pytest.raises(LineageError, match="another version"):
        ancestry(galaxies)


def test_a_local_folder_is_checked(place):
    make(place)
    with local_folder(place, "galaxies") as folder:
        assert (folder / "shards/a").read_bytes() == b"data"
    (place / "shards/a").write_bytes(b"dat4")
    with pytest.raises(InputError, match="not what was published"), local_folder(place, "galaxies"):
        pass


def test_parquet_is_recorded_as_it_lies_there(place):
    table = pa.table(
        {
            "galaxy_id": np.arange(3000),
            "votes": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(6000, "f4")), 2),
            "image": pa.array([bytes([i % 256]) * 500 for i in range(3000)], pa.binary()),
        }
    )
    record = write_parquet(place, "shards/a.parquet", table)
    data = (place / "shards/a.parquet").read_bytes()
    assert record == FileRecord("shards/a.parquet", len(data), hashlib.sha256(data).hexdigest(), 3000)
    assert pq.read_table(pa.BufferReader(data)).equals(table)
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    packed = {group.column(i).path_in_schema: group.column(i).compression for i in range(3)}
    assert packed == {"galaxy_id": "ZSTD", "votes.list.element": "ZSTD", "image": "UNCOMPRESSED"}
