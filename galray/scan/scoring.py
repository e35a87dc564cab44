"""Images -> scores: a published classifier's application to a block."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from galray.classifier import network
from galray.core.manifest import local_folder
from galray.core.schema import SCORE_SCHEMA
from galray.core.storage import Location
from galray.data.images import encode_jpeg
from galray.scan.pixels import images_of

EARLY_TYPES = ("completely_round_smooth", "in_between_smooth")
_SCORED = {name: SCORE_SCHEMA.field(name).type for name in ("score", "early_type", "image")}


class Score:
    """Score the images of a block; the classifier is loaded once.

    Parameters
    ----------
    classifier : Location
        A published classifier.
    target : str
        Whose probability is the score.
    keep_image_score : float
        From this score on, the image is kept, as JPEG.
    bfloat16 : bool
        See `galray.classifier.network.predict`.
    """

    def __init__(self, classifier: Location, target: str, keep_image_score: float, bfloat16: bool) -> None:
        torch.set_num_threads(1)  # Ray runs as many tasks as there are cores
        with local_folder(classifier, "classifier") as folder:
            self._model = network.load(folder).to("cuda" if torch.cuda.is_available() else "cpu")
        settings = self._model.config
        self._target = settings.target_names.index(target)
        self._early = [i for i, name in enumerate(settings.class_names) if name in EARLY_TYPES]
        self._keep_image_score = keep_image_score
        self._bfloat16 = bfloat16

    def __call__(self, block: pa.Table) -> pa.Table:
        """Put ``score``, ``early_type`` and ``image`` in the place of ``pixels``; rejects get none."""
        good = np.flatnonzero(block["reason"].is_null().to_numpy())
        columns: dict[str, list[Any]] = {name: [None] * len(block) for name in _SCORED}
        for row, scored in zip(good, self._score(images_of(block)[good]), strict=True):
            for name, value in zip(_SCORED, scored, strict=True):
                columns[name][row] = value
        block = block.drop_columns("pixels")
        for name, values in columns.items():
            block = block.append_column(name, pa.array(values, _SCORED[name]))
        return block

    def _score(self, images: np.ndarray) -> list[tuple[float, float, bytes | None]]:
        """Return score, probability of an early type and kept image of each, uint8 (n, H, W, 3)."""
        if not len(images):
            return []
        said = network.predict(self._model, images, bfloat16=self._bfloat16)
        scores, early = said.targets[:, self._target], said.morphology[:, self._early].sum(axis=1)
        kept = scores >= np.float32(self._keep_image_score)
        jpegs = [encode_jpeg(rgb) if keep else None for rgb, keep in zip(images, kept, strict=True)]
        return list(zip(scores.tolist(), early.tolist(), jpegs, strict=True))


def score_in_task(block: pa.Table, *arguments: Any) -> pa.Table:
    """Score a block with the classifier that this process has loaded before, if it has."""
    return _loaded(*arguments)(block)


@lru_cache(maxsize=1)
def _loaded(*arguments: Any) -> Score:
    return Score(*arguments)
