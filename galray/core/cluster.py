"""Ray: connect, the settings that every process needs, scaling and failures, progress."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.data import DataContext
from ray.experimental import tqdm_ray
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    UserCallback,
)

from galray import ENVIRONMENT
from galray.core.config import require
from galray.core.logs import quiet_driver
from galray.core.storage import Location, storage_errors

logger = logging.getLogger("galray")

_LAPTOP_OBJECT_STORE_BYTES = 1 << 30
_ELASTIC_CHECK_INTERVAL_S = 15.0


@dataclass(frozen=True)
class Scaling:
    """How many workers a training job gets, and what each of them holds."""

    workers: int = 1
    """Training processes; one GPU each where GPUs are used."""
    min_workers: int = 0
    """Go on with as few as these when nodes are lost, and grow back when they return; 0 waits for all."""
    shard: bool = False
    """Divide weights, gradients and optimiser state among the workers (FSDP2): for large networks."""
    use_gpu: bool = False
    cpus_per_worker: int = 1
    """CPUs that Ray sets aside for each worker."""
    threads_per_worker: int = 0
    """Threads of the numerical libraries; 0 takes all of the node's cores divided by the workers."""
    max_failures: int = 3
    """Lost workers that a run recovers from; preempted nodes are not counted."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, f"--scaling.workers is {self.workers}; give at least 1.")
        require(
            0 <= self.min_workers <= self.workers,
            f"--scaling.min-workers {self.min_workers} is not within 0 and --scaling.workers {self.workers}.",
        )
        require(
            self.cpus_per_worker >= 1,
            f"--scaling.cpus-per-worker is {self.cpus_per_worker}; give at least 1.",
        )

    def ray(self) -> ScalingConfig:
        return ScalingConfig(
            num_workers=(self.min_workers, self.workers) if self.min_workers else self.workers,
            elastic_resize_monitor_interval_s=_ELASTIC_CHECK_INTERVAL_S,
            use_gpu=self.use_gpu,
            resources_per_worker={"CPU": self.cpus_per_worker} | ({"GPU": 1} if self.use_gpu else {}),
        )

    @property
    def threads(self) -> int:
        return self.threads_per_worker or max(1, (os.cpu_count() or 1) // self.workers)


def train_run(name: str, storage: Location, scaling: Scaling, callbacks: list[UserCallback]) -> RunConfig:
    """Return where a Ray Train run keeps its checkpoints, and how it fails."""
    return RunConfig(
        name=name,
        storage_path=storage.path,
        storage_filesystem=storage.filesystem,
        failure_config=FailureConfig(max_failures=scaling.max_failures),
        checkpoint_config=CheckpointConfig(
            num_to_keep=1, checkpoint_score_attribute="loss", checkpoint_score_order="min"
        ),
        callbacks=callbacks,
    )


def checkpoint_of(folder: Path, figures: Mapping[str, Any]) -> Checkpoint:
    """Return a folder as a checkpoint to report; what it is reported with is kept in it too."""
    checkpoint = Checkpoint.from_directory(folder)
    checkpoint.set_metadata(dict(figures))
    return checkpoint


def latest_checkpoint() -> Checkpoint | None:
    """Return the checkpoint that this run goes on from, if any; all of its workers must call this.

    What was reported with it is reported again. Ray's controller keeps a checkpoint before it calls those
    who follow the run: killed in between, they would never hear of a step that is not taken again.
    """
    checkpoint = ray.train.get_checkpoint()
    figures = checkpoint.get_metadata() if checkpoint else {}
    if figures:
        ray.train.report(figures)
    return checkpoint


@contextmanager
def last_checkpoint(result: Result, storage: Location) -> Iterator[Path]:
    """Open the folder of a Ray Train run's last checkpoint.

    Raises
    ------
    StorageError
        `storage`, where the run keeps it, cannot be read.
    """
    assert result.checkpoint is not None  # the last step always reports one
    with ExitStack() as opened:
        with storage_errors(storage.uri):  # of what is done with the folder, storage is not to blame
            folder = opened.enter_context(result.checkpoint.as_directory())
        yield Path(folder)


@contextmanager
def connect() -> Iterator[None]:
    """Join the cluster that ``RAY_ADDRESS`` or ``ray job submit`` names, or start one on this machine."""
    os.environ.setdefault("GALRAY_PROGRESS", "bar" if sys.stderr.isatty() else "lines")
    quiet_driver()
    ray.init(logging_level=logging.ERROR, **_where())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # after Ray's own, which can abort at the exit
    DataContext.get_current().execution_options.preserve_order = True
    try:
        yield
    finally:
        ray.shutdown()


def _where() -> dict[str, Any]:
    """Keys and passwords travel by the cluster's own environment or role, never through Ray's records."""
    everywhere: dict[str, Any] = {"worker_process_setup_hook": "galray.core.logs.quiet_worker"}
    if os.environ.get("RAY_ADDRESS"):
        everywhere["env_vars"] = {name: os.environ[name] for name in (*ENVIRONMENT, "GALRAY_PROGRESS")}
        return {"runtime_env": everywhere}
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts a laptop
    return {
        "address": "local",
        "include_dashboard": False,  # nine processes and 230 MB to watch one machine
        "object_store_memory": _LAPTOP_OBJECT_STORE_BYTES,
        "runtime_env": everywhere,
    }


class Progress:
    """Progress of a long step: a bar at a terminal, a plain line every ten seconds in a log.

    Works in any Ray process; the driver shows it.
    """

    _LINE_INTERVAL_S = 10.0

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._started_s = self._last_line_s = time.monotonic()
        self._done = self._already = 0
        as_bar = os.environ.get("GALRAY_PROGRESS") == "bar"
        self._bar = tqdm_ray.tqdm(total=total, desc=label, unit=f" {unit}") if as_bar else None

    def start_at(self, done: int) -> None:
        """Count from `done`, as a resumed run does, without taking it into the rate."""
        self._done = self._already = done
        if self._bar is not None:
            self._bar.update(done)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Take note of `count` more units."""
        self._done += count
        if self._bar is not None:
            self._bar.set_description(f"{self._label} {note}".rstrip())
            self._bar.update(count)
        elif time.monotonic() - self._last_line_s > self._LINE_INTERVAL_S or self._done >= self._total:
            self._last_line_s = time.monotonic()
            say(self._line(note))

    def _line(self, note: str) -> str:
        rate = (self._done - self._already) / max(time.monotonic() - self._started_s, 1e-9)
        left_s = (self._total - self._done) / rate if rate else float("inf")
        parts = [
            f"{self._label}: {self._done}/{self._total} {self._unit}",
            f"{rate:.3g}/s",
            f"{left_s:.0f} s left",
        ]
        return ", ".join([*parts, note] if note else parts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def say(message: str) -> None:
    """Tell the person at the driver, from any process."""
    # not print: Ray Train patches it, and each line would come twice
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")
    sys.stderr.flush()
