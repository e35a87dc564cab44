"""Peak memory of ingest's driver at 10,000 and at 100,000 rows, each in a process of its own.

    python tests/benchmarks/ingest_memory.py [rows ...]

The images are a few hundred JPEGs of 64x64 under many names (hard links). Prints one JSON object on
the last line; `growth` is the largest peak over the smallest.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from hardware import hardware

from galray.core.cluster import connect
from galray.core.schema import ANSWERS
from galray.data.ingest import IngestConfig, ingest
from galray.data.mock import MockConfig, cutout_jpeg, draw_truth

SIZES = (10_000, 100_000)
SIZE_PX = 64
DISTINCT = 200
FIRST_ID = 587722981736906879


def main(sizes: tuple[int, ...]) -> None:
    peaks = {}
    for rows in sizes:
        command = [sys.executable, __file__, "driver", str(rows)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        peaks[rows] = float(said.splitlines()[-1])
    figures = {"driver_peak_mib": peaks, "growth": max(peaks.values()) / min(peaks.values())}
    print(json.dumps(figures | {"hardware": hardware()}))


def drive(rows: int) -> None:
    """Ingest `rows` galaxies, and print this process's peak resident memory in MiB."""
    with tempfile.TemporaryDirectory(prefix="galray-ingest-memory-") as folder:
        subprocess.run([sys.executable, __file__, "inputs", str(rows), folder], check=True)
        config = IngestConfig(
            root=f"{folder}/run",
            votes=f"{folder}/votes.csv",
            images=f"{folder}/images",
            expected_size_px=SIZE_PX,
        )
        with connect():
            assert ingest(config).counts["rows_out"] == rows
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def write_inputs(rows: int, folder: Path) -> None:
    """Write the images and their table; in a process of its own, so that the driver's peak is ingest's."""
    (folder / "images").mkdir()
    mock = MockConfig()
    for i, galaxy in enumerate(draw_truth(mock, 0, DISTINCT).to_pylist()):
        (folder / "images" / f"{i + 1}.jpg").write_bytes(cutout_jpeg(mock, galaxy))
    for i in range(DISTINCT, rows):
        os.link(folder / "images" / f"{i % DISTINCT + 1}.jpg", folder / "images" / f"{i + 1}.jpg")
    votes = np.random.default_rng(0).random((len(ANSWERS), rows)).round(3)
    columns = {f"{answer.column}_weighted_fraction": votes[i] for i, answer in enumerate(ANSWERS)}
    ids = {"dr7objid": np.arange(FIRST_ID, FIRST_ID + rows), "asset_id": np.arange(1, rows + 1)}
    csv.write_csv(
        pa.table({**ids, "total_classifications": np.full(rows, 44), **columns}), folder / "votes.csv"
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["driver", rows]:
            drive(int(rows))
        case ["inputs", rows, folder]:
            write_inputs(int(rows), Path(folder))
        case sizes:
            main(tuple(map(int, sizes)) or SIZES)
