"""Jobs as they are run: here or submitted, into a bucket or a folder, tracked, refused, killed, resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
from ray.train import Checkpoint, Result

from galray.core.cluster import last_checkpoint
from galray.core.errors import InputError, StorageUnreachable
from galray.core.manifest import UNFINISHED, Manifest
from galray.core.storage import Location, open_location
from tests.integration import gz2_files as gz2
from tests.integration import services
from tests.integration.conftest import RunJob
from tests.integration.faulty_store import FAULTS, faulty_store
from tests.integration.processes import JobProcess
from tests.integration.test_chain import runs_of


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    return gz2.write_survey(tmp_path, gz2.galaxy_rows(12))


def options_of(inputs: dict[str, Any]) -> list[str]:
    return [word for name, value in inputs.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def told(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a failed job told its user: one line, no traceback, exit code 2."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def in_bucket(inputs: dict[str, Any], root: str) -> list[str]:
    """Put the inputs into a bucket; returns the options that lead there, and the output there too."""
    bucket = open_location(root)
    for name in ("votes", "mapping"):
        (bucket / f"{name}.csv").write_bytes(Path(inputs[name]).read_bytes())
    for image in Path(inputs["images"]).iterdir():
        (bucket / "images" / image.name).write_bytes(image.read_bytes())
    (bucket / "images/stray.jpg").write_bytes(b"")
    there = {name: f"{root}/{name}.csv" for name in ("votes", "mapping")}
    return options_of(inputs | there | {"images": f"{root}/images", "output": f"{root}/galaxies"})


def assert_ingested(root: str) -> None:
    counts = Manifest.read(open_location(root) / "galaxies").counts
    assert counts == {"rows_in": 13, "rows_out": 12, "rejects": 1, "rejects.image_without_row": 1}


def test_a_bucket_that_fails_at_times(
    run_job: RunJob, inputs: dict[str, Any], s3_root: str, s3_environment: dict[str, str]
) -> None:
    """Tables and images from a bucket, and galaxies into it, past every fault of its service."""
    options = in_bucket(inputs, s3_root)
    with faulty_store(s3_environment["AWS_ENDPOINT_URL"]) as store:
        env = {"AWS_ENDPOINT_URL": store.endpoint}
        assert run_job("ingest", "gz2", *options, env=env).returncode == 0
    assert set(store.spoiled) == set(FAULTS)
    assert_ingested(s3_root)


def test_a_google_bucket(run_job: RunJob, inputs: dict[str, Any], gs_root: str) -> None:
    assert run_job("ingest", "gz2", *in_bucket(inputs, gs_root)).returncode == 0
    assert_ingested(gs_root)


def test_two_pipelines_under_one_root_do_not_touch_each_other(tmp_path: Path, mlflow_uri: str) -> None:
    """At once, on a Ray each: both publish their own, and both are tracked below one run."""
    inputs = gz2.write_survey(tmp_path, gz2.galaxy_rows(12))
    jobs = [
        JobProcess("ingest", "gz2", *options_of(inputs | {"output": f"{{root}}/{name}"}), log=tmp_path / name)
        for name in ("first", "second")
    ]
    assert [job.end() for job in jobs] == [0, 0]
    root = open_location(inputs["root"])
    assert galaxy_ids(root / "first") == galaxy_ids(root / "second")
    outputs = {run.data.params["output"]: run.info.status for run in runs_of(mlflow_uri, root.uri)}
    assert outputs == {"{root}/first": "FINISHED", "{root}/second": "FINISHED"}


def test_fatal_errors_are_one_line(run_job: RunJob, inputs: dict[str, Any]) -> None:
    line = told(run_job("ingest", "gz2", *options_of(inputs | {"expected_size_px": 9})))
    assert line.startswith("EmptyInputError: ")


def test_an_unreachable_endpoint_is_told_soon(run_job: RunJob, inputs: dict[str, Any]) -> None:
    (port,) = services.free_ports(1)
    nowhere = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a"}
    started_s = time.monotonic()
    done = run_job(
        "ingest",
        "gz2",
        *options_of(inputs | {"output": "s3://bucket/out"}),
        env=nowhere | {"AWS_SECRET_ACCESS_KEY": "b"},
    )
    assert told(done).startswith("StorageUnreachable: s3://bucket/out")
    assert f"http://127.0.0.1:{port}" in told(done)
    assert time.monotonic() - started_s < 60


def test_a_checkpoint_out_of_reach_is_told_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads it, on the driver, and would end the job with a traceback."""
    (port,) = services.free_ports(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = open_location("s3://bucket/denoiser")
    checkpoint = Checkpoint(f"{place.path}/checkpoint_0", place.filesystem)
    result = Result(metrics=None, checkpoint=checkpoint, error=None, path=place.path)
    with pytest.raises(StorageUnreachable, match=place.uri), last_checkpoint(result, place):
        pass


def test_wrong_keys_are_told_soon_and_not_shown(
    run_job: RunJob, inputs: dict[str, Any], s3_root: str
) -> None:
    started_s = time.monotonic()
    wrong = {"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"}
    done = run_job("ingest", "gz2", *options_of(inputs | {"output": f"{s3_root}/out"}), env=wrong)
    assert told(done).startswith(f"StorageDenied: {s3_root}/out")
    assert "AWS_SECRET_ACCESS_KEY" in told(done)
    assert "a-wrong-secret" not in done.stderr + done.stdout
    assert time.monotonic() - started_s < 60


def test_a_killed_job_is_never_read_as_whole_and_resumes(run_job: RunJob, tmp_path: Path) -> None:
    rows = gz2.galaxy_rows(6000)
    inputs = gz2.write_survey(tmp_path, rows)
    command = [sys.executable, "jobs/ingest.py", "gz2", *options_of(inputs), "--verify", "decode"]
    output = open_location(f"{inputs['root']}/galaxies")
    job = subprocess.Popen(command, cwd=services.REPOSITORY, start_new_session=True)
    try:
        wait_for_a_shard(output, job)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    with pytest.raises(InputError, match="is unfinished"):
        Manifest.read(output)
    assert "--resume" in told(run_job("ingest", "gz2", *options_of(inputs)))
    assert run_job("ingest", "gz2", *options_of(inputs), "--resume").returncode == 0
    assert sorted(galaxy_ids(output)) == [r["dr7objid"] for r in rows]
    assert not (output / UNFINISHED).exists()


def galaxy_ids(output: Location) -> list[int]:
    paths = Manifest.read(output, "galaxies").paths(output, "shards")
    return pads.dataset(paths, filesystem=output.filesystem).to_table(["galaxy_id"])["galaxy_id"].to_pylist()


def wait_for_a_shard(output: Location, job: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 300
    while not (output / "shards").children():
        assert job.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
