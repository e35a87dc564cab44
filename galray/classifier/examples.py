"""Galaxy shards -> what the classifier learns from: images, classes and targets."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from galray.classifier.targets import Target, morphology, truths
from galray.data.batches import decode_images

LABEL_COLUMNS = ("galaxy_id", "votes", "classifications", "label", "source")


class PrepareGalaxies:
    """Decode galaxies and find what is true of them.

    Called by Ray Data with Arrow tables; returns ``galaxy_id`` int64 [n], ``image`` uint8
    [n, size, size, 3], ``morphology`` int64 [n] and ``targets`` int8 [n, targets], -1 where unknown.
    """

    def __init__(self, size_px: int, classes: tuple[Target, ...], targets: tuple[Target, ...]) -> None:
        self._size_px, self._classes, self._targets = size_px, classes, targets

    def __call__(self, galaxies: pa.Table) -> dict[str, np.ndarray]:
        return {
            "galaxy_id": galaxies["galaxy_id"].to_numpy(),
            "image": decode_images(galaxies, self._size_px),
            **self.labels(galaxies),
        }

    def labels(self, galaxies: pa.Table) -> dict[str, np.ndarray]:
        """Return ``morphology`` and ``targets`` alone; needs `LABEL_COLUMNS` only."""
        return {
            "morphology": morphology(galaxies, self._classes),
            "targets": truths(galaxies, self._targets),
        }
