"""Galaxy shards -> batches of decoded images with their votes and labels, streamed by Ray Data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from ray.data import Dataset
from ray.data.expressions import col

from galray.core.cells import list_cells
from galray.core.errors import ConfigError, EmptyInputError, InputError, nearest
from galray.core.schema import ANSWER_INDEX, LABEL_ANSWERS
from galray.core.shards import read_shards, whole_table
from galray.core.storage import Location
from galray.data.images import decode_rgb, resize
from galray.data.labelled import Labelled
from galray.data.votes import answered, condition_votes


def read_galaxies(
    location: Location,
    split: str | None,
    columns: Sequence[str],
    kind: str = "galaxies",
    labelled: Labelled | None = None,
) -> Dataset:
    """Stream the galaxies of one split; None takes all.

    Where `labelled` is given, what is known of the galaxies is what it allows and gives.
    """
    where = col("split") == split if split else None
    galaxies = read_shards(location, kind, columns, where)
    return galaxies.map_batches(labelled.apply, batch_format="pyarrow") if labelled else galaxies


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
    """Galaxies to show `times` in an epoch: those that are `answered` so."""

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
        times = np.ones(len(galaxies), dtype=np.int64)
        for rule in self._rules:
            shown = np.where(answered(galaxies, rule.answers), rule.times, 1)
            times = np.maximum(times, shown)
        return galaxies.take(np.repeat(np.arange(len(galaxies)), times))


def with_images(location: Location, real: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Return real training galaxies, by label, with their images, for all of which shards are read once."""
    wanted = np.unique(np.concatenate([table["galaxy_id"].to_numpy() for table in real.values()]))
    rows = read_galaxies(location, "train", ("galaxy_id", "image")).map_batches(
        partial(_among, galaxy_id=wanted), batch_format="pyarrow"
    )
    images = whole_table(rows).sort_by("galaxy_id")["image"]
    return {
        label: table.append_column(
            "image", images.take(pa.array(np.searchsorted(wanted, table["galaxy_id"].to_numpy())))
        )
        for label, table in real.items()
    }


def _among(galaxies: pa.Table, galaxy_id: np.ndarray) -> pa.Table:
    return galaxies.filter(np.isin(galaxies["galaxy_id"].to_numpy(), galaxy_id))


def votes_of_class(location: Location, label: str, labelled: Labelled | None = None) -> pa.Table:
    """Return what is known of the training galaxies of one class, in all its variety.

    Those are of the class that are labelled so; where none is, those whose volunteers gave all
    answers that the label implies. Where `labelled` is given, what is known is what it allows and gives.

    Returns
    -------
    pyarrow.Table
        ``galaxy_id``, ascending, and ``votes``.

    Raises
    ------
    EmptyInputError
        There is none, or nothing that a denoiser could be asked for is known of them.
    """
    columns = ("galaxy_id", "votes", "classifications", "label")
    found = read_galaxies(location, "train", columns, labelled=labelled).map_batches(
        _OfClass(label).__call__, batch_format="pyarrow"
    )
    table = whole_table(found).sort_by("galaxy_id")
    of_label = _labelled(table, label)
    table = table.filter(of_label) if of_label.any() else table
    votes = condition_votes(table)
    if np.isnan(votes).all():
        known = ", ".join(LABEL_ANSWERS)
        raise EmptyInputError(
            f"{location.uri}: {len(table)} training galaxies are {label!r}{nearest(label, LABEL_ANSWERS)}, "
            f"and nothing is known of their votes. Give a label that the galaxies have, or one of {known}."
        )
    return table.select(["galaxy_id"]).append_column("votes", list_cells(votes))


class _OfClass:
    """Keep the galaxies that are labelled as of a class, or that volunteers saw so."""

    def __init__(self, label: str) -> None:
        self._label = label

    def __call__(self, galaxies: pa.Table) -> pa.Table:
        labelled = _labelled(galaxies, self._label)
        implied = LABEL_ANSWERS.get(self._label)
        return galaxies.filter(labelled | answered(galaxies, implied) if implied else labelled)


def _labelled(galaxies: pa.Table, label: str) -> np.ndarray:
    return np.array([found == label for found in galaxies["label"].to_pylist()], dtype=bool)
