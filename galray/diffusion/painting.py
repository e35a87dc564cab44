"""Paint batches of galaxies: conditions and seeds in, labelled rows out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from galray.core.manifest import Manifest
from galray.core.schema import ANSWER_NAMES, GALAXY_SCHEMA
from galray.core.storage import Location
from galray.data.batches import VotesOf, decode_images
from galray.data.images import encode_jpeg
from galray.diffusion.codec import N_ORIENTATIONS, oriented
from galray.diffusion.conditions import Condition, condition
from galray.diffusion.pipeline import open_published
from galray.diffusion.recipes import Plan, Request

_PAINTED_SCHEMA = GALAXY_SCHEMA.append(pa.field("reason", pa.string()))


@dataclass(frozen=True)
class Compute:
    """What computes: with noise and condition, it decides an image's last bits."""

    device: str
    threads: int
    bfloat16: bool


@dataclass(frozen=True)
class Asked:
    """The condition of each galaxy of one request.

    Attributes
    ----------
    request : Request
    fixed : Condition
        What all of them have in common.
    outline : Condition or None
        What is asked for before that, where the request has one.
    real : VotesOf or None
        Real galaxies whose votes fill what `fixed` leaves open, and of which variations are painted.
    order : ndarray of int64
        Which real galaxy comes next: all of them once, in a random order, before any comes again.
    """

    request: Request
    fixed: Condition
    outline: Condition | None
    real: VotesOf | None
    order: np.ndarray

    @classmethod
    def of(cls, request: Request, real: VotesOf | None, seed: Sequence[int]) -> Asked:
        count = len(real.galaxy_id) if real else 0
        outline = condition(request.outline) if request.outline else None
        order = np.random.default_rng(seed).permutation(count)
        return cls(request, condition(request.answers), outline, real, order)

    def condition(self, place: int) -> Condition:
        """Return what is asked of the galaxy at a place in the request."""
        if self.real is None:
            return self.fixed
        votes = torch.tensor(self.real.votes[self._next(place)])
        return Condition(_filled(self.fixed.votes, votes), self.fixed.weights)

    def votes(self, place: int) -> torch.Tensor:
        """Return the votes that the galaxy painted is meant to have: what is asked of it, early or late."""
        votes = self.condition(place).votes
        return _filled(votes, self.outline.votes) if self.outline else votes

    def image(self, place: int, size_px: int) -> torch.Tensor:
        """Return the real galaxy to vary, uint8 [size_px, size_px, 3]; when it comes again, turned."""
        assert self.real is not None
        donor = self._next(place)
        row = {"galaxy_id": [self.real.galaxy_id[donor]], "image": [self.real.images[donor]]}
        turned = place // len(self.order) % N_ORIENTATIONS
        return oriented(torch.from_numpy(decode_images(pa.table(row), size_px)), torch.tensor([turned]))[0]

    def provenance(self, place: int) -> dict[str, Any]:
        """Return where a galaxy's condition comes from; the votes themselves are a column of its row."""
        weights = {
            ANSWER_NAMES[i]: round(float(self.fixed.weights[i]), 6)
            for i in (self.fixed.weights != 1).nonzero().flatten().tolist()
        }
        asked = {"answers": dict(self.request.answers), "weights": weights}
        asked |= {"outline": dict(self.request.outline)} if self.outline else {}
        if self.real is None:
            return asked
        donor = int(self.real.galaxy_id[self._next(place)])
        return asked | {"votes_of": self.request.votes_of, "votes_of_galaxy": donor}

    def _next(self, place: int) -> int:
        return int(self.order[place % len(self.order)])


class Paint:
    """Paint one batch after another; loads the model once.

    Parameters
    ----------
    plan : Plan
    compute : Compute
    real_votes : mapping of str to VotesOf
        By label; for requests with votes_of.
    denoiser : Location
        A published model folder.
    """

    def __init__(
        self, plan: Plan, compute: Compute, real_votes: Mapping[str, VotesOf], denoiser: Location
    ) -> None:
        torch.set_num_threads(compute.threads)
        self._pipeline = open_published(denoiser)
        self._pipeline.to(compute.device)
        self._plan, self._compute = plan, compute
        self._model = Manifest.read(denoiser).fingerprint
        self._galaxies = plan.galaxies()
        self._asked = [
            Asked.of(request, real_votes.get(request.votes_of), [plan.seed, i])
            for i, request in enumerate(plan.requests)
        ]

    def __call__(self, batch: Mapping[str, int]) -> pa.Table:
        """Paint the galaxies from number ``first`` to ``end``, exclusive; returns rows of `GALAXY_SCHEMA`."""
        seeds = [self._plan.seed_of(number) for number in range(batch["first"], batch["end"])]
        chosen = self._galaxies[batch["first"] : batch["end"]].tolist()
        conditions = [self._asked[request].condition(place) for request, place in chosen]
        sampling = asdict(self._plan.samplings[chosen[0][0]])
        with torch.autocast(self._compute.device, torch.bfloat16, enabled=self._compute.bfloat16):
            images = self._pipeline(
                *_stacked(conditions),
                outline=self._outline([request for request, _ in chosen], conditions),
                seeds=seeds,
                start=self._start(chosen) if sampling["start_time"] < 1 else None,
                **sampling,
            )
        how = {"model": self._model, "bfloat16": self._compute.bfloat16, **sampling}
        rows = [
            _row(self._asked[request], place, image, seed, how)
            for (request, place), image, seed in zip(chosen, images, seeds, strict=True)
        ]
        return pa.Table.from_pylist(rows, schema=_PAINTED_SCHEMA)

    def _start(self, chosen: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the images to vary, uint8 [B, H, W, 3]."""
        size_px = self._pipeline.codec.size_px
        return torch.stack([self._asked[request].image(place, size_px) for request, place in chosen]).numpy()

    def _outline(self, requests: Sequence[int], conditions: Sequence[Condition]) -> Condition | None:
        """Return what is asked of a batch first; None where that is what is asked anyway."""
        outlines = [self._asked[request].outline for request in requests]
        if not any(outlines):  # encoding captions is no small thing
            return None
        return _stacked([one or asked for one, asked in zip(outlines, conditions, strict=True)])


def _filled(votes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.where(votes.isnan(), others, votes)


def _stacked(conditions: Sequence[Condition]) -> Condition:
    return Condition(*(torch.stack(parts) for parts in zip(*conditions, strict=True)))


def _row(asked: Asked, place: int, image: np.ndarray, seed: int, how: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "galaxy_id": -1 - seed,  # below zero: no survey has such an id
        "survey": "synthetic",
        "votes": asked.votes(place).tolist(),
        "label": asked.request.label,
        "image": encode_jpeg(image),
        "height": image.shape[0],
        "width": image.shape[1],
        "split": "train",
        "source": "synthetic",
        "provenance": json.dumps({"seed": seed, **how, **asked.provenance(place)}),
        "reason": None,
    }
