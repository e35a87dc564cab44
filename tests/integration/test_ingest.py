"""Ingest on a real Ray: every form of input, every kind of damage, every fatal error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from galray.core.cluster import connect
from galray.core.errors import (
    ConfigError,
    EmptyInputError,
    GalrayError,
    InputError,
    MissingColumnError,
    PublishError,
)
from galray.core.job import user_error
from galray.core.manifest import UNFINISHED, Manifest
from galray.core.schema import GALAXY_SCHEMA, REJECT_SCHEMA, split_of
from galray.core.storage import Location
from galray.data.gather import GatherConfig, gather
from galray.data.ingest import IngestConfig, ingest
from tests.integration import gz2_files as gz2
from tests.integration import services

REAL_DATA = Path(os.environ.get("GALRAY_REAL_DATA", services.REPOSITORY / "../shared/data"))
GOOD = 12


@pytest.fixture(scope="module", autouse=True)
def _ray_session() -> Iterator[None]:
    with connect():
        yield


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    """Options that lead to sound galaxies: a CSV table, its mapping, and a folder of images."""
    return gz2.write_survey(tmp_path, gz2.galaxy_rows(GOOD))


def rows_of(location: Location, folder: str) -> pa.Table:
    paths = Manifest.read(location, "galaxies").paths(location, folder)
    schema = GALAXY_SCHEMA if folder == "shards" else REJECT_SCHEMA
    return pads.dataset(paths, schema=schema, filesystem=location.filesystem).to_table()


def run(options: dict[str, Any]) -> tuple[dict[str, int], pa.Table, pa.Table]:
    """Ingest, and return the counts, the galaxies and the rejects."""
    config = IngestConfig(**options)
    counts = ingest(config).counts
    output = config.location(config.output)
    galaxies, rejects = rows_of(output, "shards"), rows_of(output, "rejects")
    assert counts["rows_in"] == counts["rows_out"] + counts["rejects"]
    assert (len(galaxies), len(rejects)) == (counts["rows_out"], counts["rejects"])
    return counts, galaxies, rejects


def failure(options: dict[str, Any]) -> GalrayError:
    """Ingest what cannot be ingested, and return the error that the user is told."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (Ray wraps it; user_error finds it)
        ingest(IngestConfig(**options))
    error = user_error(caught.value)
    assert error is not None
    return error


def test_a_galaxy_arrives_as_it_was_published(inputs: dict[str, Any]) -> None:
    _, galaxies, _ = run(inputs)
    row = gz2.galaxy_rows(GOOD)[3]
    (galaxy,) = [g for g in galaxies.to_pylist() if g["galaxy_id"] == row["dr7objid"]]
    asset = gz2.asset_id(row["dr7objid"])
    assert galaxy["votes"] == pytest.approx([row[name] for name in gz2.FRACTIONS], abs=1e-6)
    assert galaxy["image"] == (Path(inputs["images"]) / f"{asset}.jpg").read_bytes()
    assert (galaxy["height"], galaxy["width"]) == (gz2.SIZE_PX, gz2.SIZE_PX)
    assert (galaxy["ra"], galaxy["dec"]) == (row["ra"], row["dec"])
    assert (galaxy["label"], galaxy["classifications"]) == ("Ei", row["total_classifications"])
    assert galaxy["split"] == split_of(pa.array([row["dr7objid"]]).to_numpy())[0]
    assert json.loads(galaxy["provenance"]) == {"image": f"{inputs['images']}/{asset}.jpg", "row": 4}


@pytest.mark.parametrize("table", gz2.TABLE_FORMS)
def test_every_form_of_the_vote_table(tmp_path: Path, table: str) -> None:
    rows = gz2.galaxy_rows(GOOD)
    counts, galaxies, _ = run(gz2.write_survey(tmp_path, rows, table))
    assert counts == {"rows_in": GOOD, "rows_out": GOOD, "rejects": 0}
    assert sorted(galaxies["galaxy_id"].to_pylist()) == [row["dr7objid"] for row in rows]


@pytest.mark.parametrize("empty", ["", "-999", "-999.0", "NaN"])
def test_missing_values_are_no_damage(tmp_path: Path, empty: str) -> None:
    rows = gz2.galaxy_rows(GOOD)
    rows[0] |= {"ra": empty, gz2.FRACTIONS[0]: empty, "total_classifications": empty}
    _, galaxies, _ = run(gz2.write_survey(tmp_path, rows))
    (galaxy,) = [g for g in galaxies.to_pylist() if g["galaxy_id"] == rows[0]["dr7objid"]]
    assert (galaxy["ra"], galaxy["classifications"]) == (None, None)
    assert galaxy["votes"][0] != galaxy["votes"][0]


@pytest.mark.parametrize("spelling", ["gz2class", "gz2_class"])
def test_both_spellings_of_the_class_column(tmp_path: Path, spelling: str) -> None:
    rows = gz2.galaxy_rows(GOOD)
    renamed = [{spelling if name == "gz2class" else name: row[name] for name in row} for row in rows]
    _, galaxies, _ = run(gz2.write_survey(tmp_path, renamed))
    assert set(galaxies["label"].to_pylist()) == {"Ei"}


def test_images_in_a_zip(tmp_path: Path, inputs: dict[str, Any]) -> None:
    gz2.write_zip(tmp_path / "images.zip", gz2.images_of(gz2.galaxy_rows(GOOD), folder="gz2/images/"))
    counts, _, _ = run(inputs | {"images": str(tmp_path / "images.zip")})
    assert counts["rows_out"] == GOOD


def test_galaxies_of_two_folders_come_together(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Of an id that both have, the folder that is named first keeps it; each stays as it was published."""
    _, voted, _ = run(inputs)
    shared, other = voted["galaxy_id"].to_pylist()[:3], 77
    labelled = {"galaxy_id": [*shared, other], "label": ["spiral"] * 4, "image": [gz2.jpeg()] * 4}
    pq.write_table(pa.table(labelled), tmp_path / "labelled.parquet")
    run(
        {
            "root": str(tmp_path / "other"),
            "labelled": str(tmp_path / "labelled.parquet"),
            "survey": "other",
            "expected_size_px": 0,
        }
    )
    folders = [str(tmp_path / "other/galaxies"), IngestConfig(**inputs).location("{root}/galaxies").uri]
    config = GatherConfig(root=str(tmp_path), galaxies=tuple(folders))
    manifest = gather(config)
    galaxies, rejects = (rows_of(config.location(config.output), part) for part in ("shards", "rejects"))
    assert manifest.counts == {
        "rows_in": GOOD + 4,
        "rows_out": GOOD + 1,
        "rejects": 3,
        "rejects.duplicate_id": 3,
    }
    rows = {row["galaxy_id"]: row for row in galaxies.to_pylist()}
    assert {i for i, row in rows.items() if row["survey"] == "other"} == {*shared, other}
    kept = [row for row in voted.to_pylist() if row["galaxy_id"] not in shared]
    assert [rows[row["galaxy_id"]]["image"] for row in kept] == [row["image"] for row in kept]
    assert {row["id_text"] for row in rejects.to_pylist()} == {str(i) for i in shared}
    assert set(manifest.parents) == set(folders)


def test_galaxies_to_gather_must_be_published(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two folders"):
        GatherConfig(galaxies=("one",))
    with pytest.raises(InputError, match=r"no manifest\.json"):
        gather(GatherConfig(root=str(tmp_path), galaxies=("{root}/a", "{root}/b")))
    assert not list(tmp_path.iterdir())


def test_labelled_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "labelled"
    folder.mkdir()
    for part in range(3):
        rows = [
            {"galaxy_id": gz2.FIRST_ID + i, "label": "spiral", "image": gz2.jpeg(i)}
            for i in range(10 * part, 10 * part + 11)  # the last of each part is the first of the next
        ]
        rows[4]["image"] = gz2.jpeg()[:-1]
        rows[5]["image"] = None
        gz2.write_parquet(folder / f"part-{part}.parquet", rows)
    counts, galaxies, _ = run({"root": str(tmp_path), "labelled": str(folder), "expected_size_px": 0})
    assert counts == {
        "rows_in": 33,
        "rows_out": 25,
        "rejects": 8,
        "rejects.duplicate_id": 2,
        "rejects.missing_image": 3,
        "rejects.truncated_image": 3,
    }
    assert set(galaxies["label"].to_pylist()) == {"spiral"}


@pytest.mark.parametrize("verify", ["header", "decode"])
@pytest.mark.parametrize("images", ["folder", "zip"])
def test_every_damaged_input_is_set_aside_with_its_reason(tmp_path: Path, images: str, verify: str) -> None:
    case = gz2.damaged()
    options = write_damaged(tmp_path, case, images) | {"verify": verify}
    counts, galaxies, rejects = run(options)
    assert counts["rejects"] == len(case.expected) >= 30
    assert sorted(galaxies["galaxy_id"].to_pylist()) == sorted(case.good)
    assert identified(rejects) == sorted(case.expected)
    assert all(len(detail) > 10 for detail in rejects["detail"].to_pylist())


def write_damaged(folder: Path, case: gz2.Damaged, images: str) -> dict[str, Any]:
    gz2.write_csv(folder / "mapping.csv", case.mapping)
    place = folder / "images"
    if images == "zip":
        place = folder / "images.zip"
        climbing = case.good[0]
        case.stray("../../etc/cron.d/evil.jpg", gz2.jpeg(), "unsafe_path")
        case.stray("/tmp/absolute.jpg", gz2.jpeg(), "unsafe_path")
        case.stray("C:\\windows\\9.jpg", gz2.jpeg(), "unsafe_path")
        case.stray(f"../{gz2.asset_id(climbing)}.jpg", gz2.jpeg(), "unsafe_path")  # its good twin is taken
        gz2.write_zip(place, case.images)
    else:
        gz2.write_folder(place, case.images)
    gz2.write_csv(folder / "votes.csv", case.rows)
    with open(folder / "votes.csv", "a") as table:
        table.write("1,2,3\n" + ",".join(["9"] * (len(case.rows[0]) + 2)) + "\n")
    case.expected += [(str(folder / "votes.csv"), "malformed_row")] * 2
    return {
        "root": str(folder / "run"),
        "votes": str(folder / "votes.csv"),
        "mapping": str(folder / "mapping.csv"),
        "images": str(place),
        "expected_size_px": gz2.SIZE_PX,
    }


def identified(rejects: pa.Table) -> list[tuple[str, str]]:
    return sorted((row["id_text"] or row["item"], row["reason"]) for row in rejects.to_pylist())


def test_an_image_that_only_climbs_out_is_not_read(tmp_path: Path) -> None:
    rows = gz2.galaxy_rows(GOOD)
    options = gz2.write_survey(tmp_path, rows)
    images = gz2.images_of(rows)
    images["../1.jpg"] = images.pop("1.jpg")
    gz2.write_zip(tmp_path / "images.zip", images)
    _, _, rejects = run(options | {"images": str(tmp_path / "images.zip")})
    assert identified(rejects) == [(str(gz2.FIRST_ID), "unsafe_path")]


# ---- fatal errors ---------------------------------------------------------------------------------


def test_missing_columns_are_named_with_the_nearest(tmp_path: Path) -> None:
    rows = [
        {{"total_classifications": "totalclassifications"}.get(n, n): row[n] for n in row}
        for row in gz2.galaxy_rows(GOOD)
    ]
    error = failure(gz2.write_survey(tmp_path, rows))
    assert isinstance(error, MissingColumnError)
    assert "'total_classifications' (did you mean 'totalclassifications'" in str(error)
    assert str(tmp_path / "votes.csv") in str(error)


def test_no_usable_row_tells_why_and_leaves_nothing(inputs: dict[str, Any]) -> None:
    error = failure(inputs | {"expected_size_px": 424})
    assert isinstance(error, EmptyInputError)
    assert f"{GOOD} x wrong_size" in str(error)


@pytest.mark.parametrize("option", ["votes", "mapping", "images"])
def test_an_input_that_is_not_there(inputs: dict[str, Any], option: str) -> None:
    error = failure(inputs | {option: "/nowhere/at.csv"})
    assert isinstance(error, InputError)
    assert "/nowhere/at.csv" in str(error)
    assert not Path(inputs["root"], "galaxies", UNFINISHED).exists()


@pytest.mark.parametrize("option", ["votes", "mapping"])
@pytest.mark.parametrize("name", ["t.csv.gz", "t.fits", "t.parquet", "t.vot", "t.docx"])
def test_a_damaged_table(tmp_path: Path, inputs: dict[str, Any], option: str, name: str) -> None:
    damaged = tmp_path / name
    damaged.write_bytes(b"\x1f\x8b this is no table")
    error = failure(inputs | {option: str(damaged)})
    assert isinstance(error, InputError)
    assert str(damaged) in str(error)


def test_a_damaged_zip(tmp_path: Path, inputs: dict[str, Any]) -> None:
    gz2.write_zip(tmp_path / "images.zip", gz2.images_of(gz2.galaxy_rows(GOOD)))
    data = (tmp_path / "images.zip").read_bytes()
    (tmp_path / "images.zip").write_bytes(data[: len(data) // 2])
    assert "not a whole zip archive" in str(failure(inputs | {"images": str(tmp_path / "images.zip")}))


def test_output_that_cannot_be_written(tmp_path: Path, inputs: dict[str, Any]) -> None:
    (tmp_path / "file").write_text("not a folder")
    error = failure(inputs | {"output": str(tmp_path / "file" / "galaxies")})
    assert f"{tmp_path}/file/galaxies" in str(error)


def test_what_is_published_is_not_overwritten(inputs: dict[str, Any]) -> None:
    first, _, _ = run(inputs)
    error = failure(inputs)
    assert isinstance(error, PublishError)
    assert "--resume" in str(error)
    assert run(inputs | {"resume": True})[0] == first


# ---- real Galaxy Zoo 2 ------------------------------------------------------------------------------


@pytest.mark.skipif(not (REAL_DATA / "gz2").is_dir(), reason=f"no real data at {REAL_DATA}/gz2")
def test_real_galaxy_zoo_2_with_damage(tmp_path: Path) -> None:
    real = REAL_DATA / "gz2"
    images = tmp_path / "images"
    shutil.copytree(real / "images", images)
    names = sorted(images.iterdir())
    for name, (_, make, _) in zip(names, gz2.BAD_IMAGES, strict=False):
        data = make()
        name.unlink() if data is None else name.write_bytes(data)
    expected = [reason for _, _, reason in gz2.BAD_IMAGES]
    options = {
        "root": str(tmp_path),
        "votes": str(real / "votes.csv"),
        "mapping": str(real / "filename_mapping.csv"),
        "images": str(images),
    }
    counts, galaxies, rejects = run(options)
    assert counts["rows_in"] == len(names)
    assert sorted(rejects["reason"].to_pylist()) == sorted(expected)
    assert len(set(galaxies["galaxy_id"].to_pylist())) == len(names) - len(expected)


@pytest.mark.skipif(not (REAL_DATA / "gz5").is_dir(), reason=f"no real data at {REAL_DATA}/gz5")
def test_real_labelled_galaxies(tmp_path: Path) -> None:
    options = {"root": str(tmp_path), "labelled": str(REAL_DATA / "gz5"), "expected_size_px": 0}
    counts, galaxies, _ = run(options)
    assert counts["rows_in"] == 23_034
    assert len(set(galaxies["galaxy_id"].to_pylist())) == counts["rows_out"]
