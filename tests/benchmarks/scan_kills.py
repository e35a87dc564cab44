"""One scan, killed at random moments again and again: not one row is lost or doubled.

    PYTHONPATH=. python tests/benchmarks/scan_kills.py [kills] [sources] [seed]

A real cluster on this machine (a head and two nodes of one core), a real S3 service (Ceph's gateway) that
holds catalogue, tiles, classifier and scores. The survey is four mock tiles, their sources repeated under
new ids, and every tenth row broken, so that there are rejects too. It is scanned once undisturbed; then
again, while worker processes, a node's raylet and the driver are killed and the S3 service is stopped for
20 s, each in its turn at a random moment. A driver that ends is started again with ``--resume``, a raylet
and the service as well. At the end every row must be there as often as in the undisturbed scan, once, with
the same score to 1e-5. Prints one JSON object on the last line, and exits with 1 where rows differ.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from hardware import hardware
from untrained_classifier import publish_untrained

from galray.core.manifest import Manifest
from galray.core.storage import Location, open_location
from galray.data.mock import MockConfig, render_tile
from tests.integration import services

BUCKET = "galray-kills"
SIZE_PX = 64
N_TILES = 4
ROWS_PER_TASK = 16
STOPPED_S = 20.0
BETWEEN_S = (2.0, 8.0)


def main(kills: int = 20, sources: int = 20_000, seed: int = 0) -> None:
    with tempfile.TemporaryDirectory(prefix="galray-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "ray").mkdir()
        with (
            services.s3_service(folder / "s3") as endpoint,
            services.ray_cluster(folder / "ray", environment(endpoint), cpus=1) as access,
        ):
            root = open_location(f"s3://{BUCKET}/kills")
            write_inputs(root, sources)
            chaos = Chaos(root, access, folder, random.Random(seed))
            figures = chaos.compare(kills)
    print(json.dumps(figures))
    sys.exit(0 if figures["rows_differ"] == 0 else 1)


def environment(endpoint: str) -> dict[str, str]:
    """Set, for this process and those it starts, what leads to the service and to this code."""
    os.environ |= services.s3_environment(endpoint, BUCKET)
    os.environ |= {"PYTHONPATH": str(services.REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
    return dict(os.environ)


class Chaos:
    """A cluster that is hit while it scans."""

    def __init__(self, root: Location, access: dict[str, str], folder: Path, dice: random.Random) -> None:
        self._root, self._folder, self._dice = root, folder, dice
        self._environment = {**os.environ, **access, "RAY_ADDRESS": access["GALRAY_TEST_GCS"]}
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.hits: Counter[str] = Counter()
        self.drivers = 0

    def compare(self, kills: int) -> dict[str, Any]:
        """Scan undisturbed, then with so many hits; return how the rows compare."""
        for _ in range(2):
            self._start_node()
        try:
            undisturbed_s = self._run("undisturbed", 0)
            disturbed_s = self._run("disturbed", kills)
        finally:
            for node in self._nodes:
                node.terminate()
                node.wait()
        expected, found = (rows_of(self._root / name) for name in ("undisturbed", "disturbed"))
        return {
            "hardware": hardware(),
            "rows": len(expected),
            "rows_differ": differ(expected, found),
            "hits": dict(self.hits),
            "drivers_started": self.drivers,
            "undisturbed_s": round(undisturbed_s, 1),
            "disturbed_s": round(disturbed_s, 1),
            "counts": Manifest.read(self._root / "disturbed", "scores").counts,
        }

    def _run(self, output: str, kills: int) -> float:
        """Run a scan to its end, started again as often as it ends early."""
        started_s, driver, left = time.monotonic(), self._start_driver(output, resume=False), kills
        kinds = cycle(self._dice.sample(list(self._hits()), len(self._hits())))
        while driver.poll() is None or driver.returncode:
            if driver.poll() is not None:
                driver = self._start_driver(output, resume=True)
            if left:
                time.sleep(self._dice.uniform(*BETWEEN_S))
            if left and self._has_begun(output) and driver.poll() is None:
                kind = next(kinds)
                self._hits()[kind](driver)
                self.hits[kind] += 1
                left -= 1
            time.sleep(0.2)
        return time.monotonic() - started_s

    def _hits(self) -> dict[str, Callable[[subprocess.Popen[bytes]], None]]:
        return {
            "worker": self._kill_worker,
            "raylet": self._kill_raylet,
            "driver": lambda driver: driver.kill(),
            "store": self._stop_store,
        }

    def _has_begun(self, output: str) -> bool:
        return bool(
            (self._root / output / "units").children() or (self._root / output / "sources").children()
        )

    def _start_driver(self, output: str, *, resume: bool) -> subprocess.Popen[bytes]:
        self.drivers += 1
        options = {
            "root": self._root.uri,
            "output": f"{self._root.uri}/{output}",
            "candidates": f"{self._root.uri}/candidates-{output}",
            "rows-per-task": ROWS_PER_TASK,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        command = [sys.executable, "jobs/scan.py", *words, *(["--resume"] if resume else [])]
        with open(self._folder / f"driver-{self.drivers}.out", "wb") as out:
            return subprocess.Popen(
                command, cwd=services.REPOSITORY, env=self._environment, stdout=out, stderr=out
            )

    def _start_node(self) -> None:
        agent_port, metrics_port = services.free_ports(2)
        command = (
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1"),
            *("--address", self._environment["GALRAY_TEST_GCS"], "--object-store-memory", str(256 << 20)),
            *("--dashboard-agent-listen-port", str(agent_port), "--metrics-export-port", str(metrics_port)),
        )
        with open(self._folder / f"node-{len(self._nodes)}.out", "wb") as out:
            self._nodes.append(
                subprocess.Popen(command, env=self._environment, cwd=self._folder, stdout=out, stderr=out)
            )

    def _kill_worker(self, driver: subprocess.Popen[bytes]) -> None:  # noqa: ARG002
        processes = [p for node in self._alive() for p in children(node.pid, "ray::")]
        workers = [p for p in processes if "Agent" not in p.name()]  # with one of those its raylet ends too
        if workers:
            self._dice.choice(workers).kill()

    def _kill_raylet(self, driver: subprocess.Popen[bytes]) -> None:  # noqa: ARG002
        node = self._dice.choice(self._alive())
        for raylet in children(node.pid, "raylet"):
            raylet.kill()
        node.wait()
        self._start_node()

    def _alive(self) -> list[subprocess.Popen[bytes]]:
        return [node for node in self._nodes if node.poll() is None]

    def _stop_store(self, driver: subprocess.Popen[bytes]) -> None:  # noqa: ARG002
        (gateway,) = children(os.getpid(), "radosgw")
        gateway.suspend()  # its socket still takes connections, and nobody answers: the worst way to be away
        time.sleep(STOPPED_S)
        gateway.resume()


def children(pid: int, name: str) -> list[psutil.Process]:
    found = psutil.Process(pid).children(recursive=True)
    return [process for process in found if process.is_running() and process.name().startswith(name)]


def rows_of(scan: Location) -> list[tuple[str, float]]:
    """Return every row of a scan, scores and rejects, in order."""
    manifest = Manifest.read(scan, "scores")
    scores, rejects = (
        pads.dataset(manifest.paths(scan, part), filesystem=scan.filesystem).to_table()
        for part in ("shards", "rejects")
    )
    scored = zip(map(str, scores["galaxy_id"].to_pylist()), scores["score"].to_pylist(), strict=True)
    refused = zip(rejects["id_text"].to_pylist(), [-1.0] * len(rejects), strict=True)
    return sorted([*scored, *refused])


def differ(expected: list[tuple[str, float]], found: list[tuple[str, float]]) -> int:
    """Count rows that are lost, doubled, or scored otherwise."""
    lost = Counter(name for name, _ in expected)
    lost.subtract(name for name, _ in found)
    if wrong := sum(map(abs, lost.values())):
        return wrong
    return int(sum(abs(a - b) > 1e-5 for (_, a), (_, b) in zip(expected, found, strict=True)))


def write_inputs(root: Location, sources: int) -> None:
    config, catalogues = MockConfig(tile_size_px=480), []
    for index in range(N_TILES):
        tile, buffer = render_tile(config, index), io.BytesIO()
        tile.hdus.writeto(buffer)
        (root / f"survey/tiles/{tile.name}.fits").write_bytes(buffer.getvalue())
        catalogues.append(tile.catalogue)
    write_catalogue(root, pa.concat_tables(catalogues), sources)
    publish_untrained(root / "classifier", "resnet-tiny", SIZE_PX, threshold=0.9)


def write_catalogue(root: Location, once: pa.Table, sources: int) -> None:
    rows = once.take(np.arange(sources) % len(once))
    dec = np.where(np.arange(sources) % 10, rows["dec"].to_numpy(), 99.0)  # nowhere on the sky
    columns = {"galaxy_id": np.arange(sources), "ra": rows["ra"], "dec": dec, "tile": rows["tile"]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    (root / "survey/catalogue/catalogue.parquet").write_bytes(sink.getvalue().to_pybytes())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
