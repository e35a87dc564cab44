"""Galaxies -> what a codec caches of them, computed once by a Ray Data job and read by every training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.data import ActorPoolStrategy, Dataset

from galray.core.cells import to_cells
from galray.core.cluster import Scaling, say
from galray.core.manifest import Manifest, publish, standing
from galray.core.schema import N_ANSWERS, fingerprint
from galray.core.shards import write_shards
from galray.core.storage import Location
from galray.data.batches import Emphasise, condition_votes, decode_images, read_galaxies
from galray.diffusion.codec import Codec
from galray.diffusion.stream import BLOCK_BYTES, CACHE_KIND, CachedGalaxies

_COLUMNS = ("galaxy_id", "votes", "classifications", "label", "image")
_IMAGES_AT_ONCE = 64
_BLOCKS_PER_FILE = 16


def cached_galaxies(
    galaxies: Location,
    folder: Location,
    codec: Codec,
    *,
    emphasis: Sequence[str] = (),
    scaling: Scaling | None = None,
) -> CachedGalaxies:
    """Return the training galaxies as the codec caches them, computed now unless they stand already.

    The cache is keyed by the codec, the galaxies' manifest and the emphasis: whatever changes one of them
    makes another, and a training that changes none of them begins at once, at any number of galaxies.

    Parameters
    ----------
    galaxies : Location
        Published galaxies; their training split is taken, labelled or not.
    folder : Location
        Where caches stand, each in a folder named by its key.
    codec : Codec
    emphasis : sequence of str
        See `galray.data.batches.Emphasise`.
    scaling : Scaling, optional
        Its GPUs encode, where it has any.
    """
    manifest = Manifest.read(galaxies, "galaxies")
    key = fingerprint(json.dumps([codec.fingerprint(), manifest.fingerprint, list(emphasis)]))
    place = folder / key
    if standing(place, CACHE_KIND, resume=True) is None:
        say(f"train: computing what the codec sees of {galaxies.uri}, once -> {place.uri}")
        _compute(galaxies, manifest, place, codec, emphasis, scaling or Scaling())
    return CachedGalaxies.open(place)


def _compute(
    galaxies: Location,
    manifest: Manifest,
    place: Location,
    codec: Codec,
    emphasis: Sequence[str],
    scaling: Scaling,
) -> None:
    schema = _cache_schema(codec)
    row_bytes = sum(field.type.byte_width for field in schema if field.name != "votes") + 4 * N_ANSWERS
    rows_per_block = max(1, BLOCK_BYTES // row_bytes)
    with publish(place, CACHE_KIND, {"resume": True}, {galaxies.uri: manifest.fingerprint}) as publication:
        rows = read_galaxies(galaxies, "train", _COLUMNS)
        if emphasis:
            rows = rows.map_batches(Emphasise(emphasis), batch_format="pyarrow")
        write_shards(
            _prepared(rows, codec, scaling),
            publication,
            schema,
            rows_per_shard=_BLOCKS_PER_FILE * rows_per_block,
            rows_per_row_group=rows_per_block,
        )
        publication.lineage = {
            "shape": list(codec.cached_shape),
            "dtype": _numpy_type(codec),
            "rows_per_block": rows_per_block,
        }


def _prepared(rows: Dataset, codec: Codec, scaling: Scaling) -> Dataset:
    """Decode and encode: in tasks on CPUs, or in actors that hold a GPU each."""
    options: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": _IMAGES_AT_ONCE}
    if not scaling.use_gpu:
        return rows.map_batches(Prepare(codec).__call__, **options)
    return rows.map_batches(
        Prepare,
        fn_constructor_args=(codec, "cuda"),
        compute=ActorPoolStrategy(size=scaling.workers),
        num_gpus=1,
        **options,
    )


class Prepare:
    """Decode a block of galaxies and encode them with a codec.

    Parameters
    ----------
    codec : Codec
    device : str
    """

    def __init__(self, codec: Codec, device: str = "cpu") -> None:
        self._codec, self._device = codec.to(device), device
        self._schema = _cache_schema(codec).append(pa.field("reason", pa.string()))

    @torch.inference_mode()
    def __call__(self, galaxies: pa.Table) -> pa.Table:
        """Put ``cached`` and the votes that are known, from volunteers or labels, in the place of images."""
        images = torch.from_numpy(decode_images(galaxies, self._codec.size_px))
        cached = self._codec.prepare(images.to(self._device)).cpu().contiguous().numpy()
        votes = condition_votes(galaxies)
        columns = [
            galaxies["galaxy_id"].combine_chunks(),
            pa.FixedSizeListArray.from_arrays(pa.array(votes.ravel()), N_ANSWERS),
            to_cells(cached),
            pa.nulls(len(galaxies), pa.string()),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)


def _cache_schema(codec: Codec) -> pa.Schema:
    width = int(np.prod(codec.cached_shape)) * codec.cached_dtype.itemsize
    return pa.schema(
        [
            pa.field("galaxy_id", pa.int64(), nullable=False),
            pa.field("votes", pa.list_(pa.float32(), N_ANSWERS), nullable=False),
            pa.field("cached", pa.binary(width), nullable=False),
        ]
    )


def _numpy_type(codec: Codec) -> str:
    return str(codec.cached_dtype).removeprefix("torch.")
