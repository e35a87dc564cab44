"""Units of sources -> scores: images are made a batch at a time, and published classifiers applied."""

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
from galray.classifier.network import Classifier
from galray.core.schema import SCORE_SCHEMA, uniform_of
from galray.core.storage import Location, storage_errors
from galray.data.images import encode_jpeg
from galray.scan.engine import Engine
from galray.scan.ensemble import at_prevalence_of
from galray.scan.pixels import images_of

EARLY_TYPES = ("completely_round_smooth", "in_between_smooth")
RANDOM_ARM_STREAM = 1  # of `schema.uniform_of`; its numbers know nothing of the splits
_BLOCKS = "blocks"
_SCORED = {
    name: SCORE_SCHEMA.field(name).type for name in ("score", "score_sd", "early_type", "random_arm", "image")
}


@dataclass(frozen=True)
class Scoring:
    """How images are scored; cheap to send to workers.

    Attributes
    ----------
    classifiers : tuple of Location
        Published classifiers of the target; the score is the mean of all.
    target : str
        Whose probability is the score.
    keep_image_score : float
        From this score on, the image is kept, as JPEG; that of the random arm always.
    random_share : float
        Share of the sources that are drawn for the random arm, by a hash of their ids.
    engine : Engine
    turns : bool
        Score each image in its eight symmetries.
    """

    classifiers: tuple[Location, ...]
    target: str
    keep_image_score: float = 1.0
    random_share: float = 0.0
    engine: Engine = Engine()  # noqa: RUF009 (frozen)
    turns: bool = False


class Score:
    """Score the images of a block; the classifiers are loaded once."""

    def __init__(self, scoring: Scoring) -> None:
        torch.set_num_threads(1)  # Ray runs as many tasks as there are cores
        self._scoring = scoring
        self._models = [scoring.engine.load(classifier) for classifier in scoring.classifiers]

    def __call__(self, block: pa.Table) -> pa.Table:
        """Put the columns of `_SCORED` in the place of ``pixels``; rejects get nulls."""
        good = np.flatnonzero(block["reason"].is_null().to_numpy())
        columns: dict[str, list[Any]] = {name: [None] * len(block) for name in _SCORED}
        ids = block["galaxy_id"].fill_null(0).to_numpy()[good]  # nulls would make it floats, and round
        if len(good):
            for name, values in self._score(images_of(block)[good], ids).items():
                for row, value in zip(good, values, strict=True):
                    columns[name][row] = value
        block = block.drop_columns("pixels")
        for name, values in columns.items():
            block = block.append_column(name, pa.array(values, _SCORED[name]))
        return block

    def _score(self, images: np.ndarray, ids: np.ndarray) -> dict[str, list[Any]]:
        """Return what is scored of each image, uint8 (n, H, W, 3), by column."""
        scoring = self._scoring
        turned = list(network.symmetries(images)) if scoring.turns else [images]
        passes = [self._targets_and_early(model, turn) for model in self._models for turn in turned]
        scores, early = (np.stack(values) for values in zip(*passes, strict=True))
        score = scores.mean(axis=0)
        drawn = uniform_of(ids, RANDOM_ARM_STREAM) < scoring.random_share
        kept = drawn | (score >= np.float32(scoring.keep_image_score))
        return {
            "score": score.tolist(),
            "score_sd": scores.std(axis=0).tolist() if len(passes) > 1 else [None] * len(images),
            "early_type": early.mean(axis=0).tolist(),
            "random_arm": drawn.tolist(),
            "image": [encode_jpeg(rgb) if keep else None for rgb, keep in zip(images, kept, strict=True)],
        }

    def _targets_and_early(self, model: Classifier, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities of the target, at the first one's prevalence, and of an early type."""
        said = network.predict(model, images, bfloat16=self._scoring.engine.bfloat16)
        settings, target = model.config, self._scoring.target
        of_target = said.targets[:, settings.target_names.index(target)]
        of_target = at_prevalence_of(self._models[0].config, settings, target, of_target)
        early = [i for i, name in enumerate(settings.class_names) if name in EARLY_TYPES]
        return of_target, said.morphology[:, early].sum(axis=1)


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
    scoring : Scoring
    """

    def __init__(self, images: UnitImages, scoring: Scoring) -> None:
        self._images = images
        self._score = _loaded(scoring)

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        made = unit.get(_BLOCKS)
        blocks = self._images.blocks(unit) if made is None else _batches(made)
        return pa.concat_tables(map(self._score, blocks))


def _batches(blocks: bytes) -> Iterator[pa.Table]:
    with pa.ipc.open_stream(blocks) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


@lru_cache(maxsize=1)  # the next scan of this process is most often one with the same classifier
def _loaded(scoring: Scoring) -> Score:
    return Score(scoring)
