"""Galaxy shards -> images and what is true of them, as the classifier's cache holds it.

Ray's tasks open this module to decode images, and need neither torch nor the networks, whose import takes
longer than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from galray.classifier.targets import UNKNOWN, morphology, truths
from galray.core.cells import cache_table, votes_array
from galray.data.batches import decode_images
from galray.data.votes import classifications_array, volunteers_by_question

if TYPE_CHECKING:
    from galray.classifier.approval import Approver
    from galray.classifier.network import ClassifierConfig

LABEL_COLUMNS = ("galaxy_id", "votes", "classifications", "label", "source")


class PrepareGalaxies:
    """Decode galaxies and find what is true of them.

    Called by Ray Data with Arrow tables; returns what `cache_table` makes of ``galaxy_id`` int64 [n],
    ``image`` uint8 [n, size, size, 3], ``morphology`` int64 [n] and ``targets`` int8 [n, targets], -1 where
    unknown; where votes are learnt, ``votes`` float32 [n, 37] and how many gave them, ``volunteers`` float32
    [n, 11].

    Parameters
    ----------
    config : ClassifierConfig
    only_known : bool
        Leave out galaxies of which nothing is known: nothing can be learnt from them.
    approver : Approver, optional
        What synthetic galaxies were asked for is true of them if it sees it.
    """

    def __init__(
        self, config: ClassifierConfig, *, only_known: bool = False, approver: Approver | None = None
    ) -> None:
        self._size_px, self._classes, self._targets = config.size_px, config.classes, config.targets
        self._votes, self._only_known, self._approver = config.votes, only_known, approver

    def __call__(self, galaxies: pa.Table) -> pa.Table:
        labels = self.labels(galaxies)
        if self._approver:
            labels = self._approver(galaxies, labels)
        if self._only_known:
            known = is_known(labels)
            galaxies = galaxies.filter(pa.array(known))
            labels = {name: values[known] for name, values in labels.items()}
        images = decode_images(galaxies, self._size_px)
        if not self._targets:
            del labels["targets"]
        return cache_table({"galaxy_id": galaxies["galaxy_id"].to_numpy(), "image": images, **labels})

    def labels(self, galaxies: pa.Table) -> dict[str, np.ndarray]:
        """Return what is true of galaxies, without their images; needs `LABEL_COLUMNS` only."""
        labels = {
            "morphology": morphology(galaxies, self._classes),
            "targets": truths(galaxies, self._targets),
        }
        if not self._votes:
            return labels
        votes = votes_array(galaxies)
        asked = volunteers_by_question(votes, classifications_array(galaxies))
        return {**labels, "votes": votes, "volunteers": asked}


def is_known(labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return of which galaxies anything is known: bool, shape (n,)."""
    known = (labels["morphology"] != UNKNOWN) | (labels["targets"] != UNKNOWN).any(axis=1)
    return known | labels["volunteers"].any(axis=1) if "volunteers" in labels else known
