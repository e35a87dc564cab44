"""What a catalogue's columns mean, and which of its rows are scanned.

Every catalogue becomes `SOURCE_SCHEMA`, whatever it calls its columns. Each meaning has a list of
expressions (`galray.data.expressions`); the first whose columns are all there is taken, unless an
option gives another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from galray.core.errors import MissingColumnError
from galray.core.schema import REJECT_SCHEMA
from galray.data.expressions import Expression
from galray.data.tables import as_floats, as_ids, as_text

SOURCE_SCHEMA = pa.schema(
    [("galaxy_id", pa.int64()), ("ra", pa.float64()), ("dec", pa.float64()), ("tile", pa.string())]
    + [("radius_arcsec", pa.float32()), ("magnitude", pa.float32()), ("flags", pa.int32())]
    + [(field.name, field.type) for field in REJECT_SCHEMA]
)

NOT_SELECTED = "not_selected"

# Legacy Survey objects have no id of their own; this is the ls_id of NOIRLab's Astro Data Lab:
# objid in the lowest 16 bits, brickid from bit 16, release from bit 40.
LS_ID = "release * 1099511627776 + brickid * 65536 + objid"

_KNOWN_AS: dict[str, tuple[str, ...]] = {
    "galaxy_id": (
        "galaxy_id", "ls_id", LS_ID, "dr7objid", "dr8objid", "objid", "source_id", "object_id", "id"
    ),
    "ra": ("ra", "raj2000", "ra_deg", "alpha_j2000"),
    "dec": ("dec", "dej2000", "decj2000", "dec_deg", "delta_j2000"),
    "tile": ("tile",),
    "radius_arcsec": (
        "radius_arcsec", "petror90_r", "petroth90[2]", "shape_r", "shapedev_r + shapeexp_r"
    ),
    "magnitude": (
        "magnitude", "mag_r", "petromag_r", "petromag[2]", "modelmag_r", "22.5 - 2.5 * log10(flux_r)"
    ),
}  # fmt: skip
_NEEDED = ("galaxy_id", "ra", "dec")


@dataclass(frozen=True)
class Columns:
    """What the catalogue calls its columns; empty takes the first known name that is there.

    Each may be an expression, such as ``petroth90[2]`` or ``0.262 * radius_px``.
    """

    galaxy_id: str = ""
    """Whole numbers of up to 64 bits; Legacy Survey ids are packed from release, brickid and objid."""
    ra: str = ""
    """Degrees, J2000."""
    dec: str = ""
    """Degrees, J2000."""
    tile: str = ""
    """Name of the tile; where there is none, tiles are found by the sky that they cover."""
    radius_arcsec: str = ""
    magnitude: str = ""

    def __post_init__(self) -> None:
        for text in filter(None, asdict(self).values()):
            Expression(text)

    def found_in(self, names: Sequence[str], where: str) -> dict[str, Expression]:
        """Choose an expression for each meaning that the catalogue has.

        Parameters
        ----------
        names : sequence of str
            The catalogue's columns, in lower case.
        where : str
            The catalogue, for the message.

        Raises
        ------
        MissingColumnError
            Where an option names a column that is not there, or an id or position is not found.
        """
        given = {meaning: Expression(text) for meaning, text in asdict(self).items() if text}
        absent = sorted({name for chosen in given.values() for name in chosen.names}.difference(names))
        if absent:
            raise MissingColumnError(where, absent, names)
        found = {meaning: _first_there(known, names) for meaning, known in _KNOWN_AS.items()} | given
        missing = [meaning for meaning in _NEEDED if found[meaning] is None]
        if missing:
            raise MissingColumnError(f"{where} (see --columns)", missing, names)
        return {meaning: chosen for meaning, chosen in found.items() if chosen is not None}


def _first_there(known: Sequence[str], names: Sequence[str]) -> Expression | None:
    expressions = map(Expression, known)
    return next((expression for expression in expressions if expression.names.issubset(names)), None)


@dataclass(frozen=True)
class ReadColumns:
    """Turn blocks of a catalogue into `SOURCE_SCHEMA`; cheap to send to workers.

    Rows that `wanted` leaves out have the reason ``not_selected``: of them only the position matters.

    Attributes
    ----------
    meanings : dict of str to Expression
        From `Columns.found_in`.
    wanted : Expression or None
        Rows to scan; None takes all.
    """

    meanings: dict[str, Expression]
    wanted: Expression | None

    @property
    def names(self) -> list[str]:
        """The catalogue's columns that are read; no other is."""
        expressions = [*self.meanings.values(), *([self.wanted] if self.wanted else [])]
        return sorted({name for expression in expressions for name in expression.names})

    def check(self, names: Sequence[str], where: str) -> None:
        """Raise MissingColumnError unless the catalogue has all columns that are read."""
        found = {name.lower() for name in names}
        if missing := sorted(set(self.names) - found):
            raise MissingColumnError(where, missing, sorted(found))

    def __call__(self, block: pa.Table) -> pa.Table:
        block = block.rename_columns([name.lower() for name in block.column_names])
        malformed = _malformed(block)
        whole = block.filter(pa.array(malformed == ""))
        chosen = np.ones(len(whole), bool) if self.wanted is None else self.wanted.holds(whole)
        faults = [fault for fault in malformed if fault]
        return pa.concat_tables([self._sources(whole, chosen), _malformed_rows(faults)])

    def _sources(self, rows: pa.Table, chosen: np.ndarray) -> pa.Table:
        values = {meaning: expression.values(rows) for meaning, expression in self.meanings.items()}
        ids, trusted = as_ids(values["galaxy_id"])
        texts = as_text(values["galaxy_id"])
        columns: dict[str, Any] = {
            "galaxy_id": pa.array(ids, mask=~trusted),
            "id_text": texts,
            "tile": as_text(values["tile"]) if "tile" in values else pa.nulls(len(rows), pa.string()),
            "row": rows["row_"] if "row_" in rows.column_names else pa.nulls(len(rows), pa.int64()),
            "reason": _where(~trusted, ["bad_id"] * int((~trusted).sum())),
            "detail": _where(~trusted, [f"the id is {t!r}" for t in texts.filter(~trusted).to_pylist()]),
        }
        for meaning in ("ra", "dec", "radius_arcsec", "magnitude"):
            if meaning in values:
                columns[meaning] = pa.array(as_floats(values[meaning])[0], from_pandas=True)
        columns["reason"][~chosen] = NOT_SELECTED
        return sources_table(columns, len(rows))


def _where(rows: np.ndarray, texts: list[str]) -> np.ndarray:
    """Return `texts` in the given rows, None in the others."""
    column = np.full(len(rows), None, dtype=object)
    column[rows] = texts
    return column


def _malformed(block: pa.Table) -> np.ndarray:
    """Return what is wrong with each row's cells; empty where nothing is."""
    if "malformed_" not in block.column_names:
        return np.full(len(block), "", dtype=object)
    return np.asarray(block["malformed_"].fill_null("").to_pylist(), dtype=object)


def _malformed_rows(faults: list[str]) -> pa.Table:
    return sources_table({"reason": ["malformed_row"] * len(faults), "detail": faults}, len(faults))


def sources_table(columns: Mapping[str, Any], count: int) -> pa.Table:
    """Return a table of `SOURCE_SCHEMA`; a column that is not given is null."""
    whole = {
        field.name: columns[field.name] if field.name in columns else pa.nulls(count, field.type)
        for field in SOURCE_SCHEMA
    }
    arrays = [
        values.cast(field.type) if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type)
        for field, values in zip(SOURCE_SCHEMA, whole.values(), strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=SOURCE_SCHEMA)
