"""Speed of ingest on JPEGs of 424x424 in a folder, beside a bare Pillow loop over the same files.

    python tests/benchmarks/ingest_speed.py [images] [repeats]

The bare loop reads each file and verifies it with Pillow (`Image.open` and `verify`, or `load` for
every pixel), on the same cores, and writes nothing. Ingest reads, checks, joins with the votes,
checksums and writes Parquet shards. Prints one JSON object on the last line.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from hardware import hardware
from PIL import Image

from galray.core.cluster import connect
from galray.core.schema import ANSWERS
from galray.data.ingest import IngestConfig, ingest
from galray.data.mock import MockConfig, cutout_jpeg, draw_truth

SIZE_PX = 424
DISTINCT = 400
FIRST_ID = 587722981736906879
FILES_PER_CHUNK = 500

# Ray's workers are nice by default: on a busy machine the bare loop would get the processor, they not.
os.environ.setdefault("RAY_worker_niceness", "0")


def main(images: int = 20_000, repeats: int = 5) -> None:
    with tempfile.TemporaryDirectory(prefix="galray-ingest-speed-") as name:
        folder = Path(name)
        config = write_inputs(folder, images)
        paths = [str(path) for path in sorted((folder / "images").iterdir())]
        figures = {
            "images": images,
            "mean_image_bytes": round(sum(map(os.path.getsize, paths)) / images),
            "hardware": hardware(),
            "header": compare(config, paths, read_and_verify, repeats),
            "decode": compare(replace(config, verify="decode"), paths, read_and_load, max(3, repeats // 2)),
        }
    print(json.dumps(figures))


def compare(
    config: IngestConfig, paths: list[str], look: Callable[[list[str]], int], repeats: int
) -> dict[str, float]:
    """Time ingest and the bare loops in turn, so that a busy machine slows both."""
    root = Path(config.root)
    cores = os.cpu_count() or 1
    ingest_s, bare_s, bare_one_s = [], [], []
    started = time.perf_counter()
    with connect(), ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        session_s = time.perf_counter() - started
        first_s = timed(lambda: ingest(replace(config, output=str(root / f"{config.verify}-first"))))
        bare_loop(pool, look, paths)
        for i in range(repeats):
            output = str(root / f"{config.verify}-{i}")
            ingest_s.append(timed(lambda output=output: ingest(replace(config, output=output))))
            bare_s.append(timed(lambda: bare_loop(pool, look, paths)))
            if i == 0:
                bare_one_s.append(timed(lambda: look(paths)))
    count, middle = len(paths), statistics.median
    return {
        "ingest_images_per_s": round(count / middle(ingest_s)),
        f"bare_{cores}_processes_images_per_s": round(count / middle(bare_s)),
        "bare_1_process_images_per_s": round(count / middle(bare_one_s)),
        f"ratio_to_bare_{cores}_processes": round(middle(bare_s) / middle(ingest_s), 3),
        "ratio_to_bare_1_process": round(middle(bare_one_s) / middle(ingest_s), 3),
        "first_ingest_of_a_session_images_per_s": round(count / first_s),
        "with_ray_start_images_per_s": round(count / (session_s + first_s)),
        "repeats": repeats,
    }


def bare_loop(pool: ProcessPoolExecutor, look: Callable[[list[str]], int], paths: list[str]) -> None:
    chunks = [paths[i : i + FILES_PER_CHUNK] for i in range(0, len(paths), FILES_PER_CHUNK)]
    assert sum(pool.map(look, chunks)) == len(paths)


def read_and_verify(paths: list[str]) -> int:
    for path in paths:
        with open(path, "rb") as file, Image.open(io.BytesIO(file.read())) as image:
            image.verify()
    return len(paths)


def read_and_load(paths: list[str]) -> int:
    for path in paths:
        with open(path, "rb") as file, Image.open(io.BytesIO(file.read())) as image:
            image.load()
    return len(paths)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def write_inputs(folder: Path, images: int) -> IngestConfig:
    """Write mock galaxies at the size of Galaxy Zoo 2's images, each of them many times, and their tables."""
    (folder / "images").mkdir()
    jpegs = galaxy_jpegs()
    for i in range(images):
        (folder / "images" / f"{i + 1}.jpg").write_bytes(jpegs[i % DISTINCT])
    objid = pa.array(np.arange(FIRST_ID, FIRST_ID + images))
    votes = np.random.default_rng(0).random((len(ANSWERS), images)).round(3)
    named = {f"{answer.column}_weighted_fraction": votes[i] for i, answer in enumerate(ANSWERS)}
    table = pa.table({"dr7objid": objid, "total_classifications": np.full(images, 44), **named})
    csv.write_csv(table, folder / "votes.csv")
    mapping = pa.table({"objid": objid, "asset_id": np.arange(1, images + 1)})
    csv.write_csv(mapping, folder / "mapping.csv")
    return IngestConfig(
        root=str(folder / "runs"),
        votes=str(folder / "votes.csv"),
        mapping=str(folder / "mapping.csv"),
        images=str(folder / "images"),
        expected_size_px=SIZE_PX,
    )


def galaxy_jpegs() -> list[bytes]:
    """Render mock galaxies, enlarge them, and add the grain that gives them a survey image's size."""
    mock, random = MockConfig(), np.random.default_rng(1)
    return [enlarged(cutout_jpeg(mock, row), random) for row in draw_truth(mock, 0, DISTINCT).to_pylist()]


def enlarged(jpeg: bytes, random: np.random.Generator) -> bytes:
    small = Image.open(io.BytesIO(jpeg)).convert("RGB")
    large = np.asarray(small.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), dtype=np.float32)
    grain = random.normal(0, 5, (SIZE_PX, SIZE_PX, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
