"""Self-training: a classifier that names galaxies whose labels nobody knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from galray.classifier import network
from galray.classifier.labels import is_known
from galray.classifier.network import Classifier, ClassifierConfig
from galray.classifier.targets import UNKNOWN
from galray.core.errors import ConfigError
from galray.core.manifest import Manifest, local_folder
from galray.core.storage import Location
from galray.data.batches import decode_images

_IMAGES_AT_ONCE = 128


@dataclass(frozen=True)
class Teacher:
    """A published classifier whose confident answers count as labels (self-training, Lee 2013).

    Attributes
    ----------
    classifier : Location
    confidence : float
        Probability from which on an answer counts, in (0.5, 1).
    """

    classifier: Location
    confidence: float

    @property
    def fingerprint(self) -> str:
        """What identifies the classifier."""
        return Manifest.read(self.classifier, "classifier").fingerprint

    def check_tells(self, learner: ClassifierConfig) -> None:
        """Refuse a teacher of other classes or targets.

        Raises
        ------
        ConfigError
        """
        with local_folder(self.classifier, "classifier") as folder:
            own = network.settings_of(folder)
        if (own.classes, own.targets) != (learner.classes, learner.targets):
            raise ConfigError(
                f"--pseudo-labels {self.classifier.uri} tells {_named(own)}; this classifier is to tell "
                f"{_named(learner)}. "
                "Train the teacher with the same --target."
            )

    def label(self, galaxies: pa.Table, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return labels with those of galaxies of which nothing is known filled in, where it is confident.

        Parameters
        ----------
        galaxies : pyarrow.Table
            With ``image``.
        labels : mapping
            ``morphology`` int64 [n] and ``targets`` int8 [n, targets]; -1 is unknown.
        """
        torch.set_num_threads(1)  # Ray runs as many tasks as there are cores
        filled = {name: values.copy() for name, values in labels.items()}
        unknown = np.flatnonzero(~is_known(labels))
        model = _loaded(self.classifier)
        for start in range(0, len(unknown), _IMAGES_AT_ONCE):
            rows = unknown[start : start + _IMAGES_AT_ONCE]
            said = network.predict(model, decode_images(galaxies.take(rows), model.config.size_px))
            filled["morphology"][rows] = np.where(
                said.morphology.max(axis=1) >= self.confidence, said.morphology.argmax(axis=1), UNKNOWN
            )
            no, yes = said.targets <= 1 - self.confidence, said.targets >= self.confidence
            filled["targets"][rows] = np.where(yes, 1, np.where(no, 0, UNKNOWN))
        return filled


def _named(config: ClassifierConfig) -> str:
    return ", ".join(config.class_names + config.target_names)


@lru_cache(maxsize=1)
def _loaded(classifier: Location) -> Classifier:
    with local_folder(classifier, "classifier") as folder:
        return network.load(folder)
