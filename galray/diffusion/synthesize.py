"""Condition recipes -> labelled synthetic galaxies, painted by a denoiser on Ray Data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from diffusers.utils.logging import disable_progress_bar
from matplotlib.figure import Figure
from ray.data import ActorPoolStrategy

from galray.core.cluster import Scaling, say
from galray.core.config import JobConfig, Preset, require
from galray.core.errors import ConfigError, nearest
from galray.core.manifest import Manifest, local_folder, publish, standing
from galray.core.schema import GALAXY_SCHEMA
from galray.core.shards import write_shards
from galray.core.storage import Location
from galray.core.tracking import track
from galray.data.images import encode_jpeg
from galray.diffusion.conditions import condition
from galray.diffusion.denoiser import GalaxyPipeline


@dataclass(frozen=True)
class Request:
    """What to paint: GZ2 answers with the vote fractions asked for, and the label that results have."""

    label: str
    answers: Mapping[str, float]


def _early(shape: str) -> dict[str, float]:
    return {"smooth": 0.8, "odd": 0.75, "dust_lane": 0.85, shape: 0.8}


RECIPES: dict[str, tuple[Request, ...]] = {
    "dust_lane_early_type": tuple(
        Request("dust_lane_early_type", _early(shape)) for shape in ("completely_round", "in_between")
    ),
    "one_of_each": (
        Request("completely_round_smooth", {"smooth": 0.9, "completely_round": 0.9, "not_odd": 0.95}),
        Request("in_between_smooth", {"smooth": 0.9, "in_between": 0.9, "not_odd": 0.95}),
        Request("cigar_shaped_smooth", {"smooth": 0.85, "cigar_shaped": 0.9, "not_odd": 0.95}),
        Request("edge_on", {"features_or_disk": 0.9, "edge_on": 0.9}),
        Request("spiral", {"features_or_disk": 0.9, "not_edge_on": 0.95, "spiral": 0.9}),
        Request("dust_lane_early_type", _early("in_between")),
    ),
}


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(JobConfig):
    """What to paint, how many, and how."""

    denoiser: str = "{root}/denoiser"
    output: str = "{root}/synthetic"
    recipe: str = "dust_lane_early_type"
    """A built-in recipe; its requests take turns. --answers replaces it."""
    answers: tuple[str, ...] = ()
    """Instead of a recipe: answers asked for with certainty, such as smooth odd dust_lane:1.3."""
    label: str = "dust_lane_early_type"
    """The label of what --answers paints."""
    count: int = 1000
    guidance_scale: float = 2.0
    """1 follows the votes as they are; more follows them harder, at a loss of variety."""
    num_steps: int = 20
    sampler: str = "unipc"
    batch_size: int = 50
    seed: int = 0
    scaling: Scaling = field(default_factory=Scaling)

    def __post_init__(self) -> None:
        require(self.count >= 1, f"--count is {self.count}; give at least 1.")
        require(self.batch_size >= 1, f"--batch-size is {self.batch_size}; give at least 1.")
        require(self.guidance_scale >= 0, f"--guidance-scale is {self.guidance_scale}; give 0 or more.")
        self.requests()

    def requests(self) -> tuple[Request, ...]:
        """Return what is asked for.

        Raises
        ------
        ConfigError
            An unknown recipe or answer.
        """
        if self.answers:
            condition(self.answers)
            return (Request(self.label, dict.fromkeys(self.answers, 1.0)),)
        if self.recipe not in RECIPES:
            raise ConfigError(
                f"No recipe is named {self.recipe!r}{nearest(self.recipe, RECIPES)}. "
                f"Use one of {', '.join(RECIPES)}, or give --answers."
            )
        return RECIPES[self.recipe]


def synthesize(config: SynthesizeConfig) -> Manifest:
    """Paint exactly as many labelled galaxies as asked for, and write them as galaxy shards.

    The same seed gives the same galaxies whatever the number of workers: galaxy i has its own noise.
    """
    output, denoiser = config.location(config.output), config.location(config.denoiser)
    done = standing(output, "synthetic", config.resume)
    if done:
        say(f"synthesize: {output.uri} stands with {done.counts['rows_out']} galaxies")
        return done
    model = Manifest.read(denoiser, "denoiser")
    parents = {denoiser.uri: model.fingerprint}
    with (
        track("synthesize", config) as run,
        publish(output, "synthetic", config.resolved(), parents) as publication,
    ):
        painted = ray.data.range(
            config.count, override_num_blocks=-(-config.count // config.batch_size)
        ).map_batches(
            Paint,
            fn_constructor_args=(config, denoiser, model.fingerprint),
            batch_size=config.batch_size,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=config.scaling.workers),
            num_cpus=config.scaling.cpus_per_worker,
            num_gpus=1 if config.scaling.use_gpu else 0,
        )
        write_shards(painted, publication, GALAXY_SCHEMA)
        run.metrics(publication.counts)
    say(f"synthesize: {config.count} galaxies at guidance {config.guidance_scale:g} -> {output.uri}")
    return Manifest.read(output)


class Paint:
    """Paint the galaxies of a range of indices; an actor that loads the model once."""

    def __init__(self, config: SynthesizeConfig, denoiser: Location, model: str) -> None:
        torch.set_num_threads(config.scaling.threads)
        disable_progress_bar()
        with local_folder(denoiser, "denoiser") as folder:
            self._pipeline = GalaxyPipeline.from_pretrained(folder)
        if config.scaling.use_gpu:
            self._pipeline.to("cuda")
        self._config = config
        self._model = model
        self._requests = [(request, condition(request.answers)) for request in config.requests()]

    def __call__(self, block: pa.Table) -> pa.Table:
        indices = block["id"].to_numpy()
        chosen = [self._requests[i % len(self._requests)] for i in indices]
        seeds = [self._config.seed * 1_000_003 + int(i) for i in indices]
        images = self._pipeline(
            torch.stack([asked.votes for _, asked in chosen]),
            torch.stack([asked.weights for _, asked in chosen]),
            seeds=seeds,
            num_steps=self._config.num_steps,
            guidance_scale=self._config.guidance_scale,
            sampler=self._config.sampler,
        )
        rows = [
            self._row(request, asked.votes.numpy(), image, seed)
            for (request, asked), image, seed in zip(chosen, images, seeds, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=_PAINTED_SCHEMA)

    def _row(self, request: Request, votes: np.ndarray, image: np.ndarray, seed: int) -> dict[str, Any]:
        origin = {
            "model": self._model,
            "seed": seed,
            "answers": dict(request.answers),
            "guidance_scale": self._config.guidance_scale,
            "num_steps": self._config.num_steps,
            "sampler": self._config.sampler,
        }
        return {
            "galaxy_id": -1 - seed,  # below zero: no survey has such an id
            "survey": "synthetic",
            "votes": votes.tolist(),
            "label": request.label,
            "image": encode_jpeg(image),
            "height": image.shape[0],
            "width": image.shape[1],
            "split": "train",
            "source": "synthetic",
            "provenance": json.dumps(origin),
            "reason": None,
        }


_PAINTED_SCHEMA = GALAXY_SCHEMA.append(pa.field("reason", pa.string()))


def paint_grid(
    pipeline: GalaxyPipeline,
    requests: Sequence[Request],
    per_request: int,
    num_steps: int = 20,
    guidance_scale: float = 2.0,
) -> Figure:
    """Paint a row of galaxies for each request, at fixed seeds, as a figure."""
    asked = [condition(request.answers) for request in requests for _ in range(per_request)]
    images = pipeline(
        torch.stack([one.votes for one in asked]),
        seeds=list(range(per_request)) * len(requests),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
    )
    figure = Figure(figsize=(1.2 * per_request, 1.35 * len(requests)), layout="constrained")
    axes = figure.subplots(len(requests), per_request, squeeze=False)
    for ax, image in zip(axes.flat, images, strict=True):
        ax.imshow(image)
        ax.axis("off")
    for row, request in zip(axes, requests, strict=True):
        row[0].set_title(request.label, loc="left", fontsize=8)
    return figure


PRESETS = {
    "dust-lanes": Preset("early types with a dust lane", SynthesizeConfig()),
    "debug": Preset("a few galaxies, in seconds", SynthesizeConfig(count=24, num_steps=4, batch_size=8)),
}
