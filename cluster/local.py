"""A cluster on this machine, to rehearse `ray job submit` before paying for one.

A Ray head and two workers, an S3 service (Ceph) with an empty bucket, and an MLflow server, all on the
loopback address with keys of their own. From the root of the repository, with the environment activated:

    python -m cluster.local start      # half a minute; says which file to source
    source /tmp/galray-local/env
    ray job submit --working-dir . -- python jobs/mock.py debug --root s3://galray/try
    python -m cluster.local status
    python -m cluster.local stop       # ends what start began, and nothing else; the bucket goes with it
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
from pyarrow import fs

import galray
from tests.integration import services

FOLDER = Path("/tmp/galray-local")  # short: Ray puts Unix sockets below it
ENVIRONMENT, PID, LOG = FOLDER / "env", FOLDER / "pid", FOLDER / "log"
BUCKET = "galray"
WORKERS = 2
_START_S, _STOP_S = 300, 90


def start() -> None:
    """Start the services in a process of their own, and wait until they answer."""
    if supervisor():
        sys.exit(f"A cluster runs already: source {ENVIRONMENT}, or stop it first.")
    missing = services.missing_programs()
    if missing:
        sys.exit(
            f"No S3 service here: {', '.join(missing)} not found. As root, on Debian: apt-get install "
            "--no-install-recommends ceph-common ceph-mon ceph-osd radosgw"
        )
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(mode=0o700)
    with open(LOG, "wb") as log:
        command = [sys.executable, "-m", "cluster.local", "serve"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    PID.write_text(str(process.pid))
    deadline_s = time.monotonic() + _START_S
    while not ENVIRONMENT.exists():
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.terminate()
            sys.exit(f"The cluster did not come up:\n{LOG.read_text(errors='replace')[-3000:]}")
        time.sleep(0.5)
    print(f"Started. Now: source {ENVIRONMENT}")


def serve() -> None:
    """Hold the services until a signal comes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ExitStack() as stack:
        endpoint = stack.enter_context(services.s3_service(FOLDER / "s3"))
        (FOLDER / "mlflow").mkdir()
        (FOLDER / "ray").mkdir()
        variables = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": services.S3_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": services.S3_SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_TRACKING_URI": stack.enter_context(services.mlflow_service(FOLDER / "mlflow")),
            **galray.ENVIRONMENT,
        }
        _make_bucket(endpoint)
        cluster = services.ray_cluster(FOLDER / "ray", variables, cpus=1, workers=WORKERS)
        variables |= stack.enter_context(cluster)
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
        partial = ENVIRONMENT.with_suffix(".partial")
        partial.touch(mode=0o600)
        partial.write_text("".join(lines))
        partial.rename(ENVIRONMENT)
        signal.pause()


def _make_bucket(endpoint: str) -> None:
    fs.S3FileSystem(
        access_key=services.S3_ACCESS_KEY,
        secret_key=services.S3_SECRET_KEY,
        endpoint_override=endpoint,
        region="us-east-1",
        allow_bucket_creation=True,
    ).create_dir(BUCKET)


def supervisor() -> psutil.Process | None:
    """Return the process that holds the services, where it still runs."""
    try:
        process = psutil.Process(int(PID.read_text()))
        return process if "cluster.local" in process.cmdline() else None
    except (OSError, ValueError, psutil.Error):
        return None


def status() -> None:
    """Say whether a cluster runs, and where its services are."""
    process = supervisor()
    if not process:
        sys.exit("No cluster runs. Start one: python -m cluster.local start")
    print(f"process {process.pid}, bucket s3://{BUCKET}, logs below {FOLDER}; source {ENVIRONMENT}")
    shown = ("RAY_API_SERVER_ADDRESS", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI")
    print(
        "".join(line for line in ENVIRONMENT.read_text().splitlines(True) if line.split("=")[0][7:] in shown)
    )


def stop() -> None:
    """End the services."""
    process = supervisor()
    if not process:
        sys.exit("No cluster runs.")
    process.terminate()
    process.wait(_STOP_S)
    ENVIRONMENT.unlink()
    print("Stopped.")


if __name__ == "__main__":
    commands = {command.__name__: command for command in (start, status, stop, serve)}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"Usage: python -m cluster.local start|status|stop\n\n{__doc__}")
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    commands[sys.argv[1]]()
