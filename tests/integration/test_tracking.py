"""Runs on a real MLflow server and in a local file: nested, ended, and without secrets."""

from __future__ import annotations

import base64
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from galray.core import outbox
from galray.core.config import JobConfig
from galray.core.errors import ConfigError
from galray.core.tracking import EXPERIMENT, PIPELINE_TAG, track
from tests.integration import services
from tests.integration.conftest import MLFLOW_PASSWORD


@dataclass(frozen=True, kw_only=True)
class Paint(JobConfig):
    steps: int = 3
    output: str = "{root}/painted"


@pytest.fixture(params=["server", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "server":
        yield request.getfixturevalue("mlflow_uri")
    else:
        yield f"sqlite:///{tmp_path}/run/mlflow.db"


@pytest.fixture
def config(tmp_path: Path) -> Paint:
    return Paint(root=str(tmp_path / "run"))


def runs(uri: str, config: Paint) -> tuple[Run, dict[str | None, Run]]:
    """Return the pipeline's run and those nested under it, by name."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    everything = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in everything if run.data.tags.get(PIPELINE_TAG) == config.root]
    nested = [r for r in everything if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, {run.info.run_name: run for run in nested}


def test_jobs_are_nested_under_one_pipeline(uri: str, config: Paint) -> None:
    for job in ("train", "synthesize"):
        with track(job, config) as run:
            run.metrics({"loss": 2.0, "unknown": float("nan")}, step=1)
            run.metrics({"loss": 1.0}, step=2)
    parent, nested = runs(uri, config)
    assert parent.info.status == "FINISHED"
    assert {name: run.info.status for name, run in nested.items()} == {
        "train": "FINISHED",
        "synthesize": "FINISHED",
    }
    assert nested["train"].data.params == {
        "root": config.root,
        "resume": "False",
        "steps": "3",
        "output": "{root}/painted",
    }
    history = MlflowClient(uri).get_metric_history(nested["train"].info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]
    assert set(nested["train"].data.metrics) == {"loss"}


def test_jobs_that_begin_at_once_are_nested_under_one_pipeline(uri: str, config: Paint) -> None:
    """Several find that the pipeline has no run yet and start one: all but the earliest are given up."""
    start = threading.Barrier(4)

    def job(name: str) -> None:
        start.wait()
        with track(name, config):
            pass

    names = {"ingest", "train", "synthesize", "scan"}
    with ThreadPoolExecutor(4) as jobs:
        list(jobs.map(job, names))
    assert set(runs(uri, config)[1]) == names


def test_figures_texts_and_files_are_kept(uri: str, config: Paint, tmp_path: Path) -> None:
    with track("evaluate", config) as run:
        run.figure(Figure(), "figures/one.png")
        run.text("{}", "report.json")
        run.file("tables/data.bin", b"\x00\x01")
    client = MlflowClient(uri)
    paths = [
        item.path
        for folder in ("", "figures", "tables")
        for item in client.list_artifacts(run.run_id, folder)
    ]
    assert {"figures/one.png", "report.json", "tables/data.bin"} <= set(paths)
    copy = client.download_artifacts(run.run_id, "tables/data.bin", str(tmp_path))
    assert Path(copy).read_bytes() == b"\x00\x01"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_ends_as_its_job_did(uri: str, config: Paint, error: type[BaseException], status: str) -> None:
    with pytest.raises(error), track("train", config):
        raise error
    assert runs(uri, config)[1]["train"].info.status == status


def test_a_resumed_job_ends_the_run_that_a_killed_one_left(uri: str, config: Paint) -> None:
    """Not that of another output, which may well be running."""
    begun = {
        "killed": track("train", config),
        "other": track("train", replace(config, output="{root}/elsewhere")),
    }
    left = {name: job.__enter__() for name, job in begun.items()}
    with track("train", replace(config, resume=True)) as resumed:
        pass
    server = MlflowClient(uri)
    found = {name: server.get_run(run.run_id).info.status for name, run in left.items()}
    assert found == {"killed": "KILLED", "other": "RUNNING"}
    assert server.get_run(resumed.run_id).info.status == "FINISHED"


def test_a_child_is_nested_under_its_job(uri: str, config: Paint) -> None:
    with track("tune", config) as run:
        child = run.child("trial 1", {"trial": "1"})
        child.end()
    found = MlflowClient(uri).get_run(child.run_id)
    assert found.data.tags["mlflow.parentRunId"] == run.run_id
    assert found.data.tags["trial"] == "1"


def test_without_a_server_the_records_lie_beside_the_pipeline(config: Paint) -> None:
    with track("train", config):
        pass
    with sqlite3.connect(Path(config.root) / "mlflow.db") as records:
        assert records.execute("select count(*) from runs").fetchone() == (2,)
    records.close()


def test_a_server_that_is_not_there_is_told_soon(config: Paint, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = services.free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:hunter2@127.0.0.1:{port}")
    started_s = time.monotonic()
    with (
        pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*MLFLOW_TRACKING_URI") as caught,
        track("train", config),
    ):
        pass
    assert "hunter2" not in str(caught.value)
    assert time.monotonic() - started_s < 30


def test_a_servers_password_is_never_repeated(
    mlflow_uri: str, config: Paint, capfd: pytest.CaptureFixture[str]
) -> None:
    """MLflow prints where each run is to be seen."""
    assert MLFLOW_PASSWORD in mlflow_uri
    with track("train", config):
        pass
    said = "".join(capfd.readouterr())
    assert "View run train at: http://127.0.0.1:" in said
    assert MLFLOW_PASSWORD not in said


def test_a_servers_password_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # set by what is tested, and unset again at the end
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:s%40fe@127.0.0.1:{server.server_port}")
        with suppress(MlflowException):
            outbox.client(f"http://127.0.0.1:{server.server_port}").get_run("1")
        server.shutdown()
    assert set(sent) == {f"Basic {base64.b64encode(b'anna:s@fe').decode()}"}


def spooled(config: Paint) -> list[Path]:
    return sorted((Path(config.root) / outbox.SPOOL).glob("*"))


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, metric)]


def test_a_server_that_goes_away_stops_no_job_and_loses_nothing(
    config: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Away from the middle of one job to its end, and for a moment in the next, which delivers everything."""
    (tmp_path / "server").mkdir()
    (port,) = services.free_ports(1)
    server = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # what it waits for at the job's end
    monkeypatch.setattr(outbox, "_ASK_AGAIN_S", 0.0)
    with services.mlflow_service(tmp_path / "server", port):
        stack = ExitStack()
        lost = stack.enter_context(track("train", config))
        lost.metrics({"loss": 3.0}, step=1)
    lost.metrics({"loss": 2.0}, step=2)
    lost.text("painted", "notes/note.txt")
    stack.close()
    assert len(spooled(config)) == 3
    assert f"3 writes could not be delivered to {server}" in capsys.readouterr().err
    with services.mlflow_service(tmp_path / "server", port):
        client = MlflowClient(server)
        assert client.get_run(lost.run_id).info.status == "RUNNING"
        with track("synthesize", config) as run:
            assert spooled(config) == []
            with monkeypatch.context() as network:
                network.setattr(outbox, "answers", lambda *_: False)
                run.metrics({"loss": 0.5}, step=1)
                assert len(spooled(config)) == 1
            run.metrics({"loss": 0.4}, step=2)
            assert spooled(config) == []
            assert history(server, run.run_id, "loss") == [(1, 0.5), (2, 0.4)]
        assert history(server, lost.run_id, "loss") == [(1, 3.0), (2, 2.0)]
        ended = client.get_run(lost.run_id).info
        assert ended.status == "FINISHED"
        assert (ended.end_time or 0) < client.get_run(run.run_id).info.start_time
        copy = client.download_artifacts(lost.run_id, "notes/note.txt", str(tmp_path))
        assert Path(copy).read_text() == "painted"


def test_a_write_that_the_server_refuses_stops_no_job(
    mlflow_uri: str, config: Paint, capsys: pytest.CaptureFixture[str]
) -> None:
    with track("train", config) as run:
        run.metrics({"no such \x00 name": 1.0})
        run.metrics({"loss": 1.0})
    assert "the server refuses a write" in capsys.readouterr().err
    assert spooled(config) == []
    assert history(mlflow_uri, run.run_id, "loss") == [(0, 1.0)]
