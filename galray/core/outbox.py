"""Writes to a tracking server that may go away: what it cannot take is kept, and sent when it answers again.

A write is sent at once where the server answers, with MLflow's own retries (4 minutes by default;
``MLFLOW_HTTP_REQUEST_MAX_RETRIES``). Otherwise it is kept as a small file in the pipeline's
``mlflow-spool`` folder, which every process of a job reaches. The next write that finds the server again
sends what is kept first; so do the end of the job and the start of the next one. Metrics carry their time
and step, and the server ignores one that it has: sending twice does no harm.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import requests

from galray.core.cluster import say
from galray.core.errors import InputError, StorageError
from galray.core.storage import Location

if TYPE_CHECKING:
    from mlflow import MlflowClient

SPOOL = "mlflow-spool"
_ANSWER_S = 5.0
_ASK_AGAIN_S = 10.0  # a server that hangs holds a job up for no more than a third of its time
_MOST_KEPT = 10_000  # by one process
_REFUSED = (400, 404)  # such as a run that somebody deleted: no later try would do better

_ask_again_at_s: dict[str, float] = {}
_kept: Counter[str] = Counter()


@dataclass(frozen=True)
class Outbox:
    """The way from one pipeline to its tracking server; can be sent to other processes.

    Attributes
    ----------
    tracking_uri : str
        Without a password: each process finds that in its own environment.
    spool : Location
    """

    tracking_uri: str
    spool: Location

    def send(self, write: dict[str, Any]) -> None:
        """Send a write, or keep it: no fault of the server's stops the job.

        Parameters
        ----------
        write : dict
            ``run_id``, and either ``metrics`` and ``params`` (rows of what MLflow's `Metric` and `Param`
            take), or ``artifact`` (a path) and ``data`` (base64), or ``status`` and ``end_time_ms``.
        """
        if not (self._answers() and self._caught_up() and self._sent(write)):
            self._keep(write)

    def send_all(self) -> int:
        """Send what is kept, in order, until the server cannot take one; return how many are left."""
        names = sorted(info.base_name for info in self.spool.children())
        for done, name in enumerate(names):
            kept = self.spool / name
            try:
                write = json.loads(kept.read_bytes())
            except InputError:  # another process has just sent it
                continue
            if not self._sent(write):
                return len(names) - done
            kept.delete()
        _kept[self.spool.uri] = 0
        return 0

    def close(self, patient: bool) -> None:
        """Send what is kept and say what is left; a `patient` one waits as long as MLflow's retries."""
        if not (patient or self._answers()):
            return
        try:
            left = self.send_all()
        except StorageError as error:
            say(f"tracking: whether {self.spool.uri} holds undelivered records is unknown: {error}")
            return
        if left:
            say(
                f"tracking: {left} writes could not be delivered to {self.tracking_uri}. "
                f"They wait in {self.spool.uri}; the next job with this --root delivers them."
            )

    def _answers(self) -> bool:
        if time.monotonic() < _ask_again_at_s.get(self.tracking_uri, 0.0):
            return False
        if answers(self.tracking_uri, _ANSWER_S):
            return True
        _ask_again_at_s[self.tracking_uri] = time.monotonic() + _ASK_AGAIN_S
        return False

    def _caught_up(self) -> bool:
        return _kept[self.spool.uri] == 0 or self.send_all() == 0

    def _sent(self, write: dict[str, Any]) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            _apply(client(self.tracking_uri), **write)
        except MlflowException as error:
            if error.get_http_status_code() not in _REFUSED:
                return False
            say(f"tracking: the server refuses a write to run {write['run_id']}, which is lost: {error}")
        except OSError:  # of the artifact store, or of requests
            return False
        return True

    def _keep(self, write: dict[str, Any]) -> None:
        _kept[self.spool.uri] += 1
        if _kept[self.spool.uri] == 1:
            say(
                f"tracking: no answer from {self.tracking_uri}; the job goes on, "
                f"and its records are kept in {self.spool.uri}"
            )
        if _kept[self.spool.uri] == _MOST_KEPT:
            say(f"tracking: {_MOST_KEPT} records are kept; further ones are lost until the server answers")
        if _kept[self.spool.uri] <= _MOST_KEPT:
            name = f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
            try:
                (self.spool / name).write_bytes(json.dumps(write).encode())
            except StorageError as error:
                say(f"tracking: a record of run {write['run_id']} is lost: {error}")


def _apply(client: MlflowClient, run_id: str, **content: Any) -> None:
    from mlflow.entities import Metric, Param

    if "artifact" in content:
        _log_artifact(client, run_id, content["artifact"], base64.b64decode(content["data"]))
    elif "status" in content:
        client.set_terminated(run_id, content["status"], content["end_time_ms"])
    else:
        metrics = [Metric(*row) for row in content["metrics"]]
        client.log_batch(run_id, metrics, [Param(*row) for row in content["params"]])


def _log_artifact(client: MlflowClient, run_id: str, path: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, Path(path).name)
        file.write_bytes(data)
        client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)


def answers(tracking_uri: str, timeout_s: float) -> bool:
    """Ask a server for an answer, once; a local file always answers."""
    if not tracking_uri.startswith("http"):
        return True
    try:
        return requests.head(tracking_uri, timeout=timeout_s).status_code < 500
    except requests.exceptions.SSLError:
        return True  # it answers; the certificate is for MLflow's own settings to judge
    except requests.RequestException:
        return False


@cache
def client(tracking_uri: str) -> MlflowClient:
    """Return this process's client of a tracking server.

    Parameters
    ----------
    tracking_uri : str
        Without a password. MLflow repeats a server's URI in what it prints and raises, so it is told the
        password beside it, from this process's ``MLFLOW_TRACKING_URI``.
    """
    from mlflow import MlflowClient

    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if without_password(named) != tracking_uri:
        return MlflowClient(tracking_uri)
    if not named.startswith("http"):  # a database, which opens with its password only, and is not repeated
        return MlflowClient(named)
    server = urlsplit(named)
    if server.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(server.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(server.password or "")
    return MlflowClient(tracking_uri)


def without_password(tracking_uri: str) -> str:
    """Return a tracking server's URI without the user and password that may stand in it."""
    place = urlsplit(tracking_uri).netloc
    return tracking_uri.replace(place, place.rpartition("@")[2], 1) if "@" in place else tracking_uri
