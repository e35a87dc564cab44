"""Fixtures that run galray's jobs against real services."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tests.integration import services
from tests.integration.faulty_store import FaultyStore, faulty_store

BUCKET = "galray-test"
MLFLOW_PASSWORD = "galray-test-password"
_JOB_TIMEOUT_S = 1100
_LONGEST = ("test_chain", "test_search", "test_training", "test_elastic")


class RunJob(Protocol):
    """Run a job by its name, with its options, to its end."""

    def __call__(
        self, name: str, *options: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files: two processes share them out, and neither waits long for the other."""
    items.sort(key=lambda item: item.path.stem not in _LONGEST)


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path leaves room for the names of Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="galray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def s3_environment(short_folder: Path) -> Iterator[dict[str, str]]:
    """The variables that lead to a real S3 service with an empty bucket."""
    missing = services.missing_programs()
    if missing:
        pytest.skip(f"no S3 service here: {', '.join(missing)} not found; as root, .ci/run installs them")
    with services.s3_service(short_folder / "s3") as endpoint:
        yield services.s3_environment(endpoint, BUCKET)


@pytest.fixture
def s3_root(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh ``s3://`` prefix, with the environment that leads there."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def gcs_endpoint(short_folder: Path) -> Iterator[str]:
    """The URL of an emulator of Google Cloud Storage with an empty bucket."""
    with services.gcs_service(short_folder, BUCKET) as url:
        yield url


@pytest.fixture
def gs_root(gcs_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh ``gs://`` prefix, with the environment that leads there."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_endpoint)
    return f"gs://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def mlflow_server(short_folder: Path) -> Iterator[str]:
    """The URL of a real MLflow server, with a password that must never be seen again."""
    (short_folder / "mlflow").mkdir()
    with services.mlflow_service(short_folder / "mlflow") as url:
        yield url.replace("://", f"://galray:{MLFLOW_PASSWORD}@")


@pytest.fixture
def mlflow_uri(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of that server, to which the environment points."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    return mlflow_server


@pytest.fixture(autouse=True)
def _track_locally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def run_job() -> RunJob:
    """``python jobs/<name>.py <options>`` on a Ray of its own."""

    def run(
        name: str, *options: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return _run([sys.executable, f"jobs/{name}.py", *options], env)

    return run


@pytest.fixture(scope="session")
def store_at_fault(s3_environment: dict[str, str]) -> Iterator[FaultyStore]:
    """The S3 service as the cluster of `submit_job` sees it: it fails at times."""
    with faulty_store(s3_environment["AWS_ENDPOINT_URL"]) as store:
        yield store


@pytest.fixture(scope="session")
def ray_job(
    short_folder: Path, s3_environment: dict[str, str], store_at_fault: FaultyStore, mlflow_server: str
) -> Iterator[RunJob]:
    """``ray job <command>`` on a cluster.

    The cluster's nodes, not the one who submits, know the bucket's keys and the tracking server.
    """
    (short_folder / "ray").mkdir()
    environment = {
        **s3_environment,
        "AWS_ENDPOINT_URL": store_at_fault.endpoint,
        "MLFLOW_TRACKING_URI": mlflow_server,
    }
    with services.ray_cluster(short_folder / "ray", environment) as access:

        def run(
            name: str, *options: str, env: Mapping[str, str] | None = None
        ) -> subprocess.CompletedProcess[str]:
            words = [sys.executable, "-m", "ray.scripts.scripts", "job", name, *options]
            return _run(words, {**access, **(env or {})})

        yield run


@pytest.fixture(scope="session")
def submit_job(ray_job: RunJob) -> RunJob:
    """``ray job submit --working-dir . -- python jobs/<name>.py <options>``, to its end."""

    def submit(
        name: str, *options: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return ray_job("submit", "--working-dir", ".", "--", "python", f"jobs/{name}.py", *options, env=env)

    return submit


def _run(command: list[str], env: Mapping[str, str] | None) -> subprocess.CompletedProcess[str]:
    """Run a program in the repository; what it says is shown where a test fails."""
    done = subprocess.run(
        command,
        cwd=services.REPOSITORY,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=_JOB_TIMEOUT_S,
    )
    print(f"$ {' '.join(command)}\n{done.stdout}\n{done.stderr}\nexit code {done.returncode}")
    return done
