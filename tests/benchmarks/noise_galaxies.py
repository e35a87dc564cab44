"""Galaxies that benchmarks train on: noise, of which a network's arithmetic does not mind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from galray.core.manifest import publish, write_parquet
from galray.core.schema import GALAXY_SCHEMA, N_ANSWERS
from galray.core.storage import Location
from galray.data.images import encode_jpeg


def noise_images(count: int, size_px: int) -> np.ndarray:
    """Return smooth noise, uint8 [count, size_px, size_px, 3], whose JPEGs have about a galaxy's size."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, size_px // 8 + 1, size_px // 8 + 1, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size_px, :size_px]


def publish_noise(location: Location, count: int, size_px: int) -> None:
    """Publish noise as galaxies of the training split, with votes."""
    votes = np.random.default_rng(1).random((count, N_ANSWERS), dtype=np.float32)
    rows = [
        {
            "galaxy_id": i,
            "survey": "noise",
            "votes": votes[i].tolist(),
            "classifications": 40,
            "image": encode_jpeg(image),
            "height": size_px,
            "width": size_px,
            "split": "train",
            "source": "mock",
            "provenance": "{}",
        }
        for i, image in enumerate(noise_images(count, size_px))
    ]
    with publish(location, "galaxies") as publication:
        table = pa.Table.from_pylist(rows, schema=GALAXY_SCHEMA)
        publication.add(write_parquet(location, "shards/part-0.parquet", table))
