"""Galaxies that benchmarks train on: noise, of which a network's arithmetic does not mind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from galray.classifier.targets import MORPHOLOGY
from galray.core.manifest import publish, write_parquet
from galray.core.schema import GALAXY_SCHEMA, N_ANSWERS
from galray.core.storage import Location
from galray.data.images import encode_jpeg
from galray.data.lineage import JUDGED_SPLITS


def noise_images(count: int, size_px: int) -> np.ndarray:
    """Return smooth noise, uint8 [count, size_px, size_px, 3], whose JPEGs have about a galaxy's size."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, size_px // 8 + 1, size_px // 8 + 1, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size_px, :size_px]


def publish_noise(location: Location, count: int, size_px: int, judged: int = 0) -> None:
    """Publish noise as galaxies to train on, with votes and labels, and `judged` more in each other split."""
    splits = ["train"] * count + [split for split in JUDGED_SPLITS for _ in range(judged)]
    votes = np.random.default_rng(1).random((len(splits), N_ANSWERS), dtype=np.float32)
    rows = [
        {
            "galaxy_id": i,
            "survey": "noise",
            "votes": votes[i].tolist(),
            "classifications": 40,
            "label": MORPHOLOGY[i % len(MORPHOLOGY)].name,
            "image": encode_jpeg(image),
            "height": size_px,
            "width": size_px,
            "split": splits[i],
            "source": "mock",
            "provenance": "{}",
        }
        for i, image in enumerate(noise_images(len(splits), size_px))
    ]
    with publish(location, "galaxies") as publication:
        table = pa.Table.from_pylist(rows, schema=GALAXY_SCHEMA)
        publication.add(write_parquet(location, "shards/part-0.parquet", table))
