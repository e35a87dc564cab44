"""Synthetic galaxies that are learnt from: those in which a classifier sees what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from galray.classifier.answers import answers
from galray.classifier.network import ClassifierConfig, published_settings
from galray.classifier.targets import UNKNOWN
from galray.core.errors import ConfigError
from galray.core.manifest import Manifest
from galray.core.storage import Location

_NOTHING = {"morphology": UNKNOWN, "targets": UNKNOWN, "votes": np.nan, "volunteers": 0}


@dataclass(frozen=True)
class Approver:
    """A classifier that synthetic galaxies must convince.

    Attributes
    ----------
    classifier : Location
    """

    classifier: Location

    @property
    def fingerprint(self) -> str:
        """What identifies the classifier."""
        return Manifest.read(self.classifier, "classifier").fingerprint

    def check_tells(self, learner: ClassifierConfig) -> None:
        """Refuse one of other classes or targets than the classifier that is to learn.

        Raises
        ------
        ConfigError
        """
        own = published_settings(self.classifier)
        if (own.classes, own.targets) != (learner.classes, learner.targets):
            raise ConfigError(
                f"--approved-by {self.classifier.uri} tells {_named(own)}; this classifier is to tell "
                f"{_named(learner)}. Give one that was trained with the same --target."
            )

    def __call__(self, galaxies: pa.Table, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return labels, unknown for galaxies that it takes for another class, or for none of the target.

        Parameters
        ----------
        galaxies : pyarrow.Table
            With ``image``.
        labels : mapping
            ``morphology`` int64 [n] and ``targets`` int8 [n, targets], -1 is unknown; others stay with them.
        """
        if not len(galaxies):
            return dict(labels)
        said = answers(self.classifier, galaxies)
        classes, targets = labels["morphology"], labels["targets"]
        other_class = (classes != UNKNOWN) & (classes != said.morphology.argmax(axis=1))
        other_target = (targets != UNKNOWN) & ((targets == 1) != (said.targets >= 0.5))
        refused = other_class | other_target.any(axis=1)
        told = {name: values.copy() for name, values in labels.items()}
        for name, values in told.items():
            values[refused] = _NOTHING[name]
        return told


def _named(config: ClassifierConfig) -> str:
    return ", ".join(config.class_names + config.target_names)
