"""The fidelity report on a real local Ray: of a painter that copies at times; and leaks that are refused.

What is painted here is the mock survey's own light, as a perfect denoiser would paint it, but for some
training galaxies among it; the classifier is trained by its job, on classes alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from galray.classifier.train import PRESETS as CLASSIFIERS
from galray.classifier.train import classify
from galray.core.errors import EmptyInputError, LineageError
from galray.core.manifest import Manifest, publish, write_parquet
from galray.core.schema import GALAXY_SCHEMA, LABEL_ANSWERS, N_ANSWERS, split_of
from galray.core.storage import Location, open_location
from galray.data.images import decode_rgb, encode_jpeg, encode_png
from galray.data.mock import MockConfig, cutout_jpeg, draw_truth
from galray.evaluation.evaluate import PRESETS, EvaluateConfig, evaluate
from tests.integration import services

SIZE_PX = 32
COUNT = 260
COPIED = ("spiral", "in_between_smooth")
pytestmark = [  # of Ray's own, which runs in this process
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    with services.local_ray():
        yield


def mock_galaxies(start: int, stop: int) -> list[dict[str, Any]]:
    """Render galaxies of the labels that classes go by: id, label and image."""
    config = MockConfig(size_px=SIZE_PX, pixel_scale_arcsec=0.8, seed=3)
    rows = [row for row in draw_truth(config, start, stop).to_pylist() if row["label"] in LABEL_ANSWERS]
    return [
        {**{k: row[k] for k in ("galaxy_id", "label")}, "image": cutout_jpeg(config, row)} for row in rows
    ]


def write_galaxies(
    place: Location, kind: str, galaxies: list[dict[str, Any]], parents: dict[str, str]
) -> dict[str, str]:
    """Publish galaxies; return what their children call them."""
    common = {
        "survey": "mock", "votes": [float("nan")] * N_ANSWERS, "height": SIZE_PX, "width": SIZE_PX,
        "source": "real" if kind == "galaxies" else kind, "provenance": "{}",
    }  # fmt: skip
    splits = split_of(np.array([galaxy["galaxy_id"] for galaxy in galaxies]))
    rows = [{**common, **galaxy, "split": split} for galaxy, split in zip(galaxies, splits, strict=True)]
    with publish(place, kind, parents=parents) as publication:
        table = pa.Table.from_pylist(rows, schema=GALAXY_SCHEMA)
        publication.add(write_parquet(place, "shards/part-00000.parquet", table))
    return {place.uri: Manifest.read(place).fingerprint}


def write_model(place: Location, kind: str, trained_on: dict[str, str], splits: list[str]) -> dict[str, str]:
    """Publish what a trained model says of its training; nothing here asks for its weights."""
    with publish(place, kind, parents=trained_on) as publication:
        publication.write("lineage.json", json.dumps(splits))
        publication.lineage = {"trained_on": trained_on, "splits": splits}
    return {place.uri: Manifest.read(place).fingerprint}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Galaxies, a classifier of their classes, and synthetic galaxies of two denoisers."""
    root = tmp_path_factory.mktemp("fidelity")
    place = open_location(str(root))
    real, painted = mock_galaxies(0, 2 * COUNT), mock_galaxies(10_000, 10_000 + COUNT)
    galaxies = write_galaxies(place / "galaxies", "galaxies", real, {})
    painted = [{**galaxy, "galaxy_id": -1 - i} for i, galaxy in enumerate(painted)]
    denoiser = write_model(place / "denoiser", "denoiser", galaxies, ["train"])
    synthetic = write_galaxies(place / "synthetic", "synthetic", with_copies(painted, real), denoiser)
    leaky = write_model(place / "leaky", "denoiser", galaxies, ["train", "validation"])
    write_galaxies(place / "leaked", "synthetic", painted, leaky)
    write_model(place / "augmented", "classifier", galaxies | synthetic, ["train"])
    classify(replace(CLASSIFIERS["debug"].config, root=str(root), target="", output="{root}/reference"))
    return root


def with_copies(painted: list[dict[str, Any]], real: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put turned training galaxies in the place of painted ones of two classes."""
    copied = [dict(galaxy) for galaxy in painted]
    for label in COPIED:
        training = [
            g for g in real if g["label"] == label and split_of(np.array([g["galaxy_id"]]))[0] == "train"
        ]
        places = [galaxy for galaxy in copied if galaxy["label"] == label]
        for turns, (place, source) in enumerate(zip(places, training, strict=False)):
            place["image"] = encode_png(np.rot90(decode_rgb(source["image"]), turns % 4))
    return copied


def is_training(galaxy: dict[str, Any]) -> bool:
    return split_of(np.array([galaxy["galaxy_id"]]))[0] == "train"


def config_of(root: Path, **options: Any) -> EvaluateConfig:
    return replace(PRESETS["debug"].config, root=str(root), **options)


def test_report(root: Path) -> None:
    """Every galaxy is accounted for; an honest look is near the floor, and the copies are found."""
    manifest = evaluate(config_of(root, copy_quantile=0.02))
    written = {file.path for file in manifest.files}
    assert written >= {"report.md", "report.html", "metrics.json", "figures/grid.png"}
    found = json.loads((root / "evaluation/metrics.json").read_text())
    assert_accounted(root, found["counts"])
    distance = found["features"]["frechet_distance"]
    assert distance["found"]["low"] < 3 * distance["floor"]["high"]
    floor = found["brightness_floor"]
    of_known_class, training = sum(kind["count"] for kind in floor.values()), found["counts"]["training"]
    assert 0.9 * training < of_known_class <= training
    assert all(abs(kind["mean"]["value"]) < 0.5 for kind in floor.values())
    learnt = found["brightness_learnt"]
    assert {name: kind["real"] for name, kind in learnt.items()} == {
        name: kind["count"] for name, kind in floor.items()
    }
    copies = found["copies"]["pixels"]
    assert copies["synthetic"]["count"] > 4 * max(copies["held_out"]["count"], 1)
    assert "| missed |" in (root / "evaluation/report.md").read_text()
    assert (root / "evaluation/report.html").read_text().count("data:image/png;base64,") == 7
    assert_tracked(root, found)


def assert_accounted(root: Path, counts: dict[str, int]) -> None:
    ids = Manifest.read(open_location(str(root / "galaxies"))).paths(open_location(str(root / "galaxies")))
    split = pq.read_table(ids[0], columns=["split"])["split"].to_pylist()
    assert counts["real"] == split.count("validation")
    assert counts["training"] == split.count("train")
    for kind in ("real", "synthetic"):
        unmeasured = sum(n for key, n in counts.items() if key.startswith(f"unmeasured.{kind}."))
        assert counts[f"tried.{kind}"] == counts[f"measured.{kind}"] + unmeasured > 0


def assert_tracked(root: Path, found: dict[str, Any]) -> None:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("galray")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], "tags.`galray.job` = 'evaluate'")[0]
    expected = found["features"]["frechet_distance"]["found"]["value"]
    assert run.data.metrics["features.frechet_distance.found.value"] == pytest.approx(expected)
    assert "report.html" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def test_a_denoiser_that_saw_the_judges_is_refused_by_name(root: Path) -> None:
    with pytest.raises(LineageError, match=r"leaky \(denoiser\) has seen validation galaxies"):
        evaluate(config_of(root, synthetic="{root}/leaked", output="{root}/none"))
    assert not (root / "none").exists()


def test_a_classifier_that_learnt_from_synthetic_galaxies_is_refused(root: Path) -> None:
    with pytest.raises(LineageError, match=r"augmented has learnt from the synthetic galaxies .*/synthetic"):
        evaluate(config_of(root, classifier="{root}/augmented", output="{root}/none"))


def test_sets_without_a_common_class_are_refused(root: Path) -> None:
    place = open_location(str(root))
    denoiser = {(place / "denoiser").uri: Manifest.read(place / "denoiser").fingerprint}
    unlabelled = [{"galaxy_id": -1, "label": None, "image": encode_jpeg(np.zeros((32, 32, 3), np.uint8))}]
    write_galaxies(place / "unlabelled", "synthetic", unlabelled, denoiser)
    with pytest.raises(EmptyInputError, match="share no class"):
        evaluate(config_of(root, synthetic="{root}/unlabelled", output="{root}/none"))
    assert not list((root / "none").glob("*"))
