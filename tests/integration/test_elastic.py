"""A training that loses a node goes on with what is left, and takes a new one in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.integration import services
from tests.integration.processes import JobProcess, titled
from tests.integration.test_training import kept_s, loss_curve, run_of

OPTIONS = {
    "steps": 5000,  # more than it will take
    "batch-size": 16,
    "log-every": 5,
    "checkpoint-every": 10,
    "precision": "float32",
    "scaling.workers": 2,
    "scaling.min-workers": 1,
}


def workers() -> int:
    """Count the processes that train, on any of this test's nodes."""
    return len(titled(psutil.Process(), "RayTrainWorker"))


@pytest.mark.timeout(900)
def test_a_training_shrinks_with_its_nodes_and_grows_again(
    short_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one, and two again, each from the last checkpoint: a step taken again gives its loss."""
    root, folder, log = run_of(tmp_path / "run"), short_folder / "elastic", tmp_path / "log.txt"
    folder.mkdir()
    words = [str(word) for name, value in OPTIONS.items() for word in (f"--{name}", value)]
    with services.ray_cluster(folder, {}, cpus=1) as access:
        gcs = access["GALRAY_TEST_GCS"]
        for name, value in {**access, "RAY_ADDRESS": gcs}.items():
            monkeypatch.setenv(name, value)
        with services.worker_node(folder / "spot.out", os.environ, gcs):
            job = JobProcess("train", "debug", "--root", str(root), *words, log=log)
            job.wait_for(lambda: workers() == 2 and kept_s(root))
        left_s = time.time()
        job.wait_for(lambda: workers() == 1 and kept_s(root) > left_s)
        with services.worker_node(folder / "another.out", os.environ, gcs):
            job.wait_for(lambda: workers() == 2)
            back_s = time.time()
            job.wait_for(lambda: workers() == 2 and kept_s(root) > back_s)
            job.kill_all()
    curve = loss_curve(root)
    assert sorted(curve) == list(range(5, max(curve) + 1, 5))
    for values in curve.values():
        np.testing.assert_allclose(sorted(values), [min(values)] * len(values), rtol=2e-3)
