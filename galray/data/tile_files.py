"""Which files form a tile, and which tile owns a position on the sky."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_scales
from scipy.spatial import KDTree

from galray.core.errors import (
    ConfigError,
    ImageRejected,
    InputError,
    StorageDenied,
    StorageError,
    StorageUnreachable,
)
from galray.core.storage import Location, storage_errors
from galray.data.images import BANDS
from galray.data.tile_fits import grid_of, open_bands, open_tile
from galray.data.tiles import Tile, pixel_positions


@dataclass(frozen=True)
class TileFiles:
    """The tiles of a survey; cheap to send to workers.

    Attributes
    ----------
    location : Location
        Their folder.
    pattern : str
        A file's path below it, made of ``{tile}`` and, where each band has a file, ``{band}``.
    bands : tuple of str
        What the survey calls g, r and i; one may stand for several.
    saturation : float
        Flux from which on a pixel is saturated, where headers have no SATURATE.
    """

    location: Location
    pattern: str = "{tile}.fits"
    bands: tuple[str, ...] = BANDS
    saturation: float = np.inf

    def __post_init__(self) -> None:
        fields = set(re.findall(r"\{(.*?)\}", self.pattern))
        if "tile" not in fields or fields - {"tile", "band"}:
            raise ConfigError(
                f"--tile-files {self.pattern!r}: write {{tile}}, and {{band}} where each band has a file, "
                "as in '{tile}-{band}.fits'."
            )
        if len(self.bands) != len(BANDS):
            raise ConfigError(f"--bands {' '.join(self.bands)}: name three, for g, r and i.")

    def paths(self, tile: str) -> list[str]:
        """Return the files of a tile: one, or one for each band."""
        if "{band}" not in self.pattern:
            return [self.pattern.format(tile=tile)]
        return [self.pattern.format(tile=tile, band=band) for band in self.bands]

    def open(self, tile: str) -> Tile:
        """Open a tile, or say why its sources must be set aside; a store out of reach is no reason.

        Raises
        ------
        ImageRejected
            With the reason missing_image or unreadable_file.
        StorageUnreachable, StorageDenied
        """
        paths, limit = self.paths(tile), self.saturation
        with ExitStack() as opened:
            files = {path: opened.enter_context(self._open(path)) for path in dict.fromkeys(paths)}
            try:
                if len(paths) == 1:
                    return open_tile(files[paths[0]], paths[0], bands=self.bands, saturation=limit)
                return open_bands([files[path] for path in paths], ", ".join(files), saturation=limit)
            except InputError as error:
                raise ImageRejected("unreadable_file", str(error)) from error

    def names(self) -> Iterator[str]:
        """List the tiles of which the first band is there."""
        first = re.escape(self.paths("\0")[0]).replace(re.escape("\0"), "(?P<tile>.+)", 1)
        first = re.compile(first.replace(re.escape("\0"), "(?P=tile)"))
        for name in self.location.names():
            if found := first.fullmatch(name):
                yield found["tile"]

    def footprint(self, tile: str) -> Footprint:
        """Read which sky a tile covers, from the header of its first band.

        Raises
        ------
        InputError
        """
        place = self.location / self.paths(tile)[0]
        with storage_errors(place.uri), place.filesystem.open_input_file(place.path) as stream:
            wcs, shape = grid_of(stream, place.uri)  # pyright: ignore[reportArgumentType]
        return Footprint(tile, wcs, shape)

    def _open(self, path: str) -> IO[bytes]:
        try:
            return (self.location / path).open_whole()
        except InputError as error:
            raise ImageRejected("missing_image", str(error)) from error
        except (StorageUnreachable, StorageDenied):
            raise
        except StorageError as error:
            raise ImageRejected("unreadable_file", str(error)) from error


@dataclass(frozen=True)
class Footprint:
    """The sky that a tile covers: its grid of pixels, shape (H, W)."""

    tile: str
    wcs: WCS
    shape: tuple[int, int]

    def depth_deg(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return how far inside the nearest edge positions lie; negative or NaN where outside."""
        x_px, y_px = pixel_positions(self.wcs, ra_deg, dec_deg)
        height, width = self.shape
        edges = (x_px + 0.5, width - 0.5 - x_px, y_px + 0.5, height - 0.5 - y_px)
        return np.minimum.reduce(edges) * proj_plane_pixel_scales(self.wcs).mean()

    @cached_property
    def centre(self) -> np.ndarray:
        """Unit vector to the middle; float64, shape (3,)."""
        height, width = self.shape
        return _unit_vectors(*self.wcs.all_pix2world([(width - 1) / 2], [(height - 1) / 2], 0))[0]

    @cached_property
    def radius(self) -> float:
        """Chord from the middle to the farthest corner."""
        height, width = self.shape
        x_px, y_px = np.array([0, width, 0, width]) - 0.5, np.array([0, 0, height, height]) - 0.5
        corners = _unit_vectors(*self.wcs.all_pix2world(x_px, y_px, 0))
        return float(np.linalg.norm(corners - self.centre, axis=1).max())


class Footprints:
    """Who owns which position, among many tiles.

    A position that several tiles cover belongs to the one whose edge is farthest; of several such, to
    the first by name. So one tile owns a source, whatever else the catalogue holds.
    """

    def __init__(self, footprints: Sequence[Footprint]) -> None:
        self._footprints = sorted(footprints, key=lambda footprint: footprint.tile)
        self._centres = KDTree(np.reshape([footprint.centre for footprint in self._footprints], (-1, 3)))
        self._radius = max((footprint.radius for footprint in self._footprints), default=0.0)

    def __len__(self) -> int:
        return len(self._footprints)

    def owners(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
        """Return the tile that owns each position; object array, shape (n,), None where no tile does."""
        owner = np.full(len(ra_deg), None, dtype=object)
        deepest = np.zeros(len(ra_deg))
        known = np.flatnonzero(np.isfinite(ra_deg) & np.isfinite(dec_deg))
        if not len(known) or not self._footprints:
            return owner
        sources = KDTree(_unit_vectors(ra_deg[known], dec_deg[known]))
        near = self._centres.query_ball_tree(sources, self._radius * (1 + 1e-9))
        for footprint, rows in zip(self._footprints, near, strict=True):
            if rows:
                at = known[rows]
                depth = footprint.depth_deg(ra_deg[at], dec_deg[at])
                taken = at[depth > deepest[at]]
                owner[taken] = footprint.tile
                deepest[taken] = depth[depth > deepest[at]]
        return owner


def _unit_vectors(ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    cartesian: Any = SkyCoord(ra_deg, dec_deg, unit="deg").cartesian
    return cartesian.xyz.value.T
