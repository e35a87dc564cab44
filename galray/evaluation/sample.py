"""What is kept of each galaxy for a comparison: some kilobytes, whatever the size of its picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from galray.classifier import network
from galray.classifier.decision import DECISION_FILE, Decision
from galray.classifier.network import ClassifierConfig
from galray.classifier.targets import UNKNOWN, Target
from galray.core.storage import Location

THUMBNAIL_PX = 16


@dataclass(frozen=True)
class Judge:
    """What a published classifier can tell: classes always, a rare target where it was trained for one.

    Attributes
    ----------
    config : ClassifierConfig
    decision : Decision or None
        From which score on a galaxy is accepted as the target.
    """

    config: ClassifierConfig
    decision: Decision | None

    @classmethod
    def read(cls, classifier: Location) -> Judge:
        config = network.published_settings(classifier)
        known = (classifier / DECISION_FILE).exists()
        return cls(config, Decision.read(classifier) if known else None)

    @property
    def target(self) -> Target | None:
        """The rare target that the decision is about."""
        return next(
            (t for t in self.config.targets if self.decision and t.name == self.decision.target), None
        )

    @property
    def strata(self) -> tuple[str, ...]:
        """Names of what `Sample.stratum` tells apart: each class, without and with the target."""
        names = self.config.class_names
        if self.target is None:
            return names
        return tuple(name for c in names for name in (c, f"{c}, {self.target.name}"))

    def stratum(self, morphology: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Return int64 [n], the index into `strata` of each galaxy; -1 where its class is unknown."""
        if self.target is None:
            return morphology
        return np.where(morphology == UNKNOWN, UNKNOWN, 2 * morphology + (truth == 1))


class Light(NamedTuple):
    """How bright galaxies are: `stratum` int64 (n,), see `Judge.strata`, and `brightness` float64 (n,)."""

    stratum: np.ndarray
    brightness: np.ndarray


@dataclass(frozen=True)
class Sample:
    """Galaxies as a comparison sees them.

    Attributes
    ----------
    galaxy_id : ndarray of int64, shape (n,)
    morphology : ndarray of int64, shape (n,)
        Class that is true of a real galaxy, or was asked for of a synthetic one; -1 unknown.
    truth : ndarray of int8, shape (n,)
        Whether it is of the rare target, or was asked to be: 1, 0, or -1 (unknown, or there is no target).
    predicted : ndarray of int64, shape (n,)
        Class that the classifier sees.
    accepted : ndarray of bool, shape (n,)
        Whether the classifier takes it for the target.
    features : ndarray of float32, shape (n, d)
        Of the classifier's last layer but one.
    thumbnail : ndarray of uint8, shape (n, 16, 16, 3)
    brightness, flux, g_r, r_i : ndarray of float64, shape (n,)
        See `morphometry.PHOTOMETRY`.
    """

    galaxy_id: np.ndarray
    morphology: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    accepted: np.ndarray
    features: np.ndarray
    thumbnail: np.ndarray
    brightness: np.ndarray
    flux: np.ndarray
    g_r: np.ndarray
    r_i: np.ndarray

    @classmethod
    def gather(cls, batches: Iterable[Any]) -> Sample | None:
        """Join batches of `Examine`; None where there is none."""
        held = list(batches)
        if not held:
            return None
        return cls(**{f.name: np.concatenate([batch[f.name] for batch in held]) for f in fields(cls)})

    def __len__(self) -> int:
        return len(self.galaxy_id)

    def take(self, rows: np.ndarray) -> Sample:
        """Return some of the galaxies."""
        return Sample(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def stratum(self, judge: Judge) -> np.ndarray:
        """Return int64 [n], the index into `Judge.strata` of each galaxy."""
        return judge.stratum(self.morphology, self.truth)

    def light(self, judge: Judge) -> Light:
        return Light(self.stratum(judge), self.brightness)
