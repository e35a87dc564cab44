"""Published galaxies of several folders -> one: graded candidates beside the galaxies that taught before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from galray.core.cluster import say
from galray.core.config import JobConfig, Preset, require
from galray.core.manifest import Manifest, publish, standing
from galray.core.schema import GALAXY_SCHEMA
from galray.core.shards import read_shards, rejects_told, whole_table, write_shards
from galray.core.storage import Location
from galray.core.tracking import track


@dataclass(frozen=True, kw_only=True)
class GatherConfig(JobConfig):
    """Which published galaxies come together."""

    galaxies: tuple[str, ...]
    """Folders of published galaxies. Of an id that several have, the folder named first keeps it."""
    output: str = "{root}/gathered"

    def __post_init__(self) -> None:
        require(len(self.galaxies) > 1, "Give --galaxies: two folders of published galaxies, or more.")


def gather(config: GatherConfig) -> Manifest:
    """Put the galaxies of several folders into one, each as it was published.

    Raises
    ------
    InputError
        A folder that holds no published galaxies.
    PublishError
        The output already stands.
    """
    output = config.location(config.output)
    done = standing(output, "galaxies", config.resume)
    if done:
        say(f"gather: {output.uri} stands with {done.counts['rows_out']} galaxies")
        return done
    places = [config.location(uri) for uri in config.galaxies]
    parents = {place.uri: Manifest.read(place, "galaxies").fingerprint for place in places}
    with track("gather", config) as run, publish(output, "galaxies", config.resolved(), parents) as gathering:
        first, *others = _parts(places)
        write_shards(first.union(*others), gathering, GALAXY_SCHEMA)
        run.metrics(gathering.counts)
    counts = gathering.counts
    told = f"{counts['rows_in']} galaxies of {len(places)} folders, {counts['rows_out']} kept"
    say(f"gather: {told}, {rejects_told(counts)} -> {output.uri}")
    return Manifest.read(output)


def _parts(places: Sequence[Location]) -> Iterator[Dataset]:
    """Yield each folder's galaxies, those that an earlier one has set aside."""
    taken = np.empty(0, np.int64)
    for before, place in zip([None, *places], places, strict=False):
        if before:
            taken = np.union1d(taken, _ids_of(before))
        set_aside = partial(_set_repeated_aside, taken=taken)
        yield read_shards(place, "galaxies").map_batches(set_aside, batch_format="pyarrow")


def _ids_of(place: Location) -> np.ndarray:
    return whole_table(read_shards(place, "galaxies", ["galaxy_id"]))["galaxy_id"].to_numpy()


def _set_repeated_aside(galaxies: pa.Table, taken: np.ndarray) -> pa.Table:
    repeated = np.isin(galaxies["galaxy_id"].to_numpy(), taken)
    return pa.table(
        {
            **{name: galaxies[name] for name in GALAXY_SCHEMA.names},
            "id_text": galaxies["galaxy_id"].cast(pa.string()),
            "item": galaxies["provenance"],
            "reason": pa.array(["duplicate_id" if one else None for one in repeated], pa.string()),
            "detail": ["a folder named before has a galaxy of this id"] * len(galaxies),
        }
    )


PRESETS = {
    "vetted": Preset(
        "graded candidates, and the galaxies that taught before",
        GatherConfig(galaxies=("{root}/vetted-galaxies", "{root}/galaxies")),
    ),
}
