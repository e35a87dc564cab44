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
from galray.data.batches import decode_images
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


Donor = Mapping[str, Any]
"""A real galaxy that lends its votes, or its image too: a row of `donors`."""


def donors(plan: Plan, real: Mapping[str, pa.Table]) -> pa.StructArray:
    """Return the real galaxy behind each one to be painted, by number; null where there is none.

    Of one request all come once, in a random order, before any comes again.

    Parameters
    ----------
    plan : Plan
    real : mapping of str to pyarrow.Table
        By the label that requests name as votes_of: ``galaxy_id``, ``votes``, and ``image`` where they are
        varied.

    Returns
    -------
    pyarrow.StructArray
        The columns of `real`, and ``orientation``: one of the square's eight symmetries, in which its image
        is varied; another each time that it comes again.
    """
    galaxies = plan.galaxies()
    held = pa.concat_tables(real.values(), promote_options="default")
    firsts = dict(zip(real, np.cumsum([0, *(len(table) for table in real.values())]).tolist(), strict=False))
    row, orientation = np.full(plan.total, -1), np.zeros(plan.total, np.int64)
    for i, request in enumerate(plan.requests):
        if request.votes_of:
            of_request, count = galaxies[:, 0] == i, len(real[request.votes_of])
            order = np.random.default_rng([plan.seed, i]).permutation(count)
            turn, place = np.divmod(galaxies[of_request, 1], count)
            row[of_request] = firsts[request.votes_of] + order[place]
            orientation[of_request] = turn % N_ORIENTATIONS
    nobody = row < 0
    lent = held.take(pa.array(row, mask=nobody)).append_column("orientation", pa.array(orientation))
    columns = [column.combine_chunks() for column in lent.columns]
    return pa.StructArray.from_arrays(columns, lent.column_names, mask=pa.array(nobody))


@dataclass(frozen=True)
class Asked:
    """What is asked of every galaxy of one request.

    Attributes
    ----------
    request : Request
    fixed : Condition
        What all of them have in common; a donor's votes fill what it leaves open.
    outline : Condition or None
        What is asked for before that, where the request has one.
    """

    request: Request
    fixed: Condition
    outline: Condition | None

    @classmethod
    def of(cls, request: Request) -> Asked:
        outline = condition(request.outline) if request.outline else None
        return cls(request, condition(request.answers), outline)

    def condition(self, donor: Donor | None) -> Condition:
        """Return what is asked of one galaxy."""
        if donor is None:
            return self.fixed
        return Condition(_filled(self.fixed.votes, torch.tensor(donor["votes"])), self.fixed.weights)

    def votes(self, donor: Donor | None) -> torch.Tensor:
        """Return the votes that the galaxy painted is meant to have: what is asked of it, early or late."""
        votes = self.condition(donor).votes
        return _filled(votes, self.outline.votes) if self.outline else votes

    def provenance(self, donor: Donor | None) -> dict[str, Any]:
        """Return where a galaxy's condition comes from; the votes themselves are a column of its row."""
        weights = {
            ANSWER_NAMES[i]: round(float(self.fixed.weights[i]), 6)
            for i in (self.fixed.weights != 1).nonzero().flatten().tolist()
        }
        asked = {"answers": dict(self.request.answers), "weights": weights}
        asked |= {"outline": dict(self.request.outline)} if self.outline else {}
        if donor is None:
            return asked
        return asked | {"votes_of": self.request.votes_of, "votes_of_galaxy": donor["galaxy_id"]}


class Paint:
    """Paint one batch after another; loads the model once.

    Parameters
    ----------
    plan : Plan
    compute : Compute
    denoiser : Location
        A published model folder.
    """

    def __init__(self, plan: Plan, compute: Compute, denoiser: Location) -> None:
        torch.set_num_threads(compute.threads)
        self._pipeline = open_published(denoiser)
        self._pipeline.to(compute.device)
        self._plan, self._compute = plan, compute
        self._model = Manifest.read(denoiser).fingerprint
        self._request = plan.galaxies()[:, 0]
        self._asked = [Asked.of(request) for request in plan.requests]

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """Paint the galaxies from number ``first`` to ``end``, exclusive; returns rows of `GALAXY_SCHEMA`.

        Where requests have votes_of, ``donors`` are those of these galaxies.
        """
        seeds = [self._plan.seed_of(number) for number in range(batch["first"], batch["end"])]
        requests = self._request[batch["first"] : batch["end"]].tolist()
        asked = [self._asked[request] for request in requests]
        lent: list[Donor | None] = batch.get("donors") or [None] * len(asked)
        conditions = [one.condition(donor) for one, donor in zip(asked, lent, strict=True)]
        sampling = asdict(self._plan.samplings[requests[0]])
        with torch.autocast(self._compute.device, torch.bfloat16, enabled=self._compute.bfloat16):
            images = self._pipeline(
                *_stacked(conditions),
                outline=_outline(asked, conditions),
                seeds=seeds,
                start=self._start(lent) if sampling["start_time"] < 1 else None,
                **sampling,
            )
        how = {"model": self._model, "bfloat16": self._compute.bfloat16, **sampling}
        rows = [_row(*parts, how) for parts in zip(asked, lent, images, seeds, strict=True)]
        return pa.Table.from_pylist(rows, schema=_PAINTED_SCHEMA)

    def _start(self, lent: Sequence[Donor | None]) -> np.ndarray:
        return images_to_vary([donor for donor in lent if donor], self._pipeline.codec.size_px)


def images_to_vary(lent: Sequence[Donor], size_px: int) -> np.ndarray:
    """Return the images of donors as they are varied: uint8, shape (b, size_px, size_px, 3)."""
    galaxies = pa.Table.from_pylist([dict(donor) for donor in lent])
    images = torch.from_numpy(decode_images(galaxies, size_px))
    return oriented(images, torch.tensor(galaxies["orientation"].to_pylist())).numpy()


def _outline(asked: Sequence[Asked], conditions: Sequence[Condition]) -> Condition | None:
    """Return what is asked of a batch first; None where that is what is asked anyway."""
    outlines = [one.outline for one in asked]
    if not any(outlines):  # encoding captions is no small thing
        return None
    return _stacked([one or other for one, other in zip(outlines, conditions, strict=True)])


def _filled(votes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    return torch.where(votes.isnan(), others, votes)


def _stacked(conditions: Sequence[Condition]) -> Condition:
    return Condition(*(torch.stack(parts) for parts in zip(*conditions, strict=True)))


def _row(
    asked: Asked, donor: Donor | None, image: np.ndarray, seed: int, how: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "galaxy_id": -1 - seed,  # below zero: no survey has such an id
        "survey": "synthetic",
        "votes": asked.votes(donor).tolist(),
        "label": asked.request.label,
        "image": encode_jpeg(image),
        "height": image.shape[0],
        "width": image.shape[1],
        "split": "train",
        "source": "synthetic",
        "provenance": json.dumps({"seed": seed, **how, **asked.provenance(donor)}),
        "reason": None,
    }
