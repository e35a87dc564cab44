"""Which galaxies' labels and votes may be used: studies of few labels hide those of all others."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from galray.core.cells import votes_array
from galray.core.errors import InputError
from galray.core.manifest import file_fingerprint
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location
from galray.data.tables import as_ids, read_catalogue


@dataclass(frozen=True)
class Labelled:
    """The galaxies whose labels and votes may be used.

    Attributes
    ----------
    uri : str
        The list that they were read from.
    fingerprint : str
        Of that file.
    galaxy_id : ndarray of int64, shape (n,)
        Ascending.
    """

    uri: str
    fingerprint: str
    galaxy_id: np.ndarray = field(compare=False)

    @classmethod
    def read(cls, location: Location) -> Labelled:
        """Read a Parquet or CSV table with a column ``galaxy_id``.

        Raises
        ------
        InputError
            The column is missing, an id is none, or there is none.
        """
        catalogue = read_catalogue(location)
        catalogue.require(["galaxy_id"])
        ids, trusted = as_ids(catalogue.table["galaxy_id"])
        if not trusted.all():
            row = catalogue.row[np.flatnonzero(~trusted)[0]]
            raise InputError(
                f"{location.uri}, row {row}: the galaxy_id is no whole number. Write the ids as integers."
            )
        if not len(ids):
            raise InputError(f"{location.uri} lists no galaxy. Leave --labelled out to use all labels.")
        return cls(location.uri, file_fingerprint(location), np.unique(ids))

    def hide_others(self, galaxies: pa.Table) -> pa.Table:
        """Return galaxies with what is known of those that are not listed made unknown.

        Parameters
        ----------
        galaxies : pyarrow.Table
            With ``galaxy_id``; ``votes`` become NaN, ``classifications`` and ``label`` null.
        """
        known = np.isin(galaxies["galaxy_id"].to_numpy(), self.galaxy_id)
        for name in ("label", "classifications"):
            if name in galaxies.column_names:
                galaxies = _replaced(galaxies, name, _masked(galaxies[name], known))
        if "votes" in galaxies.column_names:
            votes = np.where(known[:, None], votes_array(galaxies), np.float32(np.nan))
            cells = pa.FixedSizeListArray.from_arrays(pa.array(votes.ravel()), N_ANSWERS)
            galaxies = _replaced(galaxies, "votes", cells)
        return galaxies


def _masked(column: pa.ChunkedArray, known: np.ndarray) -> pa.Array:
    rows = np.where(known, np.arange(len(known)), -1)
    return column.combine_chunks().take(pa.array(rows, mask=~known))


def _replaced(galaxies: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return galaxies.set_column(galaxies.column_names.index(name), name, values)
