"""Speed of the scan: cutouts from a tile, and the whole job beside the bare forward pass on the same cores.

    python tests/benchmarks/scan_speed.py [backbone] [repeats] [tiles] [sources of a scanned tile]

Cutouts: as many processes as cores, each opens a three-band tile of 4096 x 4096 pixels and cuts and colours
4,000 sources, at 64 px; opening counts. The tile is a mock one of 512 pixels, repeated.

The job: the same tile under several names, each with the 5,000 sources of a real one (a brick of the Legacy
Surveys, 3600 pixels wide), scanned by Ray with a ResNet-18, or another backbone, and timed from the first
units done to the last. Before and after it, as many processes of one thread apply the same network to batches
in memory, for the speed of a shared machine drifts within minutes.

The job again, on the fastest engine there is, beside a plain PyTorch loop over 1,000 sources of each of two
tiles: a Dataset that opens the tile of each source, astropy's Cutout2D and Lupton colours, a DataLoader of as
many processes as cores, the network in float32.

Engines: a thread each, the same batches. Weights are random; the arithmetic does not mind. Compare within a
run. Prints one JSON object on the last line.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.visualization import make_lupton_rgb
from astropy.wcs import WCS
from hardware import hardware
from rates import compared, per_s
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from untrained_classifier import publish_untrained

from galray.classifier import network
from galray.core.cluster import connect
from galray.core.precision import StatedPrecision
from galray.core.storage import open_location
from galray.data.images import Rendering
from galray.data.mock import MockConfig, render_tile
from galray.data.tile_files import TileFiles
from galray.data.tile_fits import open_tile
from galray.scan.columns import sources_table
from galray.scan.engine import Engine, mock_images
from galray.scan.options import ScanConfig
from galray.scan.pixels import CutSources, Side
from galray.scan.scan import scan

SIZE_PX = 64
TILE_PX, PATCH_PX = 4096, 512
BATCH_SIZE = 128
BARE_S = 60.0  # a processor is faster in its first seconds, and a scan is not over by then
ENGINE_S = 12.0
ROWS_PER_TASK = 1024  # a tile of up to eight times as many sources is a unit
CUTOUTS, PLAIN_SOURCES = 4000, 1000
BACKBONE = "resnet-18"

# Ray's workers are nice by default: on a busy machine the bare loop would get the processor, they not.
os.environ.setdefault("RAY_worker_niceness", "0")


def main(backbone: str = BACKBONE, repeats: int = 3, tiles: int = 8, sources: int = 5000) -> None:
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="galray-scan-speed-") as name:
        root = Path(name)
        write_survey(root, tiles, sources)
        publish_untrained(open_location(str(root / "classifier")), backbone, SIZE_PX)
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            cutting = list(pool.map(cut_tile, [root] * workers, range(workers), [CUTOUTS] * workers))
            runs = engines()
            rates = list(pool.map(engine_rate, [root] * len(runs), runs))
            fastest = runs[int(np.argmax(rates))]
            figures = {
                "hardware": hardware(),
                "repeats": repeats,
                "backbone": backbone,
                "cutouts_per_s": round(workers * CUTOUTS / max(seconds for seconds, _ in cutting)),
                "cutouts_peak_gib_all_processes": round(sum(peak for _, peak in cutting), 2),
                "engines_images_per_s": {
                    f"{engine.name} {engine.precision}": rate
                    for engine, rate in zip(runs, rates, strict=True)
                },
                **compare(root, pool, workers, repeats, fastest),
            }
    print(json.dumps(figures))


def compare(
    root: Path, pool: ProcessPoolExecutor, workers: int, repeats: int, fastest: Engine
) -> dict[str, object]:
    """Return the rates of the job beside the bare network, and beside a plain loop, in turns."""
    rates: dict[str, list[float]] = {name: [] for name in ("job", "bare", "fastest", "plain")}
    with connect():
        for i in range(repeats):
            before = bare_rate(root, pool, workers)
            rates["job"].append(scan_rate(root, Engine(), i, workers))
            rates["bare"].append((before + bare_rate(root, pool, workers)) / 2)
            rates["fastest"].append(scan_rate(root, fastest, i, workers))
            rates["plain"].append(pool.submit(plain_loop, root, workers).result())
    return {
        "scan": compared(rates["job"], rates["bare"]),
        f"scan with {fastest.name} in {fastest.precision}": compared(
            rates["fastest"], rates["plain"], "plain_loop"
        ),
    }


def scan_rate(root: Path, engine: Engine, run: int, workers: int) -> float:
    """Scan all tiles; returns sources a second."""
    name = f"{engine.name}-{engine.precision}-{run}"
    scan(
        ScanConfig(
            root=str(root),
            output=str(root / f"scan-{name}"),
            candidates=str(root / f"candidates-{name}"),
            engine=engine.name,
            precision=engine.precision,
            batch_size=BATCH_SIZE,
            rows_per_task=ROWS_PER_TASK,
            keep_image_score=1.0,
        )
    )
    return job_rate(root / f"scan-{name}/shards", workers)


class PlainSources(Dataset):
    """Cutouts as astropy's documentation makes them, one after another."""

    def __init__(self, root: Path, tile: int) -> None:
        self._path = root / f"survey/tiles/tile-{tile}.fits"
        self._rows = positions(root, tile, PLAIN_SOURCES)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        ra, dec = (self._rows[name][index].as_py() for name in ("ra", "dec"))
        hdus: Any
        with fits.open(self._path) as hdus:
            wcs = WCS(hdus["G"].header)
            where = SkyCoord(ra, dec, unit="deg")
            g, r, i = (
                Cutout2D(hdus[band].data, where, SIZE_PX, wcs, mode="partial", fill_value=0).data
                for band in "GRI"
            )
        return make_lupton_rgb(i, r, g)


def plain_loop(root: Path, workers: int) -> float:
    """Return sources a second, from the first batch on."""
    torch.set_num_threads(workers)
    model = Engine().load(open_location(str(root / "classifier")))
    sources, finished_s = ConcatDataset([PlainSources(root, tile) for tile in range(2)]), []
    for images in DataLoader(sources, BATCH_SIZE, num_workers=workers, drop_last=True):
        network.predict(model, images.numpy())
        finished_s.append(time.time())
    return BATCH_SIZE * per_s(finished_s, 1)


def cut_tile(root: Path, tile: int, sources: int) -> tuple[float, float]:
    """Open a tile and cut its sources; returns seconds, and this process's peak memory in GiB."""
    rows = catalogue(root, tile, sources)
    cutter = CutSources(
        TileFiles(open_location(str(root / "survey/tiles"))), Side(SIZE_PX), SIZE_PX, Rendering()
    )
    started_s = time.perf_counter()
    for first in range(0, sources, BATCH_SIZE):
        cutter(rows.slice(first, BATCH_SIZE))
    seconds = time.perf_counter() - started_s
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def job_rate(shards: Path, workers: int) -> float:
    """Return rows a second, from when each worker had its first unit done to the end of the last."""
    files = sorted(shards.iterdir(), key=lambda path: path.stat().st_mtime)
    rows = [pq.read_metadata(path).num_rows for path in files]
    times = [path.stat().st_mtime for path in files]
    return sum(rows[workers:]) / (times[-1] - times[workers - 1])


def bare_rate(root: Path, pool: ProcessPoolExecutor, workers: int) -> float:
    """Apply the classifier to a batch again and again, a process a core; returns images a second."""
    done = pool.map(apply, [root] * workers, [Engine()] * workers, [BARE_S] * workers)
    return BATCH_SIZE * per_s([t for times in done for t in times], workers)


def engines() -> list[Engine]:
    names = ["torch", *(["openvino"] if importlib.util.find_spec("openvino") else [])]
    return [Engine(name, precision) for name in names for precision in get_args(StatedPrecision)]


def engine_rate(root: Path, engine: Engine) -> float:
    """Return an engine's images a second, in one process of one thread."""
    return round(BATCH_SIZE * per_s(apply(root, engine, ENGINE_S), 1), 1)


def apply(root: Path, engine: Engine, for_s: float) -> list[float]:
    """Apply the classifier to the same batch for some seconds; returns when each was done, in seconds."""
    torch.set_num_threads(1)
    model = engine.load(open_location(str(root / "classifier")))
    images, until_s, finished_s = mock_images(SIZE_PX, BATCH_SIZE), time.time() + for_s, []
    while time.time() < until_s:
        network.predict(model, images, bfloat16=engine.bfloat16)
        finished_s.append(time.time())
    return finished_s


def write_survey(root: Path, tiles: int, sources: int) -> None:
    (root / "survey/tiles").mkdir(parents=True)
    (root / "survey/catalogue").mkdir()
    buffer, patch = io.BytesIO(), render_tile(MockConfig(tile_size_px=PATCH_PX), 0)
    patch.hdus.writeto(buffer)
    small = open_tile(buffer.getvalue(), "patch")
    planes = np.tile(small.data, (1, TILE_PX // PATCH_PX, TILE_PX // PATCH_PX))
    hdus = [
        fits.ImageHDU(plane, small.wcs.to_header(), name=name)
        for plane, name in zip(planes, "GRI", strict=True)
    ]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(root / "survey/tiles/tile-0.fits")
    for i in range(1, max(tiles, os.cpu_count() or 1)):
        os.link(root / "survey/tiles/tile-0.fits", root / f"survey/tiles/tile-{i}.fits")
    for i in range(tiles):
        rows = positions(root, i, sources)
        pq.write_table(rows, root / f"survey/catalogue/{i}.parquet")


def positions(root: Path, tile: int, sources: int) -> pa.Table:
    footprint = TileFiles(open_location(str(root / "survey/tiles"))).footprint(f"tile-{tile}")
    x_px, y_px = np.random.default_rng(tile).uniform(0, TILE_PX - 1, (2, sources))
    ra, dec = footprint.wcs.all_pix2world(x_px, y_px, 0)
    ids = np.arange(sources) + tile * sources
    return pa.table({"galaxy_id": ids, "ra": ra, "dec": dec, "tile": [f"tile-{tile}"] * sources})


def catalogue(root: Path, tile: int, sources: int) -> pa.Table:
    rows = positions(root, tile, sources)
    return sources_table({name: rows[name] for name in rows.column_names}, sources)


if __name__ == "__main__":
    backbone, *counts = sys.argv[1:] or [BACKBONE]
    main(backbone, *map(int, counts))
