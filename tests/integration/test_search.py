"""A search that is killed, and a study: finished work is kept, and nothing is done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow import MlflowClient

from galray.core.cluster import connect
from galray.core.manifest import MANIFEST, Manifest, publish, write_parquet
from galray.core.schema import GALAXY_SCHEMA, LABEL_ANSWERS, split_of
from galray.core.storage import open_location
from galray.data.images import encode_jpeg
from galray.diffusion.denoiser import build_denoiser
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.train import PRESETS as DENOISERS
from galray.search.study import PRESETS as STUDIES
from galray.search.study import study
from tests.integration.processes import JobProcess

GALAXIES, SIZE_PX = 300, 32
LABELS = tuple(LABEL_ANSWERS)  # five morphologies and the dust lanes
SEARCH = ("--guidance-scales", "1", "2", "--synthesize.count", "16", "--synthesize.num-steps", "2")
pytestmark = [  # of Ray's own, which runs in this process too, and of diffusers'
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def publish_galaxies(root: Path) -> None:
    """Publish noise as galaxies of every class and split."""
    random, ids = np.random.default_rng(0), np.arange(GALAXIES)
    images = random.integers(0, 256, (GALAXIES, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    rows = [
        {
            "galaxy_id": i,
            "survey": "test",
            "label": LABELS[i % len(LABELS)],
            "image": encode_jpeg(images[i]),
            "height": SIZE_PX,
            "width": SIZE_PX,
            "split": split,
            "source": "mock",
            "provenance": "{}",
        }
        for i, split in zip(ids.tolist(), split_of(ids), strict=True)
    ]
    location = open_location(str(root / "galaxies"))
    with publish(location, "galaxies") as publication:
        table = pa.Table.from_pylist(rows, schema=GALAXY_SCHEMA)
        publication.add(write_parquet(location, "shards/part-0.parquet", table))


def publish_denoiser(root: Path, folder: Path) -> None:
    """Publish a denoiser that has not learnt anything."""
    config = DENOISERS["debug"].config
    denoiser = build_denoiser(config.denoiser, config.start.codec(), config.objective)
    GalaxyPipeline.from_denoiser(denoiser.eval()).save_pretrained(folder)
    with publish(open_location(str(root / "denoiser")), "denoiser") as publication:
        publication.add_folder(folder)
        publication.lineage = {"splits": ["train"]}


def through(root: Path) -> dict[str, str]:
    """Return the manifest of each seed that is through."""
    return {str(path): path.read_text() for path in (root / "search/trials").rglob(MANIFEST)}


def ended(root: Path) -> int:
    return len(list((root / "search/trials").glob("*/ended.json")))


@pytest.mark.timeout(1800)
def test_a_killed_search_keeps_what_has_ended(tmp_path: Path) -> None:
    """Each point is tried once, whoever was killed meanwhile, and has one run in MLflow."""
    root, log = tmp_path / "run", tmp_path / "log.txt"
    publish_galaxies(root)
    publish_denoiser(root, tmp_path / "saved")
    options = ("debug", "--root", str(root), *SEARCH, "--resume")
    job = JobProcess("tune", *options, log=log)
    job.wait_for(lambda: ended(root) >= 1)
    job.kill_all()
    kept = through(root)
    assert kept
    assert JobProcess("tune", *options, log=log).end() == 0, log.read_text()[-4000:]
    assert kept.items() <= through(root).items()
    assert_whole(root)
    assert_one_run_each(root)


def assert_whole(root: Path) -> None:
    """Three points, each once, the best of them judged on test galaxies."""
    search = root / "search"
    Manifest.read(open_location(str(search)), "search")
    points, trials = pd.read_csv(search / "points.csv"), pd.read_parquet(search / "trials.parquet")
    assert sorted(points["guidance_scale"]) == sorted(trials["guidance_scale"]) == [0.0, 1.0, 2.0]
    assert points["complete"].iloc[0]
    best = json.loads((search / "best.json").read_text())
    assert best["point"]["guidance_scale"] == points["guidance_scale"].iloc[0]
    assert 0 <= best["test"]["chosen"]["average_precision"]["value"] <= 1
    assert not list(search.rglob("checkpoint_*"))
    assert len(list((root / "search-synthetic").iterdir())) == 2


def assert_one_run_each(root: Path) -> None:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("galray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    searches = [run.info.status for run in runs if run.data.tags.get("galray.job") == "tune"]
    assert sorted(searches) == ["FINISHED", "KILLED"]
    of_points = [run for run in runs if "galray.point" in run.data.tags]
    assert len({run.data.tags["galray.point"] for run in of_points}) == len(of_points) == 3
    assert {run.info.status for run in of_points} == {"FINISHED"}


@pytest.fixture
def _local_ray() -> Iterator[None]:
    with connect():
        yield


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_local_ray")
def test_study_reports_and_keeps_what_stands(tmp_path: Path) -> None:
    """The debug study ends with a report; run again, it trains nothing that it has."""
    publish_galaxies(tmp_path)
    config = replace(STUDIES["debug"].config, root=str(tmp_path))
    manifest = study(config)
    assert manifest.counts["cells"] == 2
    report = (tmp_path / "study/report.md").read_text()
    assert "synthetic galaxies" in report
    cells = {path: path.read_bytes() for path in (tmp_path / "study/12-of-each/seed-0").rglob(MANIFEST)}
    assert (
        len(cells) == 6
    )  # the list, what the first classifier adds, the denoiser, its galaxies, two classifiers
    denoiser = Manifest.read(open_location(str(tmp_path / "study/12-of-each/seed-0/denoiser")))
    assert denoiser.lineage["labelled"].endswith("/seed-0/labelled/galaxies.parquet")
    assert {uri.rsplit("/", 1)[-1] for uri in denoiser.parents} == {
        "galaxies",
        "pretrained",
        "labels-of-real-only",
    }
    (tmp_path / "study" / MANIFEST).unlink()
    study(replace(config, resume=True))
    assert {path: path.read_bytes() for path in cells} == cells
