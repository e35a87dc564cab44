"""MLflow: one parent run for a pipeline, one nested run for each job, SQLite unless told otherwise.

The server is named by ``MLFLOW_TRACKING_URI``; without it the records lie beside the pipeline, or in
the working directory when the pipeline lies in a bucket. Only the driver, or the one controller of a
Ray Train run, writes. MLflow is imported where it is used: Ray's workers open the modules of jobs
without ever tracking anything, and its import takes two seconds.
"""

from __future__ import annotations

import base64
import io
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import UserCallback

from galray.core.cluster import say
from galray.core.config import JobConfig
from galray.core.errors import INTERRUPTIONS, ConfigError
from galray.core.outbox import SPOOL, Outbox, answers, client, without_password

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPERIMENT = "galray"
PIPELINE_TAG = "galray.pipeline"
_PARAM_LENGTH = 500
_FIRST_ANSWER_S = 15.0


@dataclass(frozen=True)
class Run:
    """A run on a tracking server: a handle that can be sent to other processes.

    No write to it stops a job: what the server cannot take is kept and sent later
    (`galray.core.outbox`).
    """

    outbox: Outbox
    experiment_id: str
    run_id: str
    """Empty for a child that could not be started: what is written to it is dropped."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log the finite numbers among `values`."""
        now_ms = int(time.time() * 1000)
        rows = [
            (name, float(value), now_ms, step)
            for name, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        ]
        self._write(metrics=rows, params=[])

    def params(self, values: Mapping[str, Any]) -> None:
        """Log a configuration, nested names joined by dots."""
        rows = [(name, str(value)[:_PARAM_LENGTH]) for name, value in flatten(values).items()]
        self._write(metrics=[], params=rows)

    def figure(self, figure: Figure, name: str) -> None:
        image = io.BytesIO()
        figure.savefig(image, format=name.rsplit(".", 1)[-1])
        self.file(name, image.getvalue())

    def text(self, text: str, name: str) -> None:
        self.file(name, text.encode())

    def file(self, name: str, data: bytes) -> None:
        """Log bytes as an artifact called `name`."""
        self._write(artifact=name, data=base64.b64encode(data).decode())

    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Run:
        """Start a run nested under this one."""
        from mlflow.exceptions import MlflowException

        try:
            return _create(
                self.outbox, self.experiment_id, name, {"mlflow.parentRunId": self.run_id, **(tags or {})}
            )
        except MlflowException as error:
            say(f"tracking: {name!r} goes untracked, for its run could not be started: {error}")
            return replace(self, run_id="")

    def end(self, status: str = "FINISHED") -> None:
        self._write(status=status, end_time_ms=int(time.time() * 1000))

    def _write(self, **content: Any) -> None:
        if self.run_id:
            self.outbox.send({"run_id": self.run_id, **content})


class ReportToRun(UserCallback):
    """Carry what a Ray Train run reports to its MLflow run, from the controller alone."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def after_report(self, run_context, metrics, checkpoint) -> None:  # noqa: ARG002 (Ray's signature)
        self._run.metrics(metrics[0], step=int(metrics[0].get("step", 0)))


@contextmanager
def track(job: str, config: JobConfig) -> Iterator[Run]:
    """Track one job as a run nested under its pipeline's; it ends as finished, failed or killed.

    Raises
    ------
    ConfigError
        The tracking server does not answer, or refuses, at the start. Later it stops no job.
    """
    run = _job_run(job, config)
    run.params(config.resolved())
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except INTERRUPTIONS:
        status = "KILLED"
        raise
    finally:
        run.end(status)
        run.outbox.close(patient=status != "KILLED")


def tracking_uri(config: JobConfig) -> str:
    """Return a pipeline's tracking server, without a password; make its SQLite folder where it has none."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return without_password(named)
    folder = _local_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db"


def _local_folder(config: JobConfig) -> Path:
    root = config.root_location
    return Path(root.path) if root.is_local else Path.cwd()


def _job_run(job: str, config: JobConfig) -> Run:
    from mlflow.exceptions import MlflowException

    uri = tracking_uri(config)
    if not answers(uri, _FIRST_ANSWER_S):
        raise ConfigError(
            f"No answer from the tracking server {uri}. "
            "Check MLFLOW_TRACKING_URI and the network, or unset it to track in a local file."
        )
    outbox = Outbox(uri, config.root_location / SPOOL)
    try:
        pipeline = _pipeline_run(outbox, config)
        if config.resume:
            _end_killed(pipeline, job, config)
        tags = {"mlflow.parentRunId": pipeline.run_id, "galray.job": job}
        run = _create(outbox, pipeline.experiment_id, job, tags)
    except MlflowException as error:
        raise ConfigError(
            f"The tracking server {uri} refuses: {error.error_code}. "
            "Check MLFLOW_TRACKING_URI and its credentials, or unset it to track in a local file."
        ) from error
    outbox.send_all()
    return run


def _pipeline_run(outbox: Outbox, config: JobConfig) -> Run:
    """Find the pipeline's run, or start it: one for each root."""
    experiment_id, server = _experiment(outbox.tracking_uri, config), client(outbox.tracking_uri)
    pipeline = config.root_location

    def earliest() -> str | None:
        found = server.search_runs(
            [experiment_id],
            f"tags.`{PIPELINE_TAG}` = '{pipeline.uri}'",
            max_results=1,
            order_by=["start_time ASC"],
        )
        return found[0].info.run_id if found else None

    if not (run_id := earliest()):
        own = _create(outbox, experiment_id, pipeline.name, {PIPELINE_TAG: pipeline.uri})
        own.end()
        run_id = earliest() or own.run_id
        if run_id != own.run_id:  # another job of the pipeline began at the same moment
            server.delete_run(own.run_id)
    return Run(outbox, experiment_id, run_id)


def _end_killed(pipeline: Run, job: str, config: JobConfig) -> None:
    """End what earlier attempts at the same output left running when they were killed."""
    output = str(config.resolved().get("output", ""))[:_PARAM_LENGTH]
    server = client(pipeline.outbox.tracking_uri)
    same = (
        f"tags.`mlflow.parentRunId` = '{pipeline.run_id}' and tags.`galray.job` = '{job}' "
        "and attributes.status = 'RUNNING'"
    )
    for left in server.search_runs([pipeline.experiment_id], same):
        if left.data.params.get("output", "") == output:
            server.set_terminated(left.info.run_id, "KILLED")


def _experiment(uri: str, config: JobConfig) -> str:
    from mlflow.exceptions import MlflowException

    server = client(uri)
    found = server.get_experiment_by_name(EXPERIMENT)
    if found is None:
        local = uri.startswith("sqlite:")
        artifacts = (_local_folder(config) / "mlflow-artifacts").as_uri() if local else None
        try:
            return server.create_experiment(EXPERIMENT, artifact_location=artifacts)
        except MlflowException:
            found = server.get_experiment_by_name(EXPERIMENT)  # another job may have been faster
            if found is None:
                raise
    return found.experiment_id


def _create(outbox: Outbox, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
    created = client(outbox.tracking_uri).create_run(experiment_id, tags=dict(tags), run_name=name)
    return Run(outbox, experiment_id, created.info.run_id)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Join nested names by dots: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
