"""A classifier for scans to run with: untrained, and the same each time; only its arithmetic counts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from galray.classifier import network
from galray.classifier.decision import DECISION_FILE, Decision
from galray.core.manifest import publish
from galray.core.storage import Location


def publish_untrained(location: Location, backbone: str, size_px: int, threshold: float = 1.0) -> None:
    """Publish it, with a decision for dust-lane early types."""
    torch.manual_seed(0)
    model = network.Classifier(network.ClassifierConfig(backbone, size_px))
    with tempfile.TemporaryDirectory() as folder, publish(location, "classifier") as publication:
        network.save(model, Path(folder, "model"))
        publication.add_folder(Path(folder, "model"))
        publication.write(DECISION_FILE, Decision("dust_lane_early_type", threshold, 0.1).to_json())
