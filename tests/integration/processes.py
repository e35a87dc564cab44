"""A job in a process of its own, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.integration.services import REPOSITORY

_TRAINING = ("train", "classify", "tune")
_PATIENCE_S = 600.0
_LOOK_S = 0.05  # between two looks, which can take all processes a hundredth of a second


class JobProcess:
    """A job that runs beside the test.

    Parameters
    ----------
    name : str
        Of its script.
    *options : str
    log : Path
        What it says is added there.
    """

    def __init__(self, name: str, *options: str, log: Path) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, f"jobs/{name}.py", *options], cwd=REPOSITORY, stdout=file, stderr=file
            )

    def wait_for(self, happened: Callable[[], object]) -> None:
        """Wait until something has happened while the job runs; a job in which it does not is killed."""
        until_s = time.monotonic() + _PATIENCE_S
        while not happened():
            assert self.process.poll() is None, "the job ended before it could be killed"
            if time.monotonic() > until_s:
                self.kill_all()
                raise TimeoutError(f"What was waited for did not happen in {_PATIENCE_S:.0f} s.")
            time.sleep(_LOOK_S)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_all(self) -> None:
        """Kill the driver and its Ray, as when a machine is lost."""
        children = self.children()
        os.kill(self.process.pid, signal.SIGKILL)
        for child in children:
            with suppress(psutil.NoSuchProcess):  # some end with the driver
                child.kill()
        self.process.wait()

    def end(self) -> int:
        return self.process.wait(timeout=_PATIENCE_S)


class Titled(NamedTuple):
    """A process of Ray's, and what it says of itself."""

    process: psutil.Process
    title: str


def titled(above: psutil.Process, *words: str) -> list[Titled]:
    """Return the processes below another whose title holds one of these words."""
    found = []
    for child in above.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            title = " ".join(child.cmdline()).strip()
            found += [Titled(child, title)] if any(word in title for word in words) else []
    return found


@contextmanager
def one_worker_killed(above: psutil.Process, job: str) -> Iterator[list[str]]:
    """Kill a process that does a job's own work during the block, once it is seen: some work for a second.

    Gives the titles of those killed: one in the end, or none where nobody was at work.
    """
    work = "RayTrainWorker" if job in _TRAINING else "MapBatches("  # in the title that Ray gives a process
    killed: list[str] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.wait(2 * _LOOK_S):
            for worker, title in titled(above, work)[:1]:
                with suppress(psutil.NoSuchProcess):  # it was faster
                    worker.kill()
                    killed.append(title)

    watch = threading.Thread(target=kill_one)
    watch.start()
    try:
        yield killed
    finally:
        over.set()
        watch.join()


def killed_after(
    count: int, job: JobProcess, output: Path, *, meanwhile: Callable[[int], None] = lambda _: None
) -> None:
    """Kill a job's driver once so many units are done; `meanwhile` is called with its pid before."""

    def are_done() -> bool:
        done = len(list(output.glob("units/*.json"))) >= count
        if not done:
            meanwhile(job.process.pid)
        return done

    try:
        job.wait_for(are_done)
    finally:
        job.process.kill()
        job.process.wait()
    time.sleep(1)  # Ray ends its workers, which may finish what they are at
