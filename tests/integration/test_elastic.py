"""A training that is told of a node's end keeps its state, goes on with what is left, and grows again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray.util.state import list_nodes

from tests.integration import services
from tests.integration.processes import JobProcess, titled
from tests.integration.test_training import kept_s, loss_curve, run_of

OPTIONS = {
    "steps": 5000,  # more than it will take
    "batch-size": 16,
    "log-every": 5,
    "checkpoint-every": 200,
    "precision": "float32",
    "scaling.workers": 2,
    "scaling.min-workers": 1,
}


DEADLINE_S = 10  # of the notice: when the cloud takes the machine back


def workers() -> int:
    """Count the processes that train, on any of this test's nodes."""
    return len(titled(psutil.Process(), "RayTrainWorker"))


def give_notice(gcs: str, dashboard: str) -> None:
    """Tell Ray, as a cloud does of a spot machine, that the worker node will be taken back."""
    nodes: list[Any] = list_nodes(dashboard)
    (spot,) = (node.node_id for node in nodes if not node.is_head_node)
    reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", gcs, *reason]
    deadline = ("--deadline-remaining-seconds", str(DEADLINE_S))
    subprocess.run([*command, "--node-id", spot, *deadline], check=True, capture_output=True)


def last_step(root: Path) -> int:
    """Return the last step whose loss has been tracked."""
    return max(loss_curve(root), default=0)


@pytest.mark.timeout(900)
def test_a_training_shrinks_with_its_nodes_and_grows_again(
    short_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one, and two again, from what was kept in time: a step taken twice gives one loss."""
    root, folder, log = run_of(tmp_path / "run"), short_folder / "elastic", tmp_path / "log.txt"
    folder.mkdir()
    words = [str(word) for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    monkeypatch.setenv(
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"
    )  # for a node that is gone: 60 by default
    with services.ray_cluster(folder, {}, cpus=1) as access:
        gcs = access["GALRAY_TEST_GCS"]
        for name, value in {**access, "RAY_ADDRESS": gcs}.items():
            monkeypatch.setenv(name, value)
        with services.worker_node(folder / "spot.out", os.environ, gcs):
            job = JobProcess("train", "debug", "--root", str(root), *words, log=log)
            job.wait_for(lambda: workers() == 2 and last_step(root))
            give_notice(gcs, access["RAY_API_SERVER_ADDRESS"])
            job.wait_for(lambda: kept_s(root))
            assert last_step(root) < OPTIONS["checkpoint-every"]  # so it was kept for the notice
            noticed_at = last_step(root)
        job.wait_for(lambda: workers() == 1 and last_step(root) > noticed_at)
        with services.worker_node(folder / "another.out", os.environ, gcs):
            job.wait_for(lambda: workers() == 2)
            back_s = time.time()
            job.wait_for(lambda: workers() == 2 and kept_s(root) > back_s)
            job.kill_all()
    curve = loss_curve(root)
    assert sorted(curve) == list(range(5, max(curve) + 1, 5))
    assert "train: goes on from the checkpoint after step" in log.read_text()
    for values in curve.values():
        np.testing.assert_allclose(sorted(values), [min(values)] * len(values), rtol=2e-3)
