"""A denoiser for benchmarks to paint with: untrained, and the same each time; only its arithmetic counts."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from galray.core.manifest import publish
from galray.core.storage import Location
from galray.diffusion.denoiser import PRESETS, build_denoiser
from galray.diffusion.pipeline import GalaxyPipeline

DENOISER = "64px-quick"


def publish_untrained_denoiser(location: Location) -> None:
    """Publish the `DENOISER`, as one that has seen training galaxies alone."""
    torch.manual_seed(0)
    pipeline = GalaxyPipeline.from_denoiser(build_denoiser(PRESETS[DENOISER]).eval())
    with tempfile.TemporaryDirectory() as folder, publish(location, "denoiser") as publication:
        pipeline.save_pretrained(folder)
        publication.add_folder(Path(folder))
        publication.lineage = {"splits": ["train"]}
