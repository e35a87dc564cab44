"""What models have seen and known: galaxies that judge are never learnt from, nor labels that are hidden."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from galray.core.errors import LineageError
from galray.core.manifest import Manifest
from galray.core.storage import open_location
from galray.data.labelled import Labelled

JUDGED_SPLITS = ("validation", "test")


def refuse_seen(manifests: Mapping[str, Manifest], splits: Sequence[str], judged: str) -> None:
    """Refuse models that have seen galaxies of the splits which are to judge.

    Raises
    ------
    LineageError
        Names the first of them.
    """
    for uri, manifest in manifests.items():
        seen = set(manifest.lineage.get("splits", ())) & set(splits)
        if seen:
            raise LineageError(
                f"{uri} ({manifest.kind}) has seen {', '.join(sorted(seen))} galaxies, which judge {judged}. "
                "Train it on the training split only, and make what follows from it again."
            )


def trained_on(parents: Mapping[str, str], labelled: Labelled | None) -> dict[str, Any]:
    """Return the lineage of a model that was trained on training splits: what it has seen, and known."""
    return {"trained_on": dict(parents), **seen_in_training(labelled)}


def seen_in_training(labelled: Labelled | None) -> dict[str, Any]:
    """Return the lineage of what has been made with training galaxies: their split, and whose labels."""
    return {"splits": ["train"]} | ({"labelled": labelled.truth} if labelled and labelled.truth else {})


def refuse_other_labels(manifests: Mapping[str, Manifest], labelled: Labelled | None, learner: str) -> None:
    """Refuse models that have known labels which this one may not: their pictures or answers tell them.

    Parameters
    ----------
    manifests : mapping
        URI -> manifest of a whole ancestry; those of models have ``splits`` in their lineage, and where they
        have not known all labels ``labelled``, empty where they have known none.
    labelled : Labelled or None
        What the learner may know; None for all.
    learner : str
        For the message.

    Raises
    ------
    LineageError
        Names the first of them.
    """
    if labelled is None or labelled.truth is None:
        return
    for uri, manifest in manifests.items():
        lineage = manifest.lineage
        if "splits" not in lineage or lineage.get("labelled") in ("", labelled.truth):
            continue
        known = _ids_of(lineage["labelled"]) if "labelled" in lineage else None
        if known is None or len(np.setdiff1d(known, _ids_of(labelled.truth))):
            raise LineageError(
                f"{uri} ({manifest.kind}) has known labels that --labelled {labelled.uri} hides from "
                f"{learner}. Train it with the same --labelled, and make what follows from it again."
            )


def _ids_of(uri: str) -> np.ndarray:
    return Labelled.read(open_location(uri)).galaxy_id
