"""Galaxy shards -> batches of decoded images with their votes and labels, streamed by Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from ray.data import Dataset
from ray.data.expressions import col

from galray.core.errors import ConfigError, InputError, nearest
from galray.core.schema import (
    ANSWER_INDEX,
    N_ANSWERS,
    QUESTION_INDEX,
    QUESTION_OF_ANSWER,
    votes_of_label,
)
from galray.core.shards import read_shards
from galray.core.storage import Location
from galray.data.images import decode_rgb, resize

ODD_VOLUNTEERS = 8  # fewer than these who find a galaxy odd may be mistaken (Willett et al. 2013)


def read_galaxies(
    location: Location, split: str | None, columns: Sequence[str], kind: str = "galaxies"
) -> Dataset:
    """Stream the galaxies of one split; None takes all."""
    where = col("split") == split if split else None
    return read_shards(location, kind, columns, where)


def decoded_once(galaxies: Dataset) -> Dataset:
    """Run a pipeline now and keep its blocks in the object store, which spills to disk.

    Epochs then start without reading or decoding anything, and a training worker's own memory
    does not grow with the number of galaxies.
    """
    galaxies.context.enable_progress_bars = False  # training shows its own progress
    return galaxies.materialize()


def votes_array(galaxies: pa.Table) -> np.ndarray:
    """Return the votes column as float32, shape (n, 37)."""
    votes = galaxies["votes"].combine_chunks()
    return votes.flatten().to_numpy(zero_copy_only=False).reshape(-1, N_ANSWERS)


def condition_votes(galaxies: pa.Table) -> np.ndarray:
    """Return what is known of each galaxy's votes, from volunteers or else from its class label.

    Parameters
    ----------
    galaxies : pyarrow.Table
        With ``votes`` and ``label``.

    Returns
    -------
    ndarray of float32, shape (n, 37)
        NaN where nothing is known: an unlabelled galaxy is all NaN.
    """
    votes = votes_array(galaxies).copy()
    for row in np.flatnonzero(np.isnan(votes).all(axis=1)):
        votes[row] = votes_of_label(galaxies["label"][int(row)].as_py())
    return votes


def decode_images(galaxies: pa.Table, size_px: int) -> np.ndarray:
    """Decode the ``image`` column to uint8, shape (n, size_px, size_px, 3).

    Raises
    ------
    InputError
        Names the galaxy whose image cannot be decoded.
    """
    images = np.empty((len(galaxies), size_px, size_px, 3), dtype=np.uint8)
    for i, data in enumerate(galaxies["image"]):
        try:
            images[i] = resize(decode_rgb(data.as_py()), size_px)
        except InputError as error:
            raise InputError(
                f"galaxy {galaxies['galaxy_id'][i]}: {error}. Ingest again with --verify decode."
            ) from error
    return images


@dataclass(frozen=True)
class EmphasisRule:
    """Galaxies to show `times` in an epoch: those to which volunteers gave each of some answers."""

    answers: tuple[str, ...]
    times: int

    @classmethod
    def parse(cls, text: str) -> EmphasisRule:
        """Read ``answer+answer:times``, such as ``smooth+dust_lane:20``.

        Raises
        ------
        ConfigError
            An unknown answer, or a number of times that is no positive integer.
        """
        names, _, times = text.rpartition(":")
        answers = tuple(name.strip() for name in names.split("+"))
        for name in answers:
            if name not in ANSWER_INDEX:
                raise ConfigError(
                    f"--emphasis {text!r}: {name!r} is no answer{nearest(name, ANSWER_INDEX)}. "
                    "Write answer+answer:times, such as smooth+dust_lane:20."
                )
        if not times.isascii() or not times.isdigit() or int(times) < 1:
            raise ConfigError(f"--emphasis {text!r} must end with how often, such as smooth+dust_lane:20.")
        return cls(answers, int(times))

    def applies(self, votes: np.ndarray, volunteers: np.ndarray) -> np.ndarray:
        """Say to which galaxies the rule applies; bool, shape (n,).

        Each of the answers needs at least half of the votes, and a feature that is asked for only of odd
        galaxies needs enough volunteers who found the galaxy odd.

        Parameters
        ----------
        votes : ndarray of float32, shape (n, 37)
        volunteers : ndarray of float32, shape (n,)
            NaN where unknown.
        """
        columns = [ANSWER_INDEX[name] for name in self.answers]
        found_odd = np.nan_to_num(votes[:, ANSWER_INDEX["odd"]] * volunteers) >= ODD_VOLUNTEERS
        asked_if_odd = QUESTION_OF_ANSWER[columns] == QUESTION_INDEX["odd_feature"]
        given = (np.nan_to_num(votes[:, columns]) >= 0.5) & (~asked_if_odd | found_odd[:, None])
        return given.all(axis=1)


class Emphasise:
    """Show some galaxies several times an epoch: rare ones are a percent of all, and what the model is for.

    Parameters
    ----------
    rules : sequence of str
        See `EmphasisRule.parse`. Where several apply to a galaxy, the most times count.
    """

    def __init__(self, rules: Sequence[str]) -> None:
        self._rules = [EmphasisRule.parse(rule) for rule in rules]

    def __call__(self, galaxies: pa.Table) -> pa.Table:
        votes = condition_votes(galaxies)
        volunteers = galaxies["classifications"].cast(pa.float32()).to_numpy(zero_copy_only=False)
        times = np.ones(len(galaxies), dtype=np.int64)
        for rule in self._rules:
            times = np.where(rule.applies(votes, volunteers), np.maximum(times, rule.times), times)
        return galaxies.take(np.repeat(np.arange(len(galaxies)), times))
