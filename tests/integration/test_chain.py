"""The whole chain as the README shows it, job by job, against a bucket and a tracking server."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from mlflow import MlflowClient
from mlflow.entities import Run

from galray.core.claims import holder
from galray.core.manifest import Manifest, ancestry, local_folder
from galray.core.schema import split_of
from galray.core.shards import SHARDS
from galray.core.storage import Location, open_location
from galray.diffusion.conditions import condition
from galray.diffusion.train import CHECKPOINTS
from tests.integration import services
from tests.integration.conftest import MLFLOW_PASSWORD, RunJob
from tests.integration.faulty_store import FAULTS, FaultyStore
from tests.integration.processes import one_worker_killed
from tests.integration.readme import readme_jobs
from tests.integration.services import REPOSITORY
from tests.integration.test_training import publish_galaxies

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


class Chain(NamedTuple):
    """Where the whole chain has run, and all that its jobs said."""

    root: str
    said: str


def run_readme(run: RunJob, root: str, env: Mapping[str, str], store: FaultyStore) -> Chain:
    """Run the README's commands as they stand, but for the root; each loses a worker."""
    jobs, said = readme_jobs(root), ""
    assert len(jobs) == 7
    for name, *options in jobs:
        # Hundreds of images, each tried again after a while: how ingest bears it is another test's.
        store.at_peace = name in ("mock", "ingest")
        with one_worker_killed(psutil.Process(), name) as killed:
            done = run(name, *options, env=env)
        assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
        assert killed, name
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

    One request in ten to the bucket fails or hangs, in training, search and scan too, and each job loses a
    worker: none fails.
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
    objects = {name: (root / name).read_bytes() for name in root.names()}
    files = [path for path in services_folder.rglob("*") if path.is_file() and is_record(path)]
    return {"log": chain.said.encode(), **objects, **{str(path): path.read_bytes() for path in files}}


def is_record(path: Path) -> bool:
    """Whether a file is MLflow's or one of Ray's logs; the S3 service must know its keys."""
    return bool({"mlflow", "logs"} & set(path.parts))


def assert_nothing_secret_is_written(records: dict[str, bytes]) -> None:
    for kind in ("/manifest.json", "/mlflow.db", "/samples/step-", "/logs/"):
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


def runs_of(tracking_uri: str, pipeline: str) -> list[Run]:
    """Return the runs that are nested under a pipeline's."""
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("galray")
    assert experiment is not None
    of_pipeline = f"tags.`galray.pipeline` = '{pipeline}'"
    parents = client.search_runs([experiment.experiment_id], of_pipeline)
    assert len(parents) == 1
    nested = f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'"
    return list(client.search_runs([experiment.experiment_id], nested))


def assert_runs_nested(tracking_uri: str, pipeline: str) -> None:
    children = runs_of(tracking_uri, pipeline)
    jobs = [run.data.tags["galray.job"] for run in children]
    assert sorted(set(jobs)) == ["classify", "ingest", "mock", "scan", "synthesize", "train", "tune"]
    assert {run.info.status for run in children} == {"FINISHED"}
    trained = next(run for run in children if run.data.tags["galray.job"] == "train")
    assert trained.data.params["steps"] == "20"
    losses = MlflowClient(tracking_uri).get_metric_history(trained.info.run_id, "loss")
    assert sorted({point.step for point in losses}) == [5, 10, 15, 20]  # some twice, where a worker was lost


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
    teach = (split_of(np.array(ids)) == "train").tolist()
    assert labels.count("dust_lane_early_type") == sum(teach[:4])
    assert labels.count("not_dust_lane_early_type") == sum(teach[4:])
    assert run_job("gather", "vetted", "--root", root.uri).returncode == 0
    counts = Manifest.read(root / "gathered").counts
    assert counts["rows_out"] == Manifest.read(root / "galaxies").counts["rows_out"] + len(labels)
    again = ["--galaxies", "{root}/gathered", "--start-from", "{root}/classifier", "--output", "{root}/next"]
    assert run_job("classify", "debug", "--root", root.uri, *again).returncode == 0
    assert f"{root.uri}/candidates" in ancestry(root / "next")


@pytest.mark.timeout(900)
def test_a_job_stopped_by_ray_says_so_and_goes_on_elsewhere(
    ray_job: RunJob, run_job: RunJob, s3_root: str, store_at_fault: FaultyStore, mlflow_uri: str
) -> None:
    """``ray job stop`` leaves a checkpoint, a claim that says when, and a run that ended as killed.

    Another cluster goes on from the bucket.
    """
    store_at_fault.at_peace = True
    root = open_location(s3_root)
    publish_galaxies(root / "galaxies")
    options = ("debug", "--root", s3_root, "--steps", "100")
    words = ("--working-dir", ".", "--", "python", "jobs/train.py", *options)
    ray_job("submit", "--submission-id", "to-stop", "--no-wait", *words)
    until_s, kept = time.monotonic() + 300, set()
    while len(kept) < 2:  # once there is a second checkpoint, Ray has taken note of the first
        kept |= {info.path for info in (root / "denoiser" / CHECKPOINTS).files() if "state.pt" in info.path}
        assert time.monotonic() < until_s
        time.sleep(0.2)
    ray_job("stop", "to-stop")
    assert "was stopped" in ray_job("status", "to-stop").stdout
    claim = holder(root / "denoiser")
    assert claim is not None
    assert claim.stopped_utc
    assert claim.ray_job == "to-stop"
    assert statuses(mlflow_uri, s3_root) == ["KILLED"]
    resumed = run_job("train", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "train: goes on from the checkpoint after step" in resumed.stderr
    assert sorted(statuses(mlflow_uri, s3_root)) == ["FINISHED", "KILLED"]


def statuses(tracking_uri: str, pipeline: str) -> list[str]:
    """Return how each job of a pipeline has ended."""
    return [run.info.status for run in runs_of(tracking_uri, pipeline)]


@pytest.mark.timeout(1200)
def test_quickstart(tmp_path: Path, run_job: RunJob) -> None:
    """The quickstart runs to its summary; run again, it shows it and touches nothing."""
    root = tmp_path / "run"
    relative = os.path.relpath(root, REPOSITORY)  # as people give it; workers must find the same place
    first = run_job("quickstart", "debug", "--root", relative)
    assert first.returncode == 0
    assert "real and synthetic galaxies" in first.stdout
    assert "Parquet dataset sampling" not in first.stderr  # Ray's bar, of which a log is better free
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
