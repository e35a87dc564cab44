"""Published classifiers that decide what another learns from.

A teacher names real galaxies whose labels nobody knows; an approver picks synthetic ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from galray.classifier import network
from galray.classifier.labels import is_known
from galray.classifier.network import Classifier, ClassifierConfig, Probabilities
from galray.classifier.targets import UNKNOWN
from galray.core.errors import ConfigError
from galray.core.manifest import Manifest, local_folder
from galray.core.storage import Location
from galray.data.batches import decode_images

_IMAGES_AT_ONCE = 128


@dataclass(frozen=True)
class Teacher:
    """A classifier whose confident answers count as labels (self-training, Lee 2013).

    Attributes
    ----------
    classifier : Location
    confidence : float
        Probability from which on an answer counts, in (0.5, 1).
    """

    classifier: Location
    confidence: float

    @property
    def key(self) -> dict[str, str]:
        """What the labels depend on."""
        return {"teacher": _fingerprint(self.classifier), "confidence": str(self.confidence)}

    def __call__(self, galaxies: pa.Table, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return labels with those of galaxies of which nothing is known filled in, where it is confident.

        Parameters
        ----------
        galaxies : pyarrow.Table
            With ``image``.
        labels : mapping
            ``morphology`` int64 [n] and ``targets`` int8 [n, targets]; -1 is unknown.
        """
        filled = {name: values.copy() for name, values in labels.items()}
        unknown = np.flatnonzero(~is_known(labels))
        if len(unknown):
            said = _said(self.classifier, galaxies.take(unknown))
            filled["morphology"][unknown] = np.where(
                said.morphology.max(axis=1) >= self.confidence, said.morphology.argmax(axis=1), UNKNOWN
            )
            no, yes = said.targets <= 1 - self.confidence, said.targets >= self.confidence
            filled["targets"][unknown] = np.where(yes, 1, np.where(no, 0, UNKNOWN))
        return filled


@dataclass(frozen=True)
class Approver:
    """A classifier that synthetic galaxies must convince to be learnt from: it sees what was asked for.

    Attributes
    ----------
    classifier : Location
    """

    classifier: Location

    @property
    def key(self) -> dict[str, str]:
        """What the labels depend on."""
        return {"approver": _fingerprint(self.classifier)}

    def __call__(self, galaxies: pa.Table, labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return labels, unknown for galaxies that it takes for another class, or for none of the target.

        Parameters and result are those of `Teacher`.
        """
        if not len(galaxies):
            return dict(labels)
        said = _said(self.classifier, galaxies)
        classes, targets = labels["morphology"], labels["targets"]
        other_class = (classes != UNKNOWN) & (classes != said.morphology.argmax(axis=1))
        other_target = (targets != UNKNOWN) & ((targets == 1) != (said.targets >= 0.5))
        refused = other_class | other_target.any(axis=1)
        blank = {"morphology": UNKNOWN, "targets": UNKNOWN, "votes": np.nan, "volunteers": 0}
        return {
            name: np.where(refused.reshape(-1, *[1] * (values.ndim - 1)), blank[name], values).astype(
                values.dtype
            )
            for name, values in labels.items()
        }


def check_tells(classifier: Location, option: str, learner: ClassifierConfig) -> None:
    """Refuse a classifier of other classes or targets than one that is to learn from it.

    Raises
    ------
    ConfigError
    """
    with local_folder(classifier, "classifier") as folder:
        own = network.settings_of(folder)
    if (own.classes, own.targets) != (learner.classes, learner.targets):
        raise ConfigError(
            f"{option} {classifier.uri} tells {_named(own)}; this classifier is to tell {_named(learner)}. "
            "Give one that was trained with the same --target."
        )


def _named(config: ClassifierConfig) -> str:
    return ", ".join(config.class_names + config.target_names)


def _fingerprint(classifier: Location) -> str:
    return Manifest.read(classifier, "classifier").fingerprint


def _said(classifier: Location, galaxies: pa.Table) -> Probabilities:
    """Return what a classifier says of a block of galaxies, one at least."""
    torch.set_num_threads(1)  # Ray runs as many tasks as there are cores
    model = _loaded(classifier)
    parts = [galaxies.slice(start, _IMAGES_AT_ONCE) for start in range(0, len(galaxies), _IMAGES_AT_ONCE)]
    said = [network.predict(model, decode_images(part, model.config.size_px)) for part in parts]
    return Probabilities(*(np.concatenate(of) for of in zip(*(one[:2] for one in said), strict=True)))


@lru_cache(maxsize=1)
def _loaded(classifier: Location) -> Classifier:
    with local_folder(classifier, "classifier") as folder:
        return network.load(folder)
