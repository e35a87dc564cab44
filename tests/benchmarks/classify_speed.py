"""Speed of the classifier's training job, beside a bare PyTorch loop on the same cores.

    python tests/benchmarks/classify_speed.py [preset] [galaxies] [epochs] [repeats] [workers]

The bare loop has all images in one tensor in memory, and takes steps of the same model, batch size,
augmentation, precision, optimiser, clipping and moving average, with all of the job's threads in one process:
no cache, checkpoint or report. The job is Ray Train's, as `jobs/classify.py` runs it. Of both, the steps of
the last epoch are timed; what starts Ray, fills the cache and judges the validation galaxies is left out, and
the whole job's rate given apart. Pixels are noise; the arithmetic does not mind. Runs alternate, so that a
busy machine slows both. Prints one JSON object on the last line.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import torch
from hardware import hardware
from noise_galaxies import publish_noise
from rates import compared
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from galray.classifier.augment import resample
from galray.classifier.network import Classifier
from galray.classifier.targets import MORPHOLOGY
from galray.classifier.train import PRESETS, ClassifyConfig, fit
from galray.core.cluster import connect
from galray.core.precision import in_bfloat16
from galray.core.storage import open_location

JUDGED = 64  # galaxies in each of the other splits

# Ray's workers are nice by default: on a busy machine the bare loop would get the processor, they not.
os.environ.setdefault("RAY_worker_niceness", "0")


def main(
    preset: str = "classes", galaxies: int = 16_000, epochs: int = 2, repeats: int = 3, workers: int = 1
) -> None:
    with tempfile.TemporaryDirectory(prefix="galray-classify-speed-") as name:
        chosen = PRESETS[preset].config
        scaling = replace(chosen.scaling, workers=workers)
        config = replace(chosen, root=name, epochs=epochs, validate_every=1, scaling=scaling)
        publish_noise(config.location(config.galaxies), galaxies, config.size_px, JUDGED)
        figures = {
            "hardware": hardware(),
            "preset": preset,
            "backbone": config.backbone,
            "size_px": config.size_px,
            "batch_size": config.batch_size,
            "bfloat16": in_bfloat16(config.precision, "cpu"),
            "galaxies": galaxies,
            "epochs": epochs,
            "workers": workers,
            "repeats": repeats,
            **compare(config, galaxies, repeats),
        }
    print(json.dumps(figures))


def compare(config: ClassifyConfig, galaxies: int, repeats: int) -> dict[str, object]:
    job, bare, whole = [], [], []
    with connect(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for i in range(repeats):
            started_s = time.perf_counter()
            result = fit(config, open_location(f"{config.root}/run-{i}"), [])
            whole.append(config.epochs * galaxies / (time.perf_counter() - started_s))
            job.append((result.metrics or {})["images_per_s"])
            bare.append(pool.submit(bare_loop, config, galaxies).result())
    return {**compared(job, bare), "whole_job_images_per_s": round(statistics.median(whole), 1)}


def bare_loop(config: ClassifyConfig, galaxies: int) -> float:
    """Train for the epochs, all in memory; returns the images per second of the last."""
    torch.set_num_threads(config.scaling.threads * config.scaling.workers)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    size = config.size_px
    images = torch.randint(256, (galaxies, size, size, 3), dtype=torch.uint8, generator=generator)
    classes = torch.randint(len(MORPHOLOGY), (galaxies,), generator=generator)
    model = Classifier(config.network()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    average = [parameter.detach().clone() for parameter in model.parameters()]
    update, rate = get_ema_multi_avg_fn(config.ema_decay), 0.0
    for _ in range(config.epochs):
        started_s = time.perf_counter()
        rows = torch.randperm(galaxies, generator=generator).split(config.batch_size)
        for chosen in rows:
            batch = resample(images[chosen], config.augmentation.draw(len(chosen), generator))
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16(config.precision, "cpu")):
                outputs = model(batch)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(outputs.morphology, classes[chosen]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimizer.step()
            with torch.no_grad():
                update(average, list(model.parameters()), 0)
        rate = galaxies / (time.perf_counter() - started_s)
    return rate


if __name__ == "__main__":
    chosen, *counts = sys.argv[1:] or ["classes"]
    main(chosen, *map(int, counts))
