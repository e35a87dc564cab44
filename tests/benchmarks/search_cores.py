"""How much of a machine's cores a search uses, from its first trial to the end of its last.

    python tests/benchmarks/search_cores.py [galaxies] [epochs]

The `laptop` search over two scales of guidance and two ratios, with two seeds a point, as many trials at a
time as there are cores. The galaxies are noise and the denoiser is untrained: the arithmetic does not mind.
What the system counts as idle, in all processes together, is sampled every half second; `busy` is the rest
of all cores' time, and `busy_by_quarter` the same in each quarter of the time, for the last trials have fewer
beside them. On a machine that does nothing else. Prints one JSON object on the last line.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from hardware import hardware
from noise_galaxies import publish_noise
from untrained_denoiser import publish_untrained_denoiser

from galray.core.cluster import connect
from galray.core.storage import open_location
from galray.search.config import PRESETS
from galray.search.tune import search

SAMPLE_S = 0.5
JUDGED = 640


def main(galaxies: int = 6400, epochs: int = 4) -> None:
    laptop = PRESETS["laptop"].config
    with tempfile.TemporaryDirectory(prefix="galray-search-cores-") as name:
        config = replace(
            laptop,
            root=name,
            guidance_scales=(1.0, 2.0),
            augmentation_ratios=(0.1, 0.2),
            seeds=(0, 1),
            synthesize=replace(laptop.synthesize, count=100, num_steps=2),
            classify=replace(laptop.classify, epochs=epochs),
        )
        publish_noise(config.location("{root}/galaxies"), galaxies, config.classify.size_px, JUDGED)
        publish_untrained_denoiser(open_location(f"{name}/denoiser"))
        with connect(), idle_seconds() as samples:
            started_s = time.time()
            search(config)
            whole_s = time.time() - started_s
        trials = Path(name, "search/trials")
        first_s = min(path.stat().st_mtime for path in trials.glob("*/begun.json"))
        last_s = max(path.stat().st_mtime for path in trials.glob("*/ended.json"))
    figures = {
        "hardware": hardware(),
        "galaxies": galaxies,
        "epochs": epochs,
        "points": config.points,
        "seeds": len(config.seeds),
        "whole_job_s": round(whole_s),
        "trials_s": round(last_s - first_s),
        **busy(np.array(samples), first_s, last_s),
    }
    print(json.dumps(figures))


@contextmanager
def idle_seconds() -> Iterator[list[tuple[float, float]]]:
    """Collect pairs of a time and the seconds that all cores together had been idle by then."""
    samples, ended = [], threading.Event()

    def look() -> None:
        while not ended.wait(SAMPLE_S):
            samples.append((time.time(), psutil.cpu_times().idle))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def busy(samples: np.ndarray, first_s: float, last_s: float) -> dict[str, object]:
    """Return the share of the cores' time that was not idle, of the whole and of each quarter."""
    edges_s = np.linspace(first_s, last_s, 5)
    idle_s = np.interp(edges_s, samples[:, 0], samples[:, 1])
    cores = os.cpu_count() or 1
    quarters = 1 - np.diff(idle_s) / np.diff(edges_s) / cores
    return {"busy": round(float(quarters.mean()), 3), "busy_by_quarter": quarters.round(3).tolist()}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
