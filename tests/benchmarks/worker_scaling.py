"""What a second worker brings: a training and a scan on a cluster of one core, and of two nodes of one core.

    PYTHONPATH=. python tests/benchmarks/worker_scaling.py [repeats] [steps] [tiles]

The training is the preset gz5's network on noise, 32 galaxies a step however many workers share them, a
thread each; the scan that of scan_speed.py. Beside them, what the machine itself has to give: the bare loop
of training_speed.py in one process, and in two at once with half of the galaxies each, which never speak to
each other. The second node joins and leaves again in each repeat, so that a busy machine slows all. Prints
one JSON object on the last line; a ratio of 2 is all that there is to gain, and that of the bare loop all
that this machine gives.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from hardware import hardware
from noise_galaxies import publish_noise
from rates import compared
from scan_speed import BACKBONE, SIZE_PX, scan_rate, write_survey
from training_speed import GALAXIES, bare_rate, job_rate
from untrained_classifier import publish_untrained

from galray.core.cluster import Scaling, connect
from galray.core.storage import open_location
from galray.diffusion.train import PRESETS, train
from galray.scan.engine import Engine
from tests.integration import services

PRESET = PRESETS["gz5"].config
JOBS = ("train", "scan", "bare")
SOURCES_PER_TILE = 1000
_LOG_EVERY = 10


def main(repeats: int = 3, steps: int = 160, tiles: int = 8) -> None:
    rates: dict[str, list[float]] = {f"{job} {workers}": [] for job in JOBS for workers in (1, 2)}
    with tempfile.TemporaryDirectory(prefix="galray-") as name:
        root = Path(name)
        write_survey(root, tiles, SOURCES_PER_TILE)
        publish_untrained(open_location(str(root / "classifier")), BACKBONE, SIZE_PX)
        publish_noise(open_location(str(root / "galaxies")), GALAXIES, PRESET.denoiser.size_px)
        (root / "ray").mkdir()
        environment = {"RAY_worker_niceness": "0", "PYTHONPATH": str(services.REPOSITORY)}
        with services.ray_cluster(root / "ray", environment, cpus=1) as access:
            os.environ |= {**access, **environment, "RAY_ADDRESS": access["GALRAY_TEST_GCS"]}
            for i in range(repeats):
                measure(root, i, 1, steps, rates)
                with services.worker_node(root / f"node-{i}.out", os.environ, access["GALRAY_TEST_GCS"]):
                    measure(root, i, 2, steps, rates)
    pairs = {job: (rates[f"{job} 2"], rates[f"{job} 1"]) for job in JOBS}
    gains = {job: compared(two, one, "one_worker") for job, (two, one) in pairs.items()}
    print(json.dumps({"hardware": hardware(), "repeats": repeats, **gains}))


def measure(root: Path, run: int, workers: int, steps: int, rates: dict[str, list[float]]) -> None:
    """Add the images a second of a training and of a scan with so many workers."""
    with connect():
        rates[f"train {workers}"].append(training_rate(root, run, workers, steps))
    with connect():
        rates[f"scan {workers}"].append(scan_rate(root, Engine(), 10 * workers + run, workers))
    shared = replace(PRESET, batch_size=PRESET.batch_size // workers, steps=steps)
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        rates[f"bare {workers}"].append(sum(pool.map(bare_rate, [shared] * workers)))


def training_rate(root: Path, run: int, workers: int, steps: int) -> float:
    config = replace(
        PRESET,
        root=str(root),
        output=str(root / f"denoiser-{workers}-{run}"),
        scaling=Scaling(workers=workers, threads_per_worker=1),
        steps=steps,
        emphasis=(),
        sample_every=0,
        log_every=_LOG_EVERY,
        checkpoint_every=10 * _LOG_EVERY,
    )
    train(config)
    return job_rate(root, config)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
