"""Speed of the training job, beside a bare PyTorch loop on tensors in memory.

    python tests/benchmarks/training_speed.py [steps] [repeats]

Both train the same network on the same galaxies, in batches of the same size and the same precision, with
the same optimiser, clipping and moving average, on all cores. The job reads its cache, draws what its
exact resume needs, reports, tracks metrics and keeps checkpoints as often as its preset says; the bare loop
indexes a tensor. Both are timed over the second half of their steps, for processors are faster in their first
seconds, and what starts Ray and the worker, computes the cache, or opens MLflow is left out. Runs alternate,
so that a busy machine slows both. Prints one JSON object on the last line.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from hardware import hardware
from mlflow import MlflowClient
from noise_galaxies import noise_images, publish_noise
from rates import compared
from torch.optim.swa_utils import get_ema_multi_avg_fn

from galray.core.cluster import connect
from galray.core.precision import in_bfloat16
from galray.core.schema import N_ANSWERS
from galray.core.storage import open_location
from galray.diffusion.codec import PixelCodec
from galray.diffusion.denoiser import build_denoiser
from galray.diffusion.train import PRESETS, TrainConfig, train

GALAXIES = 1024
PRESET = "laptop"

# Ray's workers are nice by default: on a busy machine the bare loop would get the processor, they not.
os.environ.setdefault("RAY_worker_niceness", "0")


def main(steps: int = 600, repeats: int = 3) -> None:
    preset = PRESETS[PRESET].config
    job, bare = [], []
    with tempfile.TemporaryDirectory(prefix="galray-training-speed-") as name, connect():
        publish_noise(open_location(f"{name}/galaxies"), GALAXIES, preset.denoiser.size_px)
        for i in range(repeats):
            config = replace(
                preset,
                root=name,
                output=f"{name}/denoiser-{i}",
                steps=steps,
                emphasis=(),
            )
            train(config)
            job.append(job_rate(Path(name), config))
            # A process of its own, as the job's worker is: what one leaves in memory does not slow the next.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                bare.append(pool.submit(bare_rate, config).result())
    figures = {
        "hardware": hardware(),
        "preset": PRESET,
        "batch_size": preset.batch_size,
        "bfloat16": in_bfloat16(preset.precision, "cpu"),
        "steps": steps,
        "repeats": repeats,
        **compared(job, bare),
    }
    print(json.dumps(figures))


def job_rate(root: Path, config: TrainConfig) -> float:
    """Return images a second over the second half of the latest run, but for its last checkpoint."""
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("galray")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    points = next(p for run in runs if (p := client.get_metric_history(run.info.run_id, "loss")))
    points = sorted((point for point in points if 2 * point.step >= config.steps), key=lambda p: p.step)
    first, last = points[0], points[-2]  # the last report comes when all has been written
    return config.batch_size * (last.step - first.step) / (last.timestamp - first.timestamp) * 1e3


def bare_rate(config: TrainConfig) -> float:
    """Train on tensors in memory; returns images a second over the second half."""
    torch.manual_seed(0)
    images = torch.from_numpy(noise_images(GALAXIES, config.denoiser.size_px))
    votes = torch.rand(GALAXIES, N_ANSWERS)
    codec = PixelCodec.fit([images], size_px=config.denoiser.size_px, fold=config.denoiser.fold)
    denoiser = build_denoiser(config.denoiser, codec, config.objective)
    bfloat16 = in_bfloat16(config.precision, "cpu")
    if bfloat16:
        denoiser.attend_plainly()  # as the job does
    average = [parameter.detach().clone() for parameter in denoiser.parameters()]
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.learning_rate, fused=True)
    update, generator, started_s = get_ema_multi_avg_fn(config.ema_decay), torch.Generator(), 0.0
    for step in range(config.steps):
        if 2 * step == config.steps:
            started_s = time.perf_counter()
        rows = torch.randint(GALAXIES, (config.batch_size,))
        latents = codec.encode(images[rows])
        draws = config.objective.draw(tuple(latents.shape), generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = config.objective.loss(denoiser, latents, draws, votes[rows]).per_galaxy.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), config.gradient_clip)
        optimizer.step()
        with torch.no_grad():
            update(average, list(denoiser.parameters()), 0)
    return config.batch_size * config.steps / 2 / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
