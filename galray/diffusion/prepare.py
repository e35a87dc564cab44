"""A block of galaxies -> what training reads of them: their votes, and their images as a codec caches them.

Ray's tasks open this module to decode images, and where pixels are cached as they are they need neither torch
nor diffusers, whose import takes longer than that.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from galray.core.cells import cache_table
from galray.data.batches import decode_images
from galray.data.votes import condition_votes


class Prepare:
    """Decode a block of galaxies, and encode their images.

    Parameters
    ----------
    size_px : int
        Of the images.
    encode : callable, optional
        Makes of images, uint8 (n, size_px, size_px, 3), what is cached of them; None: the images themselves.
    """

    def __init__(self, size_px: int, encode: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self._size_px, self._encode = size_px, encode

    def __call__(self, galaxies: pa.Table) -> pa.Table:
        """Put ``cached`` and the votes that are known, from volunteers or labels, in the place of images."""
        images = decode_images(galaxies, self._size_px)
        return cache_table(
            {
                "galaxy_id": galaxies["galaxy_id"].to_numpy(),
                "votes": condition_votes(galaxies),
                "cached": images if self._encode is None else self._encode(images),
            }
        )
