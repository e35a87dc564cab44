"""Which galaxies' labels and votes may be used, and labels that a list gives itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from galray.core.cells import list_cells, votes_array
from galray.core.errors import InputError
from galray.core.manifest import Manifest, file_fingerprint, is_published, local_folder
from galray.core.storage import Location
from galray.data.tables import Catalogue, as_ids, read_catalogue

LIST_FILE = "galaxies.parquet"
"""Of a published list."""
LABELS = "labels"
"""Kind of the published folders with labels that a classifier gave."""


@dataclass(frozen=True)
class Labelled:
    """The galaxies of which something may be known.

    Attributes
    ----------
    uri : str
        The list that they were read from.
    fingerprint : str
        Of that file.
    galaxy_id : ndarray of int64, shape (n,)
        Ascending.
    label : ndarray of object, shape (n,)
        What the list says a galaxy is; None where the galaxy's own label and votes count.
    truth : str or None
        The list of the galaxies whose own labels are behind it: this one; of labels that a classifier gave,
        the one that it learnt from, or None where it learnt from all.
    parents : mapping
        What a model that learns from it descends from.
    """

    uri: str
    fingerprint: str
    galaxy_id: np.ndarray = field(compare=False)
    label: np.ndarray = field(compare=False)
    truth: str | None
    parents: Mapping[str, str] = field(compare=False)

    @classmethod
    def read(cls, location: Location) -> Labelled:
        """Read a Parquet or CSV table with a column ``galaxy_id``, and maybe a column ``label``.

        Raises
        ------
        InputError
            The column is missing, an id is none or comes twice with different labels, there is none, or
            published labels have been altered.
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
        galaxy_id, label = _once(location.uri, ids, _given(catalogue))
        fingerprint = file_fingerprint(location)
        truth, parents = location.uri, {location.uri: fingerprint}
        if is_published(location.folder, LABELS):
            with local_folder(location.folder, LABELS):  # refuses what is not as it was published
                manifest = Manifest.read(location.folder)
            truth, parents = manifest.lineage.get("labelled"), {location.folder.uri: manifest.fingerprint}
        return cls(location.uri, fingerprint, galaxy_id, label, truth, parents)

    def apply(self, galaxies: pa.Table) -> pa.Table:
        """Return galaxies with what is known of those that are not listed made unknown, and the given labels.

        Parameters
        ----------
        galaxies : pyarrow.Table
            With ``galaxy_id``; ``votes`` become NaN, ``classifications`` and ``label`` null.
        """
        ids = galaxies["galaxy_id"].to_numpy()
        place = np.searchsorted(self.galaxy_id, ids).clip(max=len(self.galaxy_id) - 1)
        listed = self.galaxy_id[place] == ids
        given = self.label[place]
        own = listed & np.array([label is None for label in given], bool)
        given[~listed] = None
        if "classifications" in galaxies.column_names:
            classifications = _masked(galaxies["classifications"], own)
            galaxies = _replaced(galaxies, "classifications", classifications)
        if "label" in galaxies.column_names:
            label = np.where(own, np.array(galaxies["label"].to_pylist(), object), given)
            galaxies = _replaced(galaxies, "label", pa.array(label, pa.string()))
        if "votes" in galaxies.column_names:
            votes = np.where(own[:, None], votes_array(galaxies), np.float32(np.nan))
            galaxies = _replaced(galaxies, "votes", list_cells(votes))
        return galaxies


def _given(catalogue: Catalogue) -> np.ndarray:
    """Return the labels of the list itself, None where it gives none."""
    table = catalogue.table
    if "label" not in table.column_names:
        return np.full(len(table), None, object)
    return np.array([text or None for text in table["label"].cast(pa.string()).to_pylist()], object)


def _once(where: str, ids: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids in order, each once, with their labels."""
    ordered, first, place = np.unique(ids, return_index=True, return_inverse=True)
    other = np.flatnonzero(label != label[first][place])
    if len(other):
        raise InputError(f"{where} gives galaxy {ids[other[0]]} two labels. Leave one.")
    return ordered, label[first]


def _masked(column: pa.ChunkedArray, known: np.ndarray) -> pa.Array:
    rows = np.where(known, np.arange(len(known)), -1)
    return column.combine_chunks().take(pa.array(rows, mask=~known))


def _replaced(galaxies: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return galaxies.set_column(galaxies.column_names.index(name), name, values)
