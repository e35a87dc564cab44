"""The README's chain on the cluster of `cluster.local`, twice: left alone, and losing a worker in every job.

    python -m cluster.local start
    source /tmp/galray-local/env
    python -m cluster.rehearsal        # 15 minutes; every job by `ray job submit`, all in the bucket

Both end with the same candidates, and the tracking server shows both, job beside job.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from contextlib import nullcontext

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.local import BUCKET, supervisor
from galray.core.manifest import Manifest
from galray.core.storage import open_location
from tests.integration.processes import one_worker_killed
from tests.integration.readme import readme_jobs

_SCORES_AGREE = 1e-3  # bfloat16 on another number of threads


def main() -> None:
    """Run both chains and compare what they found."""
    services = supervisor()
    if not services:
        sys.exit("No cluster runs. Start one: python -m cluster.local start")
    name = f"s3://{BUCKET}/rehearsal-{uuid.uuid4().hex[:6]}"
    alone, disturbed = f"{name}-left-alone", f"{name}-losing-workers"
    run_chain(alone, None)
    run_chain(disturbed, services)
    print(compare(alone, disturbed))


def run_chain(root: str, kills_below: psutil.Process | None) -> None:
    """Submit the jobs one after another; each loses a worker process of the cluster, where one is given."""
    print(f"\n{root}", flush=True)
    for name, *options in readme_jobs(root):
        started_s = time.monotonic()
        with one_worker_killed(kills_below, name) if kills_below else nullcontext([]) as killed:
            done = submit(name, options)
        took_s = time.monotonic() - started_s
        lost = f"; lost {killed[0]}" if killed else ""
        print(f"  {name}: exit code {done.returncode}, {took_s:.0f} s{lost}", flush=True)
        if done.returncode:
            sys.exit(f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        if kills_below and not killed:
            sys.exit(f"{name} was over before a worker of it could be killed. Run the rehearsal again.")


def submit(name: str, options: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a job through Ray's job submission, to its end."""
    command = ("ray", "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{name}.py", *options)
    return subprocess.run(command, capture_output=True, text=True)


def compare(alone: str, disturbed: str) -> str:
    """Say that both runs found the same candidates, or exit."""
    first, second = candidates(alone), candidates(disturbed)
    ids = [table["galaxy_id"].to_pylist() for table in (first, second)]
    scores = [table["score"].to_numpy() for table in (first, second)]
    if ids[0] != ids[1]:
        sys.exit(f"Not the same candidates:\n{ids[0]}\n{ids[1]}")
    apart = float(np.abs(scores[0] - scores[1]).max())
    if apart > _SCORES_AGREE:
        sys.exit(f"The same candidates, but scores apart by {apart:.2g}.")
    return f"\nThe same {len(first)} candidates in the same order; scores apart by at most {apart:.2g}."


def candidates(root: str) -> pa.Table:
    """Read the candidates of a run, best first."""
    place = open_location(root) / "candidates"
    Manifest.read(place, "candidates")
    return pq.read_table(pa.BufferReader((place / "candidates.parquet").read_bytes()))


if __name__ == "__main__":
    main()
