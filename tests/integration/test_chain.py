"""The whole chain as the README shows it, job by job, against a bucket and a tracking server."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from mlflow import MlflowClient

from galray.core.manifest import Manifest, ancestry, local_folder
from galray.core.shards import SHARDS
from galray.core.storage import Location, open_location
from galray.diffusion.conditions import condition
from tests.integration import services
from tests.integration.conftest import MLFLOW_PASSWORD, RunJob
from tests.integration.faulty_store import FAULTS, FaultyStore
from tests.integration.services import REPOSITORY

SECRETS = (services.S3_ACCESS_KEY, services.S3_SECRET_KEY, MLFLOW_PASSWORD)
OUTPUTS = {
    "survey": "survey",
    "galaxies": "galaxies",
    "denoiser": "denoiser",
    "synthetic": "synthetic",
    "classifier": "classifier",
    "search": "search",
    "scan": "scores",
    "candidates": "candidates",
}


def readme_commands() -> list[list[str]]:
    """Return the words of each ``python jobs/...`` command that the README shows."""
    blocks = re.findall(r"```sh\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    return [words for words in commands if words[0] == "python"]


class Chain(NamedTuple):
    """Where the whole chain has run, and all that its jobs said."""

    root: str
    said: str


def run_readme(run: RunJob, root: str, env: Mapping[str, str], store: FaultyStore) -> Chain:
    """Run the README's commands as they stand, but for the root."""
    commands, said = readme_commands(), ""
    assert len(commands) == 7
    for _, script, *options in commands:
        # Hundreds of images, each tried again after a while: how ingest bears it is another test's.
        store.at_peace = Path(script).stem in ("mock", "ingest")
        words = (root if word == "runs/try" else word for word in options)
        done = run(Path(script).stem, *words, env=env)
        assert done.returncode == 0, f"{script}: {done.stderr[-2000:]}"
        said += done.stdout + done.stderr
    return Chain(root, said)


@pytest.fixture
def chain(
    submit_job: RunJob, s3_root: str, store_at_fault: FaultyStore, mlflow_uri: str, short_folder: Path
) -> Chain:
    """The whole chain, submitted to a cluster, below a bucket's prefix; other tests start jobs directly."""
    assert mlflow_uri
    return run_readme(submit_job, s3_root, {"RAY_TMPDIR": str(short_folder / "local")}, store_at_fault)


@pytest.mark.timeout(2400)
def test_chain_in_bucket(
    chain: Chain,
    store_at_fault: FaultyStore,
    mlflow_uri: str,
    tmp_path: Path,
    short_folder: Path,
    run_job: RunJob,
) -> None:
    """The README's commands: every job publishes, tracks itself, and reads what the one before it wrote.

    One request in ten to the bucket fails or hangs, in training, search and scan too, and no job notices.
    """
    assert set(store_at_fault.spoiled) == set(FAULTS)
    root = open_location(chain.root)
    for folder, kind in OUTPUTS.items():
        manifest = Manifest.read(root / folder, kind)
        assert_files_as_recorded(root / folder, manifest)
    assert_rows_add_up(root)
    assert_ancestry(root)
    assert_runs_nested(mlflow_uri, chain.root)
    assert_paints(root / "denoiser")
    assert_grades_come_back(root, tmp_path, run_job)
    assert_nothing_secret_is_written(written(chain, short_folder))


def written(chain: Chain, services_folder: Path) -> dict[str, bytes]:
    """Return all that the chain has left, by name: its log, its objects, MLflow's records, Ray's logs."""
    root = open_location(chain.root)
    objects = {
        info.path: (root / info.path.removeprefix(f"{root.path}/")).read_bytes() for info in root.files()
    }
    files = [path for path in services_folder.rglob("*") if path.is_file() and is_record(path)]
    return {"log": chain.said.encode(), **objects, **{str(path): path.read_bytes() for path in files}}


def is_record(path: Path) -> bool:
    """Whether a file is MLflow's or one of Ray's logs; the S3 service must know its keys."""
    return bool({"mlflow", "logs"} & set(path.parts))


def assert_nothing_secret_is_written(records: dict[str, bytes]) -> None:
    for kind in ("/manifest.json", "/mlflow.db", "samples.png", "/logs/"):
        assert any(kind in name for name in records), kind
    told = [(secret, name) for name, data in records.items() for secret in SECRETS if secret.encode() in data]
    assert told == []


def assert_files_as_recorded(location: Location, manifest: Manifest) -> None:
    sizes = {info.path: info.size for info in location.files()}
    assert {f"{location.path}/{f.path}": f.bytes for f in manifest.files}.items() <= sizes.items()
    assert manifest.config["root"] == str(location.uri).rsplit("/", 1)[0]


def assert_rows_add_up(root: Location) -> None:
    survey = Manifest.read(root / "survey").counts
    galaxies, scores = Manifest.read(root / "galaxies").counts, Manifest.read(root / "scan").counts
    assert galaxies["rows_in"] == survey["labelled"] == galaxies["rows_out"] + galaxies["rejects"]
    assert scores["rows_in"] == survey["sources"] == scores["rows_out"] + scores["rejects"]
    painted = read_shards(root / "synthetic")
    assert set(painted["source"].to_pylist()) == {"synthetic"}
    assert set(painted["split"].to_pylist()) == {"train"}
    assert np.all(painted["galaxy_id"].to_numpy() < 0)


def read_shards(location: Location) -> pa.Table:
    paths = Manifest.read(location).paths(location, SHARDS)
    return pa.concat_tables(pq.read_table(path, filesystem=location.filesystem) for path in paths)


def assert_ancestry(root: Location) -> None:
    kinds = {manifest.kind for manifest in ancestry(root / "candidates").values()}
    assert kinds == {"candidates", "scores", "classifier", "galaxies", "synthetic", "denoiser"}


def assert_runs_nested(tracking_uri: str, pipeline: str) -> None:
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("galray")
    assert experiment is not None
    of_pipeline = f"tags.`galray.pipeline` = '{pipeline}'"
    parents = client.search_runs([experiment.experiment_id], of_pipeline)
    assert len(parents) == 1
    children = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'"
    )
    jobs = [run.data.tags["galray.job"] for run in children]
    assert sorted(set(jobs)) == ["classify", "ingest", "mock", "scan", "synthesize", "train", "tune"]
    assert {run.info.status for run in children} == {"FINISHED"}
    trained = next(run for run in children if run.data.tags["galray.job"] == "train")
    assert trained.data.params["steps"] == "20"
    assert [point.step for point in client.get_metric_history(trained.info.run_id, "loss")] == [5, 10, 15, 20]


def assert_paints(denoiser: Location) -> None:
    """diffusers opens the published folder, and it paints."""
    with local_folder(denoiser, "denoiser") as folder:
        pipeline: Any = DiffusionPipeline.from_pretrained(
            str(folder), low_cpu_mem_usage=False, trust_remote_code=True
        )
    votes = condition(["smooth", "odd", "dust_lane"]).votes
    images = pipeline(votes[None], num_steps=2)
    assert images.shape == (1, 32, 32, 3)
    assert images.dtype == np.uint8


def assert_grades_come_back(root: Location, folder: Path, run_job: RunJob) -> None:
    """Grades of the candidates become labelled galaxies, from which a classifier learns."""
    data = (root / "candidates/candidates.parquet").read_bytes()
    ids = pq.read_table(pa.BufferReader(data))["galaxy_id"].to_pylist()
    assert len(ids) == 12
    lines = [f"{galaxy},{'A' if i < 4 else 'reject'},anna," for i, galaxy in enumerate(ids)]
    grades = folder / "grades.csv"
    grades.write_text("\n".join(["galaxy_id,grade,grader,graded_utc", *lines]) + "\n")
    done = run_job("vet", "debug", "--root", root.uri, "--grades", str(grades))
    assert done.returncode == 0
    labels = read_shards(root / "vetted-galaxies")["label"].to_pylist()
    assert labels.count("dust_lane_early_type") == 4
    assert labels.count("not_dust_lane_early_type") == 8


@pytest.mark.timeout(1200)
def test_quickstart(tmp_path: Path, run_job: RunJob) -> None:
    """The quickstart runs to its summary; run again, it shows it and touches nothing."""
    root = tmp_path / "run"
    relative = os.path.relpath(root, REPOSITORY)  # as people give it; workers must find the same place
    first = run_job("quickstart", "debug", "--root", relative)
    assert first.returncode == 0
    assert "real and synthetic galaxies" in first.stdout
    assert (root / "candidates-augmented/index.html").is_file()
    before = contents(root)
    again = run_job("quickstart", "debug", "--root", relative)
    assert again.returncode == 0
    assert "To start over" in again.stdout
    assert contents(root) == before


def contents(root: Path) -> dict[str, bytes]:
    """Return all files but the tracking database."""
    files = [path for path in root.rglob("*") if path.is_file() and "mlflow" not in path.name]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.timeout(600)
def test_quickstart_interrupted(tmp_path: Path, run_job: RunJob) -> None:
    """An interrupted run is neither destroyed nor taken for a finished one."""
    root = tmp_path / "run"
    assert run_job("mock", "debug", "--root", str(root)).returncode == 0
    survey = contents(root / "survey")
    refused = run_job("quickstart", "debug", "--root", str(root))
    assert refused.returncode == 2
    assert "RESUME=1" in refused.stderr
    assert contents(root / "survey") == survey
