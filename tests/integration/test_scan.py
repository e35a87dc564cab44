"""Scans and vetting on a real local Ray: every source is scored or rejected, however the work is cut up."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from astropy.table import Table
from lsdb.loaders.hats.read_hats import open_catalog

from galray.classifier import network
from galray.classifier.decision import Decision
from galray.classifier.network import Classifier, ClassifierConfig
from galray.classifier.targets import RING
from galray.core.errors import ConfigError, EmptyInputError, InputError, MissingColumnError, PublishError
from galray.core.manifest import Manifest, publish, write_parquet
from galray.core.schema import GALAXY_SCHEMA, N_ANSWERS, split_of
from galray.core.shards import read_shards
from galray.core.storage import open_location
from galray.data.images import Rendering, encode_jpeg, lupton_rgb
from galray.data.mock import MockConfig, render_tile
from galray.data.tile_fits import open_tile
from galray.data.tiles import cut
from galray.scan.aim import Aim
from galray.scan.columns import Columns
from galray.scan.ensemble import Ensemble
from galray.scan.options import ScanConfig
from galray.scan.scan import scan
from galray.scan.vet import VetConfig, vet
from tests.integration import services
from tests.integration.processes import JobProcess, killed_after, titled

SIZE_PX = 32
N_TILES = 3
pytestmark = [  # of Ray's own, which runs in this process
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    """A GPU in name, so that the pipeline for GPUs runs too."""
    with services.local_ray(num_gpus=1):
        yield


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_survey(tmp_path_factory.mktemp("survey"))


def make_survey(folder: Path) -> Path:
    """Make a mock survey of three small tiles, its catalogue in one file."""
    (folder / "tiles").mkdir(parents=True)
    config, catalogues = MockConfig(tile_size_px=240), []
    for index in range(N_TILES):
        tile = render_tile(config, index)
        tile.hdus.writeto(folder / "tiles" / f"{tile.name}.fits")
        catalogues.append(tile.catalogue)
    pq.write_table(pa.concat_tables(catalogues), folder / "catalogue.parquet")
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained classifier; its scores differ from image to image all the same."""
    folder = tmp_path_factory.mktemp("models")
    return published_classifier(folder, ClassifierConfig("resnet-tiny", SIZE_PX), seed=0)


def published_classifier(folder: Path, config: ClassifierConfig, seed: int) -> str:
    """Publish an untrained classifier; all are judged on the same made-up galaxies."""
    torch.manual_seed(seed)
    network.save(Classifier(config), folder / "model")
    location = open_location(str(folder / "classifier"))
    decision = Decision("dust_lane_early_type", 0.0, 0.1)
    predictions = {
        "galaxy_id": range(200),
        "split": ["validation", "test"] * 100,
        "truth": np.random.default_rng(0).integers(0, 2, 200),
        "score": np.random.default_rng(1 + seed).uniform(0, 1, 200).astype(np.float32),
        "score_turned": np.random.default_rng(9 + seed).uniform(0, 1, 200).astype(np.float32),
    }
    with publish(location, "classifier") as publication:
        publication.add_folder(folder / "model")
        publication.add(write_parquet(location, "predictions.parquet", pa.table(predictions)))
        publication.write("decision.json", decision.to_json())
    return location.uri


def config_of(root: Path, survey: Path, classifier: str, **options: Any) -> ScanConfig:
    places = {
        "catalogue": str(survey / "catalogue.parquet"),
        "tiles": str(survey / "tiles"),
        "classifier": classifier,
    }
    return ScanConfig(root=str(root), **{**places, "batch_size": 16, "rows_per_task": 16, **options})


def catalogue_of(survey: Path) -> pa.Table:
    return pq.read_table(survey / "catalogue.parquet")


def rows_of(root: Path, folder: str = "scan/shards") -> list[dict[str, Any]]:
    return pads.dataset(str(root / folder)).to_table().to_pylist()


def scores_of(root: Path) -> dict[int, float]:
    rows = rows_of(root)
    assert len({row["galaxy_id"] for row in rows}) == len(rows)  # none twice
    return {row["galaxy_id"]: row["score"] for row in rows}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory, survey: Path, classifier: str) -> Path:
    """The root of a finished scan of the whole survey."""
    root = tmp_path_factory.mktemp("scanned")
    scan(config_of(root, survey, classifier))
    return root


def test_every_source_is_scored(scanned, survey):
    catalogue = catalogue_of(survey)
    counts = Manifest.read(open_location(str(scanned / "scan")), "scores").counts
    assert counts["rows_in"] == counts["rows_out"] == len(catalogue)
    assert set(scores_of(scanned)) == set(catalogue["galaxy_id"].to_pylist())
    assert {row["tile"] for row in rows_of(scanned)} == set(catalogue["tile"].to_pylist())


def test_scores_are_those_of_cutouts_made_by_hand(scanned, survey, classifier):
    model = network.open_published(open_location(classifier))
    scores, expected = scores_of(scanned), {}
    for name in catalogue_of(survey)["tile"].unique().to_pylist():
        rows = catalogue_of(survey).filter(pads.field("tile") == name)
        tile = open_tile((survey / "tiles" / f"{name}.fits").read_bytes(), name)
        cutouts = cut(tile, rows["ra"].to_numpy(), rows["dec"].to_numpy(), SIZE_PX)
        images = np.stack([lupton_rgb(gri, Rendering()) for gri in cutouts.gri])
        said = network.predict(model, images).targets[:, 0]
        expected |= dict(zip(rows["galaxy_id"].to_pylist(), said.tolist(), strict=True))
    assert np.std(list(expected.values())) > 1e-4
    assert scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 7, "rows_per_task": 5},
        {"batch_size": 512, "rows_per_task": 4096},
        {"gpus": 1, "batch_size": 8},
    ],
    ids=["small blocks", "one block", "actors that hold a GPU"],
)
def test_scores_do_not_depend_on_how_the_work_is_cut_up(scanned, survey, classifier, tmp_path, options):
    files = tmp_path / "catalogue"
    files.mkdir()
    shuffled = catalogue_of(survey).take(np.random.default_rng(0).permutation(len(scores_of(scanned))))
    for i, start in enumerate(range(0, len(shuffled), 11)):
        pq.write_table(shuffled.slice(start, 11), files / f"part-{i}.parquet")
    scan(config_of(tmp_path, survey, classifier, catalogue=str(files), **options))
    assert scores_of(tmp_path) == pytest.approx(scores_of(scanned), abs=1e-5)


def test_bfloat16_agrees(scanned, survey, classifier, tmp_path):
    scan(config_of(tmp_path, survey, classifier, precision="bfloat16"))
    assert scores_of(tmp_path) == pytest.approx(scores_of(scanned), abs=0.01)


def test_damage_is_set_aside_with_its_reason_and_the_rest_is_scored(survey, classifier, tmp_path):
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    names = catalogue_of(survey)["tile"].unique().to_pylist()
    data = [(survey / "tiles" / f"{name}.fits").read_bytes() for name in names]
    (tiles / f"{names[0]}.fits").write_bytes(data[0])
    (tiles / f"{names[1]}.fits").write_bytes(data[1][: len(data[1]) // 2])
    rows = catalogue_of(survey).to_pylist()
    good = [i for i, row in enumerate(rows) if row["tile"] == names[0]]
    rows[good[0]]["ra"] += 30
    rows[good[1]]["dec"] = None
    rows[good[2]]["galaxy_id"] = None
    rows[good[3]]["tile"] = "../../../etc/passwd"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "catalogue.parquet")
    scan(
        config_of(
            tmp_path, survey, classifier, tiles=str(tiles), catalogue=str(tmp_path / "catalogue.parquet")
        )
    )
    counts = Manifest.read(open_location(str(tmp_path / "scan")), "scores").counts
    per_tile = [sum(row["tile"] == name for row in rows) for name in names]
    assert counts == {
        "rows_in": len(rows),
        "not_selected": 0,
        "rows_out": len(good) - 4,
        "rejects": len(rows) - len(good) + 4,
        "rejects.unreadable_file": per_tile[1],
        "rejects.missing_image": per_tile[2],
        "rejects.outside_tile": 1,
        "rejects.bad_position": 1,
        "rejects.bad_id": 1,
        "rejects.unsafe_path": 1,
    }
    assert set(scores_of(tmp_path)) == {rows[i]["galaxy_id"] for i in good[4:]}
    outside = next(row for row in rows_of(tmp_path, "scan/rejects") if row["reason"] == "outside_tile")
    assert outside["id_text"] == str(rows[good[0]]["galaxy_id"])
    assert outside["item"] == names[0]


def test_a_catalogue_that_lacks_a_column(survey, classifier, tmp_path):
    renamed = catalogue_of(survey).rename_columns({"dec": "decl"})
    pq.write_table(renamed, tmp_path / "catalogue.parquet")
    config = config_of(tmp_path, survey, classifier, catalogue=str(tmp_path / "catalogue.parquet"))
    with pytest.raises(MissingColumnError, match=r"'dec' \(did you mean 'decl'"):
        scan(config)
    assert not (tmp_path / "scan").exists() or not list((tmp_path / "scan").iterdir())


@pytest.mark.parametrize("content", [b"not Parquet", None], ids=["damaged", "absent"])
def test_a_catalogue_that_cannot_be_read(survey, classifier, tmp_path, content):
    place = tmp_path / "catalogue.parquet"
    if content:
        place.write_bytes(content)
    with pytest.raises(InputError, match="--catalogue"):
        scan(config_of(tmp_path, survey, classifier, catalogue=str(place)))


def test_no_source_left_is_an_error_that_says_why(survey, classifier, tmp_path):
    with pytest.raises(EmptyInputError, match="missing_image"):
        scan(config_of(tmp_path / "a", survey, classifier, tiles=str(tmp_path / "elsewhere")))
    count = len(catalogue_of(survey))
    with pytest.raises(EmptyInputError, match=f"is left to scan: {count} are not selected"):
        scan(config_of(tmp_path / "b", survey, classifier, select="dec > 90"))


def test_a_finished_scan_is_never_overwritten(scanned, survey, classifier):
    config = config_of(scanned, survey, classifier)
    with pytest.raises(PublishError, match="--resume"):
        scan(config)
    before = (scanned / "candidates/manifest.json").read_bytes()
    resumed = scan(config_of(scanned, survey, classifier, resume=True))
    assert resumed.kind == "candidates"
    assert (scanned / "candidates/manifest.json").read_bytes() == before


def test_new_candidates_from_the_scores_that_stand(scanned, survey, classifier, tmp_path):
    median = float(np.median(list(scores_of(scanned).values())))
    written = (scanned / "scan/manifest.json").stat().st_mtime_ns
    options = {"aim": Aim(threshold=median), "candidates": str(tmp_path / "fewer")}
    again = config_of(scanned, survey, classifier, resume=True, **options)
    manifest = scan(again)
    expected = sum(np.float32(score) >= np.float32(median) for score in scores_of(scanned).values())
    assert manifest.counts["candidates"] == manifest.counts["above_threshold"] == expected
    assert manifest.lineage["threshold"] == median
    assert (scanned / "scan/manifest.json").stat().st_mtime_ns == written


@pytest.mark.timeout(600)
def test_a_killed_worker_a_killed_driver_and_a_resumed_job(scanned, survey, classifier, tmp_path):
    """Nothing is scored twice, nothing is lost, and no other work goes into a folder that was begun."""
    options = {
        "root": tmp_path,
        "catalogue": survey / "catalogue.parquet",
        "tiles": survey / "tiles",
        "classifier": classifier,
        "rows-per-task": 1,
        "batch-size": 16,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    log, victims = tmp_path / "log.txt", []

    def kill_a_worker(driver: int) -> None:
        if not victims and list(tmp_path.glob("scan/units/*.json")):
            victims.extend(titled(psutil.Process(driver), "ray::Map", "_do_unit")[:1])
            for worker, _ in victims:
                worker.kill()

    killed_after(8, JobProcess("scan", *words, log=log), tmp_path / "scan", meanwhile=kill_a_worker)
    assert victims
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scan/units/*.json")}
    with pytest.raises(PublishError, match="another catalogue, or with other columns, selection"):
        scan(config_of(tmp_path, survey, classifier, resume=True, rows_per_task=1, select="dec > 90"))
    with pytest.raises(PublishError, match="other options"):
        scan(config_of(tmp_path, survey, classifier, resume=True, rows_per_task=1, cutout_px=40))
    assert done == {path: path.stat().st_mtime_ns for path in done}  # what stood was left alone
    assert JobProcess("scan", *words, "--resume", log=log).end() == 0, log.read_text()[-3000:]
    assert scores_of(tmp_path) == pytest.approx(scores_of(scanned), abs=1e-5)
    manifest = Manifest.read(open_location(str(tmp_path / "scan")), "scores")
    assert manifest.counts["rows_in"] == manifest.counts["rows_out"] == len(catalogue_of(survey))
    assert {path.name for path in (tmp_path / "scan").iterdir()} == {"manifest.json", "shards"}


def test_scores_of_another_classifier_are_not_gone_on_with(scanned, survey, tmp_path):
    other = published_classifier(tmp_path, ClassifierConfig("resnet-tiny", SIZE_PX), seed=1)
    config = config_of(scanned, survey, other, resume=True, candidates=str(tmp_path / "candidates"))
    with pytest.raises(PublishError, match="another classifier"):
        scan(config)


def test_candidates_open_in_astropy(scanned):
    scores = scores_of(scanned)
    best_first = sorted(scores, key=lambda galaxy_id: (-scores[galaxy_id], galaxy_id))
    formats = {
        "parquet": "parquet",
        "csv": "ascii.csv",
        "ecsv": "ascii.ecsv",
        "fits": "fits",
        "vot": "votable",
    }
    for extension, form in formats.items():
        table = Table.read(scanned / "candidates" / f"candidates.{extension}", format=form)
        assert table["galaxy_id"].tolist() == best_first
        assert table["rank"].tolist() == list(range(1, len(scores) + 1))
    html = (scanned / "candidates/index.html").read_text()
    assert all(str(galaxy_id) in html for galaxy_id in best_first)
    assert html.count("data:image/jpeg") == len(scores)


def test_candidates_as_hats_open_in_lsdb(scanned, survey, classifier, tmp_path):
    place = open_location(str(tmp_path / "candidates"))
    scan(config_of(scanned, survey, classifier, resume=True, hats=True, candidates=place.uri))
    rows = open_catalog(f"{place.uri}/candidates.hats").compute()
    assert set(rows["galaxy_id"]) == set(scores_of(scanned))
    files = [path for path in (tmp_path / "candidates").rglob("*") if path.is_file()]
    written = {path.relative_to(place.uri).as_posix() for path in files}
    assert written - {file.path for file in Manifest.read(place).files} == {"manifest.json"}


def test_only_the_best_become_candidates_and_an_ensemble_tells_its_spread(survey, classifier, tmp_path):
    second = published_classifier(tmp_path / "second", ClassifierConfig("resnet-tiny", SIZE_PX), seed=1)
    options = {"ensemble": (second,), "turns": True, "max_candidates": 5, "aim": Aim(threshold=0.0)}
    manifest = scan(config_of(tmp_path, survey, classifier, **options))
    scores = scores_of(tmp_path)
    table = pq.read_table(tmp_path / "candidates/candidates.parquet")
    assert table["galaxy_id"].to_pylist() == sorted(scores, key=lambda i: (-scores[i], i))[:5]
    counts = {"candidates": 5, "above_threshold": len(scores), "random_arm": 0, "sources": len(scores)}
    assert manifest.counts == counts
    assert (table["score_sd"].to_numpy() > 0).all()
    both = Ensemble.read((open_location(classifier), open_location(second)), turns=True)
    tuned = both.tuned(Decision.read(both.classifiers[0]))
    assert manifest.lineage["temperature"] == tuned.temperature != 1
    assert set(Manifest.read(open_location(str(tmp_path / "scan"))).parents) == {classifier, second}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ClassifierConfig("resnet-tiny", SIZE_PX, targets=(RING,)),
            "does not look for 'dust_lane_early_type'",
        ),
        (ClassifierConfig("resnet-tiny", 64), "takes images of 64 px"),
    ],
)
def test_an_ensemble_of_unlike_classifiers(survey, classifier, tmp_path, config, message):
    other = published_classifier(tmp_path / "other", config, seed=1)
    with pytest.raises(ConfigError, match=message):
        scan(config_of(tmp_path, survey, classifier, ensemble=(other,)))


def written_as(name: str, table: pa.Table, folder: Path) -> str:
    """Write a catalogue without its tiles' names, as another survey's archive would."""
    columns = {"OBJID": "galaxy_id", "RA": "ra", "DEC": "dec"}
    plain = Table({theirs: table[ours].to_numpy() for theirs, ours in columns.items()})
    plain["TYPE"] = np.where(np.arange(len(plain)) % 4 == 0, "PSF", "DEV")
    path = folder / name
    if name == "hats":
        arrow = pa.table({n: np.asarray(plain[n]).tolist() for n in plain.colnames})
        files = {
            "main/dataset/Norder=0/Dir=0/Npix=0": arrow.slice(0, 20),
            "main/dataset/Norder=0/Dir=0/Npix=1": arrow.slice(20),
            "main/dataset/data_thumbnail": arrow.slice(0, 5),
            "main_10arcs/dataset/Norder=0/Dir=0/Npix=0": arrow.slice(15, 10),  # a neighbour's rows again
        }
        for file, rows in files.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows, path / f"{file}.parquet")
        named = "#HATS Collection\nhats_primary_table_url=main\nall_margins=main_10arcs\n"
        (path / "collection.properties").write_text(named)
    else:
        plain.write(path, format={"csv": "ascii.csv", "vot": "votable"}.get(name.split(".")[1], "fits"))
    return str(path)


@pytest.mark.parametrize("name", ["t.fits", "t.vot", "t.csv", "hats"])
def test_catalogues_of_other_archives(scanned, survey, classifier, tmp_path, name):
    """Without tiles' names, with other columns, and some rows not wanted: the same scores."""
    catalogue = written_as(name, catalogue_of(survey), tmp_path)
    scan(config_of(tmp_path, survey, classifier, catalogue=catalogue, select="type != 'PSF'"))
    ids = catalogue_of(survey)["galaxy_id"].to_pylist()
    wanted = {galaxy_id for i, galaxy_id in enumerate(ids) if i % 4}
    counts = Manifest.read(open_location(str(tmp_path / "scan")), "scores").counts
    assert counts == {
        "rows_in": len(ids),
        "rows_out": len(wanted),
        "rejects": 0,
        "not_selected": len(ids) - len(wanted),
    }
    expected = {galaxy_id: score for galaxy_id, score in scores_of(scanned).items() if galaxy_id in wanted}
    assert scores_of(tmp_path) == pytest.approx(expected, abs=1e-5)


def test_known_objects_a_random_arm_and_a_report(scanned, survey, classifier, tmp_path):
    rows = catalogue_of(survey).slice(0, 3)
    known = tmp_path / "known.txt"
    lines = [f"NGC{i} {row['ra']} {row['dec'] + 1 / 3600}" for i, row in enumerate(rows.to_pylist())]
    known.write_text("\n".join(["---", *lines, "NGC9 10.0 80.0"]))
    columns = Columns(galaxy_id="col1", ra="col2", dec="col3")
    options = {"known": str(known), "known_columns": columns, "random_share": 0.3, "survey_prevalence": 0.01}
    manifest = scan(config_of(tmp_path, survey, classifier, aim=Aim(number=4), **options))
    table = pq.read_table(tmp_path / "candidates/candidates.parquet")
    scores = scores_of(tmp_path)
    assert scores == pytest.approx(scores_of(scanned), abs=1e-5)
    assert table["rank"].to_pylist()[:4] == [1, 2, 3, 4]
    assert table["image"].null_count == 0
    drawn = {row["galaxy_id"] for row in rows_of(tmp_path) if row["random_arm"]}
    best = sorted(scores, key=lambda i: (-scores[i], i))[:4]
    assert set(table["galaxy_id"].to_pylist()) == drawn | set(best)
    assert manifest.counts["random_arm"] == len(drawn) > 4
    assert manifest.lineage["threshold"] == pytest.approx(scores[best[-1]])
    assert manifest.counts["above_threshold"] == manifest.counts["candidates"] == 4
    report = (tmp_path / "candidates/report.md").read_text()
    assert "Of 4 known objects 3 lie within 3 arcsec of a scored source" in report
    assert "true ones among them" in report
    assert 0 <= manifest.lineage["expected"]["purity"]["low"] <= 1
    given = {i: "A" if i in best else "reject" for i in drawn | set(best)}
    grades = grades_csv(tmp_path / "ada.csv", "Ada", given)
    vet(VetConfig(root=str(tmp_path), source="mock", survey="mock", grades=(grades,)))
    assert "Completeness" in (tmp_path / "vetted/report.md").read_text()
    assert "The list holds 1.000" in (tmp_path / "vetted/report.md").read_text()


def galaxies_in(folder: Path) -> dict[int, np.ndarray]:
    """Publish galaxy shards, one image damaged; returns what the good ones decode to."""
    rng = np.random.default_rng(3)
    images = {i: np.full((SIZE_PX, SIZE_PX, 3), rng.integers(20, 230, 3), np.uint8) for i in range(40)}
    rows = [
        {
            "galaxy_id": i,
            "survey": "made",
            "votes": [float("nan")] * N_ANSWERS,
            "image": encode_jpeg(rgb) if i != 7 else encode_jpeg(rgb)[:100],
            "height": SIZE_PX,
            "width": SIZE_PX,
            "split": "train",
            "source": "real",
            "provenance": json.dumps({"image": f"images/{i}.jpg"}),
        }
        for i, rgb in images.items()
    ]
    location = open_location(str(folder))
    with publish(location, "galaxies") as publication:
        table = pa.Table.from_pylist(rows, schema=GALAXY_SCHEMA)
        publication.add(write_parquet(location, "shards/part-00000.parquet", table))
    return {i: rgb for i, rgb in images.items() if i != 7}


def test_galaxies_whose_cutouts_are_already_made(survey, classifier, tmp_path):
    images = galaxies_in(tmp_path / "galaxies")
    scan(config_of(tmp_path, survey, classifier, galaxies=str(tmp_path / "galaxies")))
    manifest = Manifest.read(open_location(str(tmp_path / "scan")), "scores")
    assert (manifest.counts["rows_in"], manifest.counts["rows_out"]) == (40, 39)
    assert manifest.counts["rejects.truncated_image"] == 1
    assert str(tmp_path / "galaxies") in manifest.parents
    model = network.open_published(open_location(classifier))
    said = network.predict(model, np.stack(list(images.values()))).targets[:, 0]
    # plain colours survive JPEG to one level or two
    assert scores_of(tmp_path) == pytest.approx(dict(zip(images, said.tolist(), strict=True)), abs=0.01)
    assert {row["tile"] for row in rows_of(tmp_path)} == {f"images/{i}.jpg" for i in images}


def grades_csv(path: Path, grader: str, grades: dict[int, str]) -> str:
    lines = [f"{galaxy_id},{grade},{grader}" for galaxy_id, grade in grades.items()]
    path.write_text("\n".join(["galaxy_id,grade,grader", *lines]))
    return str(path)


def test_grades_become_a_graded_catalogue_and_labelled_galaxies(scanned, tmp_path):
    best = Table.read(scanned / "candidates/candidates.fits")["galaxy_id"].tolist()
    ada = grades_csv(tmp_path / "ada.csv", "Ada", {best[0]: "A", best[1]: "reject", best[2]: "C", 12345: "A"})
    bea = grades_csv(tmp_path / "bea.csv", "Bea", {best[0]: "B", best[1]: "reject", best[3]: "B"})
    options = {"candidates": str(scanned / "candidates"), "grades": (ada, bea), "survey": "mock"}
    manifest = vet(VetConfig(root=str(tmp_path), source="mock", **options))
    told = {"rows_in": 7, "rows_out": 6, "rejects": 1, "candidates": len(best), "graded": 4, "unclear": 1}
    assert told.items() <= manifest.counts.items()
    graded = Table.read(tmp_path / "vetted/graded.fits")
    assert graded["galaxy_id"].tolist() == best
    assert [str(grade) for grade in graded["grade"][:4]] == ["B", "reject", "C", "B"]
    stranger = pq.read_table(tmp_path / "vetted/rejects/part-00000.parquet").to_pylist()
    assert [row["reason"] for row in stranger] == ["grade_without_candidate"]
    taught = open_location(str(tmp_path / "vetted-galaxies"))
    galaxies = read_shards(taught, "galaxies").to_pandas()
    decided = {best[0]: "", best[1]: "not_", best[3]: ""}
    teaching = [i for i in decided if split_of(np.array([i]))[0] == "train"]
    assert dict(zip(galaxies["galaxy_id"], galaxies["label"], strict=True)) == {
        i: f"{decided[i]}dust_lane_early_type" for i in teaching
    }
    counts = Manifest.read(taught, "galaxies").counts
    assert counts["confirmed"] + counts["refuted"] == counts["rows_out"] == len(teaching) > 0
    assert counts["would_judge"] == 3 - len(teaching)
    with pytest.raises(PublishError, match="--resume"):
        vet(VetConfig(root=str(tmp_path), **options))


def test_where_nothing_may_teach_the_graded_catalogue_is_published_all_the_same(scanned, tmp_path, capfd):
    best = Table.read(scanned / "candidates/candidates.fits")["galaxy_id"].tolist()
    grades = grades_csv(tmp_path / "grades.csv", "Ada", {best[0]: "C"})
    config = VetConfig(root=str(tmp_path), candidates=str(scanned / "candidates"), grades=(grades,))
    assert vet(config).counts["unclear"] == 1
    assert "vet: nothing to learn from" in capfd.readouterr().err
    assert not (tmp_path / "vetted-galaxies").exists()
    assert vet(replace(config, resume=True)).counts["unclear"] == 1


def test_a_later_file_of_the_same_grader_wins(scanned, tmp_path):
    best = Table.read(scanned / "candidates/candidates.fits")["galaxy_id"].tolist()
    place = next(i for i, split in enumerate(split_of(np.array(best))) if split == "train")
    first = grades_csv(tmp_path / "1.csv", "Ada", {best[place]: "A"})
    second = grades_csv(tmp_path / "2.csv", "Ada", {best[place]: "reject"})
    config = VetConfig(root=str(tmp_path), candidates=str(scanned / "candidates"), grades=(first, second))
    assert vet(config).counts["rows_in"] == 1
    graded = pq.read_table(io.BytesIO((tmp_path / "vetted/graded.parquet").read_bytes()))
    assert graded["grade"][place].as_py() == "reject"
