"""Galaxies -> what a codec caches of them, and the votes that condition the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from ray.data import ActorPoolStrategy, Dataset

from galray.core.cluster import Scaling
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location
from galray.data.batches import Emphasise, decode_images, read_galaxies
from galray.data.cache import cache_table, cached
from galray.data.labelled import Labelled
from galray.data.stream import CachedGalaxies, Column
from galray.data.votes import LEAST_VOLUNTEERS, condition_votes
from galray.diffusion.codec import Codec

_COLUMNS = ("galaxy_id", "votes", "classifications", "label", "image")
_IMAGES_AT_ONCE = 64


def cached_galaxies(
    galaxies: Location,
    folder: Location,
    codec: Codec,
    *,
    emphasis: Sequence[str] = (),
    labelled: Labelled | None = None,
    scaling: Scaling | None = None,
) -> CachedGalaxies:
    """Return the training galaxies as the codec caches them, computed now unless they stand already.

    Parameters
    ----------
    galaxies : Location
        Published galaxies; their training split is taken, labelled or not.
    folder : Location
        Where caches stand, each in a folder named by its key.
    codec : Codec
    emphasis : sequence of str
        See `galray.data.batches.Emphasise`.
    labelled : Labelled, optional
        All others take part without votes.
    scaling : Scaling, optional
        Its GPUs encode, where it has any.
    """
    columns = {
        "votes": Column((N_ANSWERS,), "float32"),
        "cached": Column(tuple(codec.cached_shape), str(codec.cached_dtype).removeprefix("torch.")),
    }
    key: dict[str, Any] = {
        "codec": codec.fingerprint(),
        "emphasis": list(emphasis),
        "least_volunteers": LEAST_VOLUNTEERS,
    }
    key |= {"labelled": labelled.fingerprint} if labelled else {}

    def prepared() -> Dataset:
        rows = read_galaxies(galaxies, "train", _COLUMNS, labelled=labelled)
        if emphasis:
            rows = rows.map_batches(Emphasise(emphasis), batch_format="pyarrow")
        return _encoded(rows, codec, scaling or Scaling())

    return cached(galaxies, folder, columns, prepared, key)


def _encoded(rows: Dataset, codec: Codec, scaling: Scaling) -> Dataset:
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

    @torch.inference_mode()
    def __call__(self, galaxies: pa.Table) -> pa.Table:
        """Put ``cached`` and the votes that are known, from volunteers or labels, in the place of images."""
        images = torch.from_numpy(decode_images(galaxies, self._codec.size_px))
        encoded = self._codec.prepare(images.to(self._device)).cpu().contiguous()
        return cache_table(
            {
                "galaxy_id": galaxies["galaxy_id"].to_numpy(),
                "votes": condition_votes(galaxies),
                "cached": encoded.numpy(),
            }
        )
