"""Galaxies -> what a training reads of them, computed once by a Ray Data job and read by every training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from galray.core.cluster import say
from galray.core.manifest import Manifest, publish, standing
from galray.core.schema import fingerprint
from galray.core.shards import write_shards
from galray.core.storage import Location
from galray.data.stream import BLOCK_BYTES, CACHE_KIND, CachedGalaxies, Column

_BLOCKS_PER_FILE = 16


def cached(
    galaxies: Location,
    folder: Location,
    columns: Mapping[str, Column],
    prepared: Callable[[], Dataset],
    key: Mapping[str, Any],
) -> CachedGalaxies:
    """Return what a training reads of published galaxies, computed now unless it stands already.

    The cache is keyed by the galaxies' manifest, the columns and `key`: whatever changes one of them makes
    another, and a training that changes none of them begins at once, at any number of galaxies.

    Parameters
    ----------
    galaxies : Location
        Published.
    folder : Location
        Where caches stand, each in a folder named by its key.
    columns : mapping
        What is cached of each galaxy beside its ``galaxy_id``.
    prepared : callable
        Returns a dataset whose blocks are what `galray.core.cells.cache_table` makes.
    key : mapping
        All that `prepared` depends on, as JSON has it.

    Raises
    ------
    EmptyInputError
        `prepared` has no galaxy.
    PublishError
        Another run is computing it at this moment.
    """
    manifest = Manifest.read(galaxies)
    form = {name: asdict(column) for name, column in columns.items()}
    text = json.dumps([manifest.fingerprint, form, dict(key)], sort_keys=True)
    place = folder / fingerprint(text)
    if standing(place, CACHE_KIND, resume=True) is None:
        say(f"cache: computing what training reads of {galaxies.uri}, once -> {place.uri}")
        parents = {galaxies.uri: manifest.fingerprint}
        rows_per_block = max(1, BLOCK_BYTES // (8 + sum(column.bytes for column in columns.values())))
        with publish(place, CACHE_KIND, {"resume": True, **key}, parents) as publication:
            write_shards(
                prepared(),
                publication,
                _schema(columns),
                rows_per_shard=_BLOCKS_PER_FILE * rows_per_block,
                rows_per_row_group=rows_per_block,
            )
            publication.lineage = {"columns": form, "rows_per_block": rows_per_block}
    return CachedGalaxies.open(place)


def _schema(columns: Mapping[str, Column]) -> pa.Schema:
    cells = [pa.field(name, pa.binary(column.bytes), nullable=False) for name, column in columns.items()]
    return pa.schema([pa.field("galaxy_id", pa.int64(), nullable=False), *cells])
