"""The settings of a study: which galaxies' labels may be used, a choice that is stable and nested.

The labels of a class that a setting may use are those of its first galaxies in the order of a hash of seed
and galaxy id. So ten of a class are among its thirty, another seed has others, and nothing depends on the
machine or on what else is in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from galray.classifier.targets import MORPHOLOGY, find_target, morphology, truth
from galray.core.errors import ConfigError, nearest
from galray.core.schema import LABEL_ANSWERS, uniform_of

OTHER = "other"
_STREAM = 7_000  # of hashes that are split or drawn by elsewhere, none is near


@dataclass(frozen=True)
class Setting:
    """How many labels of each class may be used.

    Attributes
    ----------
    per_class : int or None
        Of every class, or of `rare` alone where that is named; None: all there are.
    rare : str
        The class that is cut; others keep all labels.
    """

    per_class: int | None
    rare: str = ""

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read ``30``, ``all``, or ``cigar_shaped_smooth:30``.

        Raises
        ------
        ConfigError
        """
        rare, _, count = text.rpartition(":")
        if text == "all":
            return cls(None)
        if not (count.isascii() and count.isdigit()) or (not rare and int(count) < 1):
            raise ConfigError(
                f"--settings {text!r}: give a number of labels for each class, all, or class:number, such as "
                "cigar_shaped_smooth:30."
            )
        return cls(int(count), rare)

    def __str__(self) -> str:
        if self.per_class is None:
            return "all labels"
        return f"{self.per_class} {self.rare}, all others" if self.rare else f"{self.per_class} of each class"

    @property
    def key(self) -> str:
        """A name for folders."""
        if self.per_class is None:
            return "all"
        return f"{self.rare}-{self.per_class}" if self.rare else f"{self.per_class}-of-each"

    def limit(self, name: str) -> int | None:
        """Return how many labels of a class may be used; None: all."""
        return self.per_class if self.rare in ("", name) else None

    def check_classes(self, names: tuple[str, ...]) -> None:
        """Refuse a rare class that there is not.

        Raises
        ------
        ConfigError
        """
        if self.rare and self.rare not in names:
            raise ConfigError(
                f"--settings {self.rare}:{self.per_class}: no class is named so{nearest(self.rare, names)}. "
                f"Use one of {', '.join(names)}."
            )


def class_names(target: str) -> tuple[str, ...]:
    """Return the classes that a study tells apart: morphologies, or a rare target and all others."""
    return (find_target(target).name, OTHER) if target else tuple(one.name for one in MORPHOLOGY)


def label_of(name: str, target: str) -> str:
    """Return the label by which a list says that a galaxy is of one of `class_names`."""
    return f"not_{find_target(target).name}" if name == OTHER else name


def classes_of(galaxies: pa.Table, target: str) -> np.ndarray:
    """Return the place of each galaxy's class in `class_names`, -1 where it is unknown: int64, shape (n,).

    Parameters
    ----------
    galaxies : pyarrow.Table
        As in `galray.classifier.targets.truth`.
    target : str
        The rare target; empty for morphologies.
    """
    if not target:
        return morphology(galaxies)
    known = truth(galaxies, find_target(target)).astype(np.int64)
    return np.where(known == 1, 0, np.where(known == 0, 1, -1))


def labelled_ids(
    galaxy_id: np.ndarray, classes: np.ndarray, names: tuple[str, ...], setting: Setting, seed: int
) -> np.ndarray:
    """Return the galaxies whose labels a setting may use.

    Parameters
    ----------
    galaxy_id : ndarray of int64, shape (n,)
        Of the training split.
    classes : ndarray of int64, shape (n,)
        As `classes_of` returns them; galaxies of unknown class have no label to use.
    names : tuple of str
        Of the classes.
    setting : Setting
    seed : int

    Returns
    -------
    ndarray of int64, ascending
    """
    order = np.argsort(uniform_of(galaxy_id, _STREAM + seed), kind="stable")
    chosen = [
        galaxy_id[order][classes[order] == index][: setting.limit(name)] for index, name in enumerate(names)
    ]
    return np.sort(np.concatenate(chosen))


def filled_up(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Share galaxies to paint so that with them the rarest classes have as many as they can have alike.

    Parameters
    ----------
    counts : mapping of str to int
        Real galaxies by class; not empty.
    total : int
        To paint.

    Returns
    -------
    dict of str to int
        By class; equal shares where the real ones are equally many.
    """
    painted = dict.fromkeys(counts, 0)
    for _ in range(total):
        painted[min(counts, key=lambda name: counts[name] + painted[name])] += 1
    return painted


def emphasis(counts: dict[str, int], unlabelled: int, share: float) -> tuple[str, ...]:
    """Return how often a denoiser is shown the labelled galaxies of each class among many without labels.

    Each class is shown equally often, and together they make up `share` of what is shown, or more where the
    labelled galaxies are more by themselves.

    Parameters
    ----------
    counts : dict of str to int
        Labelled galaxies by class.
    unlabelled : int
    share : float
        In (0, 1).

    Returns
    -------
    tuple of str
        As `galray.data.batches.EmphasisRule` reads them; none for a class that no GZ2 answers stand for.
    """
    known = {name: count for name, count in counts.items() if count and name in LABEL_ANSWERS}
    if not known:
        return ()
    each = max(share / (1 - share) * unlabelled, sum(known.values())) / len(known)
    times = {name: round(each / count) for name, count in known.items()}
    return tuple(f"{'+'.join(LABEL_ANSWERS[name])}:{n}" for name, n in times.items() if n > 1)
