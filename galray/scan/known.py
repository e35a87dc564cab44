"""Objects that are known already: what is near a source, and which of them a scan finds again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.coordinates import SkyCoord

from galray.core.errors import EmptyInputError
from galray.core.storage import Location
from galray.data.tables import as_floats, as_text, read_catalogue
from galray.scan.columns import Columns

MATCHED = pa.schema(
    [("known", pa.int32()), ("galaxy_id", pa.int64()), ("score", pa.float32()), ("separation", pa.float64())]
)


@dataclass(frozen=True)
class KnownObjects:
    """A list of objects on the sky.

    Attributes
    ----------
    name : tuple of str, length n
    ra_deg, dec_deg : ndarray of float64, shape (n,)
        J2000.
    """

    name: tuple[str, ...]
    ra_deg: np.ndarray
    dec_deg: np.ndarray

    @classmethod
    def read(cls, location: Location, columns: Columns) -> KnownObjects:
        """Read any table of `galray.data.tables.read_catalogue`; rows without a position are left out.

        Raises
        ------
        InputError
            For a table that cannot be read, lacks columns, or has no position.
        """
        table = read_catalogue(location).table
        meanings = columns.found_in(table.column_names, location.uri)
        ra_deg, dec_deg = (as_floats(meanings[name].values(table))[0] for name in ("ra", "dec"))
        names = as_text(meanings["galaxy_id"].values(table)).fill_null("").to_pylist()
        good = (np.abs(ra_deg) <= 360) & (np.abs(dec_deg) <= 90)
        if not good.any():
            raise EmptyInputError(f"{location.uri} has no row with a position. Check --known-columns.")
        return cls(tuple(np.asarray(names, object)[good]), ra_deg[good], dec_deg[good])

    def __len__(self) -> int:
        return len(self.name)

    def nearest(self, ra_deg: np.ndarray, dec_deg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the known object nearest to each position, however far.

        Parameters
        ----------
        ra_deg, dec_deg : ndarray of float64, shape (n,)
            NaN where unknown.

        Returns
        -------
        index : ndarray of int64, shape (n,)
            Into `name`; -1 where the position is unknown.
        separation_arcsec : ndarray of float64, shape (n,)
            NaN where it is.
        """
        index, separation = np.full(len(ra_deg), -1), np.full(len(ra_deg), np.nan)
        placed = np.isfinite(ra_deg) & np.isfinite(dec_deg)
        if placed.any():
            sources = SkyCoord(ra_deg[placed], dec_deg[placed], unit="deg")
            index[placed], apart, _ = sources.match_to_catalog_sky(self._coordinates())
            separation[placed] = apart.arcsec
        return index, separation

    def _coordinates(self) -> SkyCoord:
        return SkyCoord(self.ra_deg, self.dec_deg, unit="deg")


@dataclass(frozen=True)
class MatchKnown:
    """Find the sources of a block that are known objects; cheap to send to workers.

    Called with a table of ``galaxy_id``, ``ra``, ``dec`` and ``score``; returns `MATCHED`, a row for
    each source within `radius_arcsec` of a known object.
    """

    known: KnownObjects
    radius_arcsec: float

    def __call__(self, scores: pa.Table) -> pa.Table:
        ra_deg, dec_deg = (pc.fill_null(scores[name], np.nan).to_numpy() for name in ("ra", "dec"))
        index, separation = self.known.nearest(ra_deg, dec_deg)
        near = pa.array(separation <= self.radius_arcsec)
        columns = {"known": index, "galaxy_id": scores["galaxy_id"], "score": scores["score"]}
        table = pa.table({**columns, "separation": separation}).cast(MATCHED)
        return table.filter(near)


def nearest_sources(matched: pa.Table) -> pa.Table:
    """Keep one source for each known object, the nearest; of equals the one that scores highest."""
    best_first = [("score", "descending"), ("galaxy_id", "ascending")]
    in_order = matched.sort_by([("separation", "ascending"), *best_first])
    _, first = np.unique(in_order["known"].to_numpy(), return_index=True)
    return in_order.take(pa.array(first)).sort_by(best_first)
