"""Memory of a scan, and its driver's work, at 10,000 to 1,000,000 rows, each scan in a process of its own.

    python tests/benchmarks/scan_memory.py [rows ...]

A simulated catalogue: the sources of one mock tile, repeated under new ids, 5,000 to a tile, which are all
the same file. Of a hundred rows 49 are not selected, 49 have no position and become rejects, and two are cut
and scored, so that a million rows pass through every step in minutes. The peak of the driver is its own, as
the system counts it; that of the workers is the largest sum of what Ray's processes each hold alone (unique
set size), sampled twice a second, which leaves the shared object store out. Prints one JSON object on the
last line: `growth` is the largest peak over the smallest, `driver_us_per_row` what each row more, from one
size to the next, took of a processor in the driver: the start is in neither.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from hardware import hardware
from untrained_classifier import publish_untrained

from galray.core.cluster import connect
from galray.core.manifest import Manifest
from galray.core.storage import open_location
from galray.data.mock import MockConfig, render_tile
from galray.scan.options import ScanConfig
from galray.scan.scan import scan

SIZES = (10_000, 100_000, 1_000_000)
SIZE_PX = 64
ROWS_PER_BLOCK = 50_000
ROWS_PER_TILE = 5_000
SAMPLE_S = 0.5


def main(sizes: tuple[int, ...]) -> None:
    peaks = {}
    for rows in sizes:
        command = [sys.executable, __file__, "driver", str(rows)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[rows] = json.loads(said.splitlines()[-1])
    kinds = ("driver_mib", "workers_mib")
    growth = {
        kind: max(p[kind] for p in peaks.values()) / min(p[kind] for p in peaks.values()) for kind in kinds
    }
    per_row = {
        f"{fewer} to {more}": round(
            1e6 * (peaks[more]["driver_cpu_s"] - peaks[fewer]["driver_cpu_s"]) / (more - fewer), 2
        )
        for fewer, more in pairwise(sorted(peaks))
    }
    print(
        json.dumps({"peaks": peaks, "growth": growth, "driver_us_per_row": per_row, "hardware": hardware()})
    )


def drive(rows: int) -> None:
    """Scan a catalogue, and print what it took."""
    with tempfile.TemporaryDirectory(prefix="galray-scan-memory-") as folder:
        subprocess.run([sys.executable, __file__, "inputs", str(rows), folder], check=True)
        config = ScanConfig(root=folder, select="magnitude < 20", keep_image_score=1.0)
        workers = Workers()
        started_s = time.monotonic()
        with connect():
            workers.start()
            scan(config)
            seconds = time.monotonic() - started_s
            workers.stop()
        counts = Manifest.read(open_location(f"{folder}/scan"), "scores").counts
        assert counts["rows_in"] == rows
    used = resource.getrusage(resource.RUSAGE_SELF)
    peaks = {
        "driver_mib": round(used.ru_maxrss / 1024),
        "driver_cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "workers_mib": round(workers.peak_mib),
        "seconds": round(seconds),
    }
    print(json.dumps({**peaks, "counts": counts}))


class Workers:
    """What Ray's workers of this process hold, watched from a thread."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            held = sum(map(unique_bytes, psutil.Process().children(recursive=True)))
            self.peak_mib = max(self.peak_mib, held / 2**20)


def unique_bytes(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().uss if process.name().startswith("ray::Map") else 0
    except psutil.Error:
        return 0


def write_inputs(rows: int, root: Path) -> None:
    """Write what is scanned; in a process of its own, so that the driver's peak is the scan's."""
    tile, buffer = render_tile(MockConfig(tile_size_px=512), 0), io.BytesIO()
    tile.hdus.writeto(buffer)
    for name in ("survey/tiles", "survey/catalogue"):
        (root / name).mkdir(parents=True)
    (root / "survey/tiles/tile-0.fits").write_bytes(buffer.getvalue())
    for i in range(1, -(-rows // ROWS_PER_TILE)):
        os.link(root / "survey/tiles/tile-0.fits", root / f"survey/tiles/tile-{i}.fits")
    for first in range(0, rows, ROWS_PER_BLOCK):
        ids = np.arange(first, min(first + ROWS_PER_BLOCK, rows))
        pq.write_table(block(tile.catalogue, ids), root / f"survey/catalogue/{first:09d}.parquet")
    publish_untrained(open_location(str(root / "classifier")), "resnet-tiny", SIZE_PX)


def block(sources: pa.Table, ids: np.ndarray) -> pa.Table:
    rows, fate = sources.take(ids % len(sources)), ids % 100
    dec = np.where((fate >= 2) & (fate < 51), np.nan, rows["dec"].to_numpy())
    magnitude = np.where(fate >= 51, 22.0, 17.0)
    columns = {"galaxy_id": ids, "ra": rows["ra"], "dec": dec, "magnitude": magnitude}
    return pa.table({**columns, "tile": [f"tile-{n}" for n in ids // ROWS_PER_TILE]})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["driver", rows]:
            drive(int(rows))
        case ["inputs", rows, folder]:
            write_inputs(int(rows), Path(folder))
        case sizes:
            main(tuple(map(int, sizes)) or SIZES)
