"""What a published classifier says of blocks of galaxies, in Ray's tasks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from galray.classifier import network
from galray.classifier.network import Classifier, Probabilities
from galray.core.storage import Location
from galray.data.batches import decode_images

_IMAGES_AT_ONCE = 128


def answers(classifier: Location, galaxies: pa.Table) -> Probabilities:
    """Return what a classifier says of galaxies, one at least, from their ``image``."""
    torch.set_num_threads(1)  # Ray runs as many tasks as there are cores
    model = _loaded(classifier)
    parts = [galaxies.slice(start, _IMAGES_AT_ONCE) for start in range(0, len(galaxies), _IMAGES_AT_ONCE)]
    said = [network.predict(model, decode_images(part, model.config.size_px)) for part in parts]
    return Probabilities(*(np.concatenate(of) for of in zip(*(one[:2] for one in said), strict=True)))


@lru_cache(maxsize=1)
def _loaded(classifier: Location) -> Classifier:
    return network.open_published(classifier)
