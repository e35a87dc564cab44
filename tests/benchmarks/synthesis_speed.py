"""Speed of the synthesis job, beside the bare sampler on the same cores.

    python tests/benchmarks/synthesis_speed.py [batches per worker] [repeats]

The bare sampler is `GalaxyPipeline` called in a loop, batch after batch, by as many processes of as many
threads as the job has workers; its images are thrown away. The job paints the same batches in Ray's
actors, and also encodes JPEGs, and writes and checksums shards and records. Both are timed from the
first batch that a process finishes to its last, with the same model and the same steps: what starts
Ray, actors and processes, and loads the model, is left out, and given apart. The weights are random; the
arithmetic does not mind. Runs alternate, so that a busy machine slows both. Prints one JSON object on the
last line.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import torch
from diffusers.utils.logging import disable_progress_bar
from hardware import hardware
from rates import compared, per_s
from untrained_denoiser import DENOISER, publish_untrained_denoiser

from galray.core.cluster import Scaling, connect
from galray.core.precision import StatedPrecision
from galray.core.storage import open_location
from galray.diffusion.conditions import condition
from galray.diffusion.pipeline import GalaxyPipeline
from galray.diffusion.recipes import RECIPES, Plan, Sampling
from galray.diffusion.synthesize import SynthesizeConfig, synthesize

BATCH_SIZE = 32
SAMPLING = Sampling(num_steps=10)

# Ray's workers are nice by default: on a busy machine the bare loop would get the processor, they not.
os.environ.setdefault("RAY_worker_niceness", "0")


def main(batches: int = 12, repeats: int = 3) -> None:
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="galray-synthesis-speed-") as name:
        publish_untrained_denoiser(open_location(f"{name}/denoiser"))
        figures = {
            "hardware": hardware(),
            "denoiser": DENOISER,
            "batch_size": BATCH_SIZE,
            "sampling": asdict(SAMPLING),
            "workers": workers,
            "threads_per_worker": 1,
            "batches_per_worker": batches,
            "repeats": repeats,
            **{
                precision: compare(Path(name), workers, batches, repeats, precision)
                for precision in get_args(StatedPrecision)
            },
        }
    print(json.dumps(figures))


def compare(
    root: Path, workers: int, batches: int, repeats: int, precision: StatedPrecision
) -> dict[str, object]:
    job, bare, whole_s = [], [], []
    with connect(), ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for i in range(repeats):
            output = root / f"painted-{precision}-{i}"
            config = SynthesizeConfig(
                root=str(root),
                output=str(output),
                recipe="one_of_each",
                count=workers * batches * BATCH_SIZE,
                batch_size=BATCH_SIZE,
                precision=precision,
                scaling=Scaling(workers=workers),
                **asdict(SAMPLING),
            )
            started_s = time.perf_counter()
            synthesize(config)
            whole_s.append(time.perf_counter() - started_s)
            shards = sorted((output / "shards").iterdir())
            job.append(BATCH_SIZE * per_s([path.stat().st_mtime for path in shards], workers))
            tasks = [
                (root / "denoiser", part, workers * batches, precision) for part in _parts(workers, batches)
            ]
            finished = pool.map(bare_loop, *zip(*tasks, strict=True))
            bare.append(BATCH_SIZE * per_s([t for times in finished for t in times], workers))
    whole = workers * batches * BATCH_SIZE / statistics.median(whole_s)
    return {**compared(job, bare), "whole_job_images_per_s": round(whole, 2)}


def _parts(workers: int, batches: int) -> list[range]:
    return [range(first, workers * batches, workers) for first in range(workers)]


def bare_loop(denoiser: Path, numbers: range, total: int, precision: StatedPrecision) -> list[float]:
    """Paint batches by their numbers; returns when each was finished."""
    torch.set_num_threads(1)
    disable_progress_bar()
    pipeline = GalaxyPipeline.from_pretrained(denoiser)
    plan = Plan.of(RECIPES["one_of_each"], total * BATCH_SIZE, SAMPLING, seed=0)
    asked = [condition(request.answers) for request in plan.requests]
    requests, finished_s = plan.galaxies()[:, 0], []
    for number in numbers:
        galaxies = range(number * BATCH_SIZE, (number + 1) * BATCH_SIZE)
        votes, weights = (torch.stack([asked[requests[i]][part] for i in galaxies]) for part in (0, 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            pipeline(votes, weights, seeds=list(galaxies), **asdict(SAMPLING))
        finished_s.append(time.time())
    return finished_s


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
