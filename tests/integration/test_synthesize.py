"""Synthesis on a real local Ray: the same galaxies however many workers, and whoever is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import torch
from ray import cloudpickle

from galray.core import units
from galray.core.cluster import Scaling
from galray.core.errors import EmptyInputError, LineageError, PublishError
from galray.core.manifest import Manifest, ancestry, publish, standing, write_parquet
from galray.core.schema import GALAXY_SCHEMA, N_ANSWERS
from galray.core.storage import open_location
from galray.data.batches import votes_of_class
from galray.data.images import encode_png
from galray.data.labelled import Labelled
from galray.data.lineage import refuse_other_labels
from galray.diffusion.denoiser import DenoiserConfig, build_denoiser
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.synthesize import SynthesizeConfig, synthesize
from tests.integration import services
from tests.integration.processes import JobProcess, killed_after

TINY = DenoiserConfig(
    size_px=8, fold=2, channels=(16, 32), attention=(False, True), head_dim=16, token_dim=16, norm_groups=8
)
RECIPE = """
- label: lanes
  answers: {smooth: 0.9, dust_lane:1.3: 0.8}
  guidance_scale: 3
- label: more spirals
  votes_of: spiral
  count: 9
"""
COUNTS = {"lanes": 15, "more spirals": 9}
BATCH_SIZE = 3
UNITS = 8
_LONG_S = 300  # seconds on a quiet machine
pytestmark = [  # of Ray's own, which runs in this process
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    with services.local_ray():
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import a test
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder with a denoiser, galaxies and a recipe."""
    root = tmp_path_factory.mktemp("synthesis")
    torch.manual_seed(0)
    denoiser = build_denoiser(TINY).eval()
    torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.1)
    with tempfile.TemporaryDirectory() as folder:
        GalaxyPipeline.from_denoiser(denoiser).save_pretrained(folder)
        with publish(open_location(str(root / "denoiser")), "denoiser") as publication:
            publication.add_folder(Path(folder))
    publish_galaxies(root)
    (root / "recipe.yaml").write_text(RECIPE)
    return root


def publish_galaxies(root: Path) -> None:
    """Four training spirals with votes of their own, one in the test split, and an early type."""
    place, votes = open_location(str(root / "galaxies")), np.random.default_rng(0).random((6, N_ANSWERS))
    image = encode_png(np.zeros((8, 8, 3), np.uint8))
    base = {"survey": "x", "image": image, "height": 8, "width": 8, "source": "real", "provenance": "{}"}
    rows = [
        base
        | {"galaxy_id": 100 + i, "votes": votes[i].tolist()}
        | {"label": "early" if i == 5 else "spiral", "split": "test" if i == 4 else "train"}
        for i in range(6)
    ]
    with publish(place, "galaxies") as publication:
        table = pa.Table.from_pylist(rows, schema=GALAXY_SCHEMA)
        publication.add(write_parquet(place, "shards/part-00000.parquet", table))


def config_of(root: Path, output: str, **options: Any) -> SynthesizeConfig:
    return SynthesizeConfig(
        root=str(root),
        output=str(root / output),
        recipe=str(root / "recipe.yaml"),
        count=COUNTS["lanes"],
        batch_size=BATCH_SIZE,
        num_steps=40,
        **options,
    )


def painted(root: Path, output: str) -> dict[int, dict[str, Any]]:
    """Return the galaxies that the manifest names, by id; none of them is there twice."""
    location = open_location(str(root / output))
    manifest = Manifest.read(location, "synthetic")
    rows = pads.dataset(manifest.paths(location, "shards")).to_table().to_pylist()
    assert manifest.counts == {"rows_in": len(rows), "rows_out": len(rows), "rejects": 0}
    assert {path.name for path in (root / output).iterdir()} == {"manifest.json", "shards"}
    assert len(list((root / output / "shards").iterdir())) == len(manifest.files) == UNITS
    galaxies = {row["galaxy_id"]: row | {"votes": str(row["votes"])} for row in rows}  # nan is not nan
    assert len(galaxies) == len(rows)
    return galaxies


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> dict[int, dict[str, Any]]:
    """The galaxies of a run with two workers that nothing befell."""
    synthesize(config_of(root, "undisturbed", scaling=Scaling(workers=2)))
    return painted(root, "undisturbed")


def test_exactly_what_was_asked_for(undisturbed, root):
    labels = [row["label"] for row in undisturbed.values()]
    assert {label: labels.count(label) for label in COUNTS} == COUNTS
    told = [json.loads(row["provenance"]) for row in undisturbed.values()]
    assert {one["guidance_scale"] for one in told if "votes_of" not in one} == {3.0}
    donors = [one["votes_of_galaxy"] for one in told if "votes_of" in one]
    assert {donor: donors.count(donor) >= 2 for donor in range(100, 104)} == dict.fromkeys(donors, True)
    assert set(Manifest.read(open_location(str(root / "undisturbed"))).parents) == {
        str(root / "denoiser"),
        str(root / "galaxies"),
    }


def test_the_same_galaxies_from_one_worker_and_larger_tasks(undisturbed, root, monkeypatch):
    monkeypatch.setattr(units, "_TASKS", 2)
    synthesize(config_of(root, "one-worker", scaling=Scaling(workers=1)))
    assert painted(root, "one-worker") == undisturbed


def test_votes_of_a_class_come_from_training_galaxies_alone(root):
    galaxies = open_location(str(root / "galaxies"))
    assert votes_of_class(galaxies, "spiral")["galaxy_id"].to_pylist() == [100, 101, 102, 103]
    with pytest.raises(EmptyInputError, match=r"0 training galaxies are 'spirals' .*did you mean 'spiral'"):
        votes_of_class(galaxies, "spirals")


def test_variations_are_of_the_galaxies_whose_labels_may_be_used(root):
    """Of two spirals that are listed, each as often; who may know other labels must not learn from them."""
    table, config = root / "list.csv", config_of(root, "varied")
    table.write_text("galaxy_id\n101\n103\n")
    asked = replace(config, recipe="gz5_as_real", labelled=str(table), start_time=0.95, guidance_scale=0.0)
    with pytest.raises(EmptyInputError, match="completely_round_smooth"):
        synthesize(replace(asked, output=str(root / "none-known")))
    (root / "spirals.yaml").write_text("- {label: spiral, votes_of: spiral}\n")
    synthesize(replace(asked, recipe=str(root / "spirals.yaml"), count=4))
    varied, labelled = open_location(str(root / "varied")), Labelled.read(open_location(str(table)))
    rows = pads.dataset(Manifest.read(varied).paths(varied, "shards")).to_table()
    donors = [json.loads(text)["votes_of_galaxy"] for text in rows["provenance"].to_pylist()]
    assert sorted(donors) == [101, 101, 103, 103]
    assert Manifest.read(varied).parents.keys() >= {str(root / "galaxies"), str(table)}
    refuse_other_labels(ancestry(varied), labelled, "x")
    (root / "fewer.csv").write_text("galaxy_id\n101\n")
    with pytest.raises(LineageError, match="has known labels"):
        refuse_other_labels(ancestry(varied), Labelled.read(open_location(str(root / "fewer.csv"))), "x")


@pytest.mark.timeout(600)
def test_a_killed_driver_and_a_resumed_job(undisturbed, root):
    """Nothing is painted twice, nothing is lost, and no other work goes into a folder that was begun."""
    begun = root / "killed"
    options = {
        "root": root,
        "output": begun,
        "recipe": root / "recipe.yaml",
        "count": 15,
        "batch-size": 3,
        "num-steps": 40,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    job = JobProcess("synthesize", *words, "--scaling.workers", "1", log=root / "log.txt")
    killed_after(2, job, begun)
    done = {p: p.stat().st_mtime_ns for p in (begun / "shards").iterdir() if recorded(begun, p)}
    assert 2 <= len(done) < UNITS
    with pytest.raises(PublishError, match="unfinished"):
        standing(open_location(str(begun)), "synthetic", resume=False)
    with pytest.raises(PublishError, match="other options"):
        synthesize(replace(config_of(root, "killed", resume=True), seed=1))
    assert JobProcess("synthesize", *words, "--resume", log=root / "log.txt").end() == 0
    assert painted(root, "killed") == undisturbed
    again = {path: path.stat().st_mtime_ns for path in done}
    assert again == done  # what stood was left alone


def recorded(output: Path, shard: Path) -> bool:
    return (output / f"units/{shard.stem}.json").exists()


class DieOnce:
    """A unit's work, whose process is killed in the middle of unit 3, the first time."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        if unit["unit"] == 3 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with self._marker.open("a") as log:
            log.write(f"{unit['unit']}\n")
        return pa.table({"number": [unit["unit"]] * 2, "reason": pa.nulls(2, pa.string())})


def test_a_killed_worker(tmp_path, monkeypatch):
    """Ray starts another, which leaves alone the units of its task that are done."""
    monkeypatch.setattr(units, "_TASKS", 2)
    schema, marker = pa.schema({"number": pa.int64()}), tmp_path / "marker"
    with publish(open_location(str(tmp_path / "out")), "numbers") as publication:
        table = pa.table({"unit": range(10)})
        units.write_units(table, DieOnce, (marker,), publication, schema, plan={}, concurrency=1)
    assert publication.counts == {"rows_in": 20, "rows_out": 20, "rejects": 0}
    numbers = pads.dataset(tmp_path / "out/shards").to_table()["number"].to_pylist()
    assert sorted(numbers) == sorted([*range(10), *range(10)])
    done = [int(n) for n in marker.read_text().split()]
    assert sorted(done) == list(range(10))  # each once
    # In order within each of the two tasks; which of them ends first, the killed one or not, is for Ray.
    assert [n for n in done if n < 5] == list(range(5))
    assert [n for n in done if n >= 5] == list(range(5, 10))
