"""MLflow: one parent run for a pipeline, one nested run for each job, SQLite unless told otherwise.

The server is named by ``MLFLOW_TRACKING_URI``; without it the records lie beside the pipeline, or in
the working directory when the pipeline lies in a bucket. Only the driver, or the one controller of a
Ray Train run, writes. MLflow is imported where it is used: Ray's workers open the modules of jobs
without ever tracking anything, and its import takes two seconds.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from ray.train import UserCallback

from galray.core.config import JobConfig
from galray.core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

EXPERIMENT = "galray"
PIPELINE_TAG = "galray.pipeline"
_PARAM_LENGTH = 500
_FIRST_ANSWER_S = 15.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run on a tracking server: a handle that can be sent to other processes."""

    tracking_uri: str
    experiment_id: str
    run_id: str

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log the finite numbers among `values`."""
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        batch = [
            Metric(name, float(value), now_ms, step)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        _client(self.tracking_uri).log_batch(self.run_id, metrics=batch)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log a configuration, nested names joined by dots."""
        from mlflow.entities import Param

        batch = [Param(name, str(value)[:_PARAM_LENGTH]) for name, value in flatten(values).items()]
        _client(self.tracking_uri).log_batch(self.run_id, params=batch)

    def figure(self, figure: Figure, name: str) -> None:
        _client(self.tracking_uri).log_figure(self.run_id, figure, name)

    def text(self, text: str, name: str) -> None:
        _client(self.tracking_uri).log_text(self.run_id, text, name)

    def file(self, name: str, data: bytes) -> None:
        """Log bytes as an artifact called `name`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, Path(name).name)
            path.write_bytes(data)
            parent = str(Path(name).parent) if "/" in name else None
            _client(self.tracking_uri).log_artifact(self.run_id, str(path), parent)

    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Run:
        """Start a run nested under this one."""
        return _create(
            self.tracking_uri, self.experiment_id, name, {"mlflow.parentRunId": self.run_id, **(tags or {})}
        )

    def end(self, status: str = "FINISHED") -> None:
        _client(self.tracking_uri).set_terminated(self.run_id, status)


class ReportToRun(UserCallback):
    """Carry what a Ray Train run reports to its MLflow run, from the controller alone."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def after_report(self, run_context, metrics, checkpoint) -> None:  # noqa: ARG002 (Ray's signature)
        self._run.metrics(metrics[0], step=int(metrics[0].get("step", 0)))


@contextmanager
def track(job: str, config: JobConfig) -> Iterator[Run]:
    """Track one job as a run nested under its pipeline's; it ends as finished, failed or killed."""
    run = _pipeline_run(config).child(job, {"galray.job": job})
    run.params(config.resolved())
    try:
        yield run
    except KeyboardInterrupt:
        run.end("KILLED")
        raise
    except BaseException:
        run.end("FAILED")
        raise
    run.end()


def tracking_uri(config: JobConfig) -> str:
    """Return the tracking server of a pipeline, and make its SQLite folder where it has none."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    folder = _local_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db"


def _local_folder(config: JobConfig) -> Path:
    root = config.root_location
    return Path(root.path) if root.is_local else Path.cwd()


def _pipeline_run(config: JobConfig) -> Run:
    """Find the pipeline's run, or start it: one for each root."""
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(config)
    _check_reachable(uri)
    pipeline = config.root_location.uri
    try:
        experiment_id = _experiment(uri, config)
        found = _client(uri).search_runs(
            [experiment_id],
            f"tags.`{PIPELINE_TAG}` = '{pipeline}'",
            max_results=1,
            order_by=["start_time ASC"],
        )
    except MlflowException as error:
        raise ConfigError(
            f"The tracking server {_without_password(uri)} refuses: {error.error_code}. "
            "Check MLFLOW_TRACKING_URI and its credentials, or unset it to track in a local file."
        ) from error
    if found:
        return Run(uri, experiment_id, found[0].info.run_id)
    run = _create(uri, experiment_id, config.root_location.name, {PIPELINE_TAG: pipeline})
    run.end()
    return run


def _check_reachable(uri: str) -> None:
    """Ask for an answer once: MLflow would ask for minutes, which is right later, but not at the start."""
    if not uri.startswith("http"):
        return
    try:
        requests.head(uri, timeout=_FIRST_ANSWER_S)
    except requests.exceptions.SSLError:
        return  # it answers; the certificate is for MLflow's own settings to judge
    except requests.RequestException as error:
        raise ConfigError(
            f"No answer from the tracking server {_without_password(uri)}. "
            "Check MLFLOW_TRACKING_URI and the network, or unset it to track in a local file."
        ) from error


def _experiment(uri: str, config: JobConfig) -> str:
    found = _client(uri).get_experiment_by_name(EXPERIMENT)
    if found:
        return found.experiment_id
    local = uri.startswith("sqlite:")
    artifacts = (_local_folder(config) / "mlflow-artifacts").as_uri() if local else None
    return _client(uri).create_experiment(EXPERIMENT, artifact_location=artifacts)


def _create(uri: str, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    created = _client(uri).create_run(experiment_id, tags=dict(tags), run_name=name)
    return Run(uri, experiment_id, created.info.run_id)


@cache
def _client(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _without_password(uri: str) -> str:
    return uri.split("@")[-1]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested names by dots: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
