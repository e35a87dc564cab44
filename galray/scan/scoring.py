"""Units of sources -> scores: images are made a batch at a time, and a published classifier is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from galray.classifier import network
from galray.core.manifest import local_folder
from galray.core.schema import SCORE_SCHEMA, uniform_of
from galray.core.storage import Location, storage_errors
from galray.data.images import encode_jpeg
from galray.scan.pixels import images_of

EARLY_TYPES = ("completely_round_smooth", "in_between_smooth")
RANDOM_ARM_STREAM = 1  # of `schema.uniform_of`; its numbers know nothing of the splits
_BLOCKS = "blocks"
_SCORED = {name: SCORE_SCHEMA.field(name).type for name in ("score", "early_type", "random_arm", "image")}


class Score:
    """Score the images of a block; the classifier is loaded once.

    Parameters
    ----------
    classifier : Location
        A published classifier.
    target : str
        Whose probability is the score.
    keep_image_score : float
        From this score on, the image is kept, as JPEG; that of the random arm always.
    random_share : float
        Share of the sources that are drawn for the random arm, by a hash of their ids.
    bfloat16 : bool
        See `galray.classifier.network.predict`.
    """

    def __init__(
        self,
        classifier: Location,
        target: str,
        keep_image_score: float,
        random_share: float,
        bfloat16: bool,
    ) -> None:
        torch.set_num_threads(1)  # Ray runs as many tasks as there are cores
        with local_folder(classifier, "classifier") as folder:
            self._model = network.load(folder).to("cuda" if torch.cuda.is_available() else "cpu")
        settings = self._model.config
        self._target = settings.target_names.index(target)
        self._early = [i for i, name in enumerate(settings.class_names) if name in EARLY_TYPES]
        self._keep_image_score = keep_image_score
        self._random_share = random_share
        self._bfloat16 = bfloat16

    def __call__(self, block: pa.Table) -> pa.Table:
        """Put ``score``, ``early_type`` and ``image`` in the place of ``pixels``; rejects get none."""
        good = np.flatnonzero(block["reason"].is_null().to_numpy())
        columns: dict[str, list[Any]] = {name: [None] * len(block) for name in _SCORED}
        ids = block["galaxy_id"].fill_null(0).to_numpy()[good]  # nulls would make it floats, and round
        for row, scored in zip(good, self._score(images_of(block)[good], ids), strict=True):
            for name, value in zip(_SCORED, scored, strict=True):
                columns[name][row] = value
        block = block.drop_columns("pixels")
        for name, values in columns.items():
            block = block.append_column(name, pa.array(values, _SCORED[name]))
        return block

    def _score(self, images: np.ndarray, ids: np.ndarray) -> list[tuple[float, float, bool, bytes | None]]:
        """Return what is scored of each image, uint8 (n, H, W, 3), in the order of `_SCORED`."""
        if not len(images):
            return []
        said = network.predict(self._model, images, bfloat16=self._bfloat16)
        scores, early = said.targets[:, self._target], said.morphology[:, self._early].sum(axis=1)
        drawn = uniform_of(ids, RANDOM_ARM_STREAM) < self._random_share
        kept = drawn | (scores >= np.float32(self._keep_image_score))
        jpegs = [encode_jpeg(rgb) if keep else None for rgb, keep in zip(images, kept, strict=True)]
        return list(zip(scores.tolist(), early.tolist(), drawn.tolist(), jpegs, strict=True))


@dataclass(frozen=True)
class UnitImages:
    """Make the images of a unit's rows, a batch at a time; cheap to send to workers.

    Attributes
    ----------
    files : Location
        The folder that units' paths lead from.
    columns : tuple of str or None
        Those that are read; None reads all.
    make : callable
        `galray.scan.pixels.CutSources` or `DecodeGalaxies`.
    batch_size : int
    """

    files: Location
    columns: tuple[str, ...] | None
    make: Callable[[pa.Table], pa.Table]
    batch_size: int

    def blocks(self, unit: dict[str, Any]) -> Iterator[pa.Table]:
        """Yield the unit's rows as `galray.scan.pixels.scanned_schema`, a batch at a time."""
        place = self.files / unit["path"]
        with storage_errors(place.uri), pq.ParquetFile(place.path, filesystem=place.filesystem) as file:
            for batch in file.iter_batches(self.batch_size, columns=self.columns):
                yield self.make(pa.Table.from_batches([batch]))

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        """Return the unit with all its blocks, for a process that holds a GPU to score."""
        sink = pa.BufferOutputStream()
        blocks = self.blocks(unit)
        first = next(blocks)
        with pa.ipc.new_stream(sink, first.schema) as writer:
            writer.write_table(first)
            for block in blocks:
                writer.write_table(block)
        return {**unit, _BLOCKS: sink.getvalue().to_pybytes()}


class ScoreUnit:
    """Make and score the images of one unit after another.

    Parameters
    ----------
    images : UnitImages
    *arguments
        Of `Score`.
    """

    def __init__(self, images: UnitImages, *arguments: Any) -> None:
        self._images = images
        self._score = _loaded(*arguments)

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        made = unit.get(_BLOCKS)
        blocks = self._images.blocks(unit) if made is None else _batches(made)
        return pa.concat_tables(map(self._score, blocks))


def _batches(blocks: bytes) -> Iterator[pa.Table]:
    with pa.ipc.open_stream(blocks) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


@lru_cache(maxsize=1)  # the next scan of this process is most often one with the same classifier
def _loaded(*arguments: Any) -> Score:
    return Score(*arguments)
