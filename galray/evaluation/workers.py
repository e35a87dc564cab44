"""What Ray Data's workers do with batches of galaxies: examine them, measure shapes, search neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from galray.classifier import network
from galray.classifier.targets import UNKNOWN, morphology, truth
from galray.core.precision import Precision, in_bfloat16
from galray.core.storage import Location
from galray.data.batches import decode_images
from galray.data.images import resize
from galray.diffusion.fidelity import nearest_features, nearest_pixels
from galray.evaluation.morphometry import MORPHOMETRY, morphometry, photometry
from galray.evaluation.sample import THUMBNAIL_PX, Judge


class Examine:
    """Show galaxies to the classifier and measure their light; an actor that loads the network once.

    Called by Ray Data with Arrow tables of galaxies; returns the columns of `Sample`.
    """

    def __init__(self, classifier: Location, judge: Judge, threads: int, precision: Precision) -> None:
        torch.set_num_threads(threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = network.open_published(classifier).to(device)
        self._bfloat16 = in_bfloat16(precision, device)
        self._judge = judge

    def __call__(self, galaxies: pa.Table) -> dict[str, np.ndarray]:
        images = decode_images(galaxies, self._judge.config.size_px)
        said, features = network.examine(self._model, images, bfloat16=self._bfloat16)
        return {
            "galaxy_id": galaxies["galaxy_id"].to_numpy(),
            "morphology": morphology(galaxies, self._judge.config.classes),
            "predicted": said.morphology.argmax(axis=1),
            "features": features,
            "thumbnail": np.stack([resize(image, THUMBNAIL_PX) for image in images]),
            **self._of_target(galaxies, said.targets),
            **photometry(images),
        }

    def _of_target(self, galaxies: pa.Table, scores: np.ndarray) -> dict[str, np.ndarray]:
        target, decision = self._judge.target, self._judge.decision
        if target is None or decision is None:
            unknown = np.full(len(galaxies), UNKNOWN, dtype=np.int8)
            return {"truth": unknown, "accepted": np.zeros(len(galaxies), dtype=bool)}
        column = self._judge.config.target_names.index(target.name)
        accepted = scores[:, column] >= np.float32(decision.threshold)
        return {"truth": truth(galaxies, target), "accepted": accepted}


class MeasureShapes:
    """Measure the shape of each galaxy of a batch; see `morphometry.morphometry`.

    Called by Ray Data with Arrow tables of ``galaxy_id`` and ``image``; returns ``galaxy_id``, the columns of
    `MORPHOMETRY`, and ``failure``, empty where there is none.
    """

    def __init__(self, size_px: int) -> None:
        self._size_px = size_px

    def __call__(self, galaxies: pa.Table) -> dict[str, np.ndarray]:
        found = [morphometry(image) for image in decode_images(galaxies, self._size_px)]
        return {
            "galaxy_id": galaxies["galaxy_id"].to_numpy(),
            "failure": np.array([failure or "" for _, failure in found]),
            **{name: np.array([shape[name] for shape, _ in found]) for name in MORPHOMETRY},
        }


class SearchNearest:
    """Find the nearest of a batch of training galaxies to every query.

    Called by Ray Data with the columns of `Sample`; returns a row for each query.

    Parameters
    ----------
    queries : ObjectRef of dict
        ``features`` float32 [n, d] and ``thumbnail`` uint8 [n, H, H, 3]; read where it lies, without a copy.
    """

    def __init__(self, queries: ray.ObjectRef) -> None:
        self._queries = queries

    def __call__(self, training: Any) -> dict[str, np.ndarray]:
        queries, ids = ray.get(self._queries), training["galaxy_id"]
        features = nearest_features(queries["features"], training["features"], ids)
        pixels = nearest_pixels(queries["thumbnail"], training["thumbnail"], ids)
        return {
            "features_distance": features.distance,
            "features_id": features.galaxy_id,
            "pixels_distance": pixels.distance,
            "pixels_id": pixels.galaxy_id,
            "searched": np.full(len(features.distance), len(ids)),
        }
