"""Galaxies as an evaluation sees them, made of numbers and of the mock survey's light."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from galray.classifier.decision import Decision
from galray.classifier.network import ClassifierConfig
from galray.evaluation.sample import THUMBNAIL_PX, Judge, Sample

MakeSample = Callable[..., Sample]


@pytest.fixture
def judge() -> Judge:
    """A classifier of the five classes alone."""
    return Judge(ClassifierConfig("resnet-tiny", 32, targets=()), None)


@pytest.fixture
def target_judge() -> Judge:
    """A classifier of the five classes and of dust-lane early types."""
    return Judge(ClassifierConfig("resnet-tiny", 32), Decision("dust_lane_early_type", 0.5, 0.1))


@pytest.fixture
def make_sample() -> MakeSample:
    """Make a sample of given classes; all else is drawn from a seed, or given."""

    def make(morphology: Any, seed: int = 0, **columns: Any) -> Sample:
        rng = np.random.default_rng(seed)
        classes = np.asarray(morphology)
        n = len(classes)
        drawn = {
            "galaxy_id": np.arange(n) + 1000 * (seed + 1),
            "truth": np.full(n, -1, dtype=np.int8),
            "predicted": classes,
            "accepted": np.zeros(n, dtype=bool),
            "features": rng.normal(size=(n, 6)).astype(np.float32),
            "thumbnail": rng.integers(256, size=(n, THUMBNAIL_PX, THUMBNAIL_PX, 3), dtype=np.uint8),
            **{name: rng.uniform(0.1, 0.9, n) for name in ("brightness", "flux", "g_r", "r_i")},
        }
        return Sample(**{**drawn, "morphology": classes, **columns})

    return make
