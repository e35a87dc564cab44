"""Galaxies -> what a codec caches of them, and the votes that condition the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ray.data import ActorPoolStrategy, Dataset

from galray.core.cluster import Scaling
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location
from galray.data.batches import Emphasise, read_galaxies
from galray.data.cache import cached
from galray.data.labelled import Labelled
from galray.data.stream import CachedGalaxies, Column
from galray.data.votes import LEAST_VOLUNTEERS
from galray.diffusion.codec import Codec, PixelCodec
from galray.diffusion.prepare import Prepare

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
        return _prepared(rows, codec, scaling or Scaling())

    return cached(galaxies, folder, columns, prepared, key)


def _prepared(rows: Dataset, codec: Codec, scaling: Scaling) -> Dataset:
    """Decode and encode in tasks on CPUs; what a learned codec makes, in actors that hold a GPU each."""
    options: dict[str, Any] = {"batch_format": "pyarrow", "batch_size": _IMAGES_AT_ONCE}
    if isinstance(codec, PixelCodec):
        return rows.map_batches(Prepare(codec.size_px).__call__, **options)
    if not scaling.use_gpu:
        return rows.map_batches(Prepare(codec.size_px, Encode(codec)).__call__, **options)
    return rows.map_batches(
        Prepare,
        fn_constructor_args=(codec.size_px, Encode(codec, "cuda")),
        compute=ActorPoolStrategy(size=scaling.workers),
        num_gpus=1,
        **options,
    )


class Encode:
    """Make of images what a learned codec caches of them.

    Parameters
    ----------
    codec : Codec
    device : str
        Where it works; it goes there at the first call, for whoever makes it may have no such device.
    """

    def __init__(self, codec: Codec, device: str = "cpu") -> None:
        self._codec, self._device = codec, device

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Encode images, uint8 (n, size_px, size_px, 3)."""
        codec = self._codec.to(self._device)
        return codec.prepare(torch.from_numpy(images).to(self._device)).cpu().contiguous().numpy()
