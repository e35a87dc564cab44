"""Read catalogues in the forms astronomers publish: CSV, CSV.gz, Parquet, FITS, VOTable.

Ids are kept as they are written until `as_ids` judges them: SDSS ids have 18 digits, a float64 keeps
16, and a rounded id names another galaxy.
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from galray.core.errors import InputError, MissingColumnError
from galray.core.schema import ANSWERS, N_ANSWERS, QUESTION_OF_ANSWER
from galray.core.storage import Location

NULL_CELLS = ["", "-999", "-999.0", "NA", "NaN", "nan", "null", "NULL", "None"]
_MISSING = -999
FITS_SUFFIXES = (".fits", ".fits.gz", ".fit", ".fits.fz")
VOTABLE_SUFFIXES = (".vot", ".xml", ".votable")
_TEXT_SUFFIXES = (".txt", ".dat")
_GZIP_SIGNATURE = b"\x1f\x8b"
_WHOLE_NUMBER = re.compile(r"\s*([+-]?\d{1,19})(\.0*)?\s*")
_EXACT_FLOAT64_LIMIT = 2**53


@dataclass(frozen=True)
class Catalogue:
    """A table as read, with the rows that could not even be split into cells.

    Attributes
    ----------
    where : str
        The table's place, for messages.
    table : pyarrow.Table
        Column names in lower case, without blanks around them.
    row : ndarray of int64, shape (n,)
        The number of each row in the file, from 1, the header not counted.
    malformed : tuple of (int, str)
        Row number and what is wrong.
    """

    where: str
    table: pa.Table
    row: np.ndarray
    malformed: tuple[tuple[int, str], ...] = ()

    def require(self, names: Sequence[str]) -> None:
        """Raise MissingColumnError unless all the named columns are there."""
        missing = [name for name in names if name not in self.table.column_names]
        if missing:
            raise MissingColumnError(self.where, missing, self.table.column_names)

    def first_of(self, names: Sequence[str]) -> str:
        """Return the first of several spellings that the table has."""
        for name in names:
            if name in self.table.column_names:
                return name
        raise MissingColumnError(self.where, [" or ".join(names)], self.table.column_names)


def read_catalogue(location: Location) -> Catalogue:
    """Read a whole table; its kind follows from its name.

    Raises
    ------
    InputError
        For a kind that is not known, or a file that is damaged.
    """
    name = location.name.lower()
    try:
        if name.endswith((".csv", ".csv.gz")):
            table, row, malformed = _read_csv(location)
            return Catalogue(location.uri, _lower(table), row, malformed)
        if name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(location.read_bytes()))
        elif name.endswith(FITS_SUFFIXES):
            table = _read_astropy(location, "fits")
        elif name.endswith(VOTABLE_SUFFIXES):
            table = _read_astropy(location, "votable")
        elif name.endswith(_TEXT_SUFFIXES):
            table = _read_text(location)
        else:
            raise InputError(
                f"{location.uri}: give a table that ends in .csv, .csv.gz, .parquet, .fits, .vot or .txt."
            )
    except (pa.ArrowException, OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise InputError(
            f"{location.uri} is damaged or not what its name says: {error}. Fetch it again, or rename it."
        ) from error
    return Catalogue(location.uri, _lower(table), np.arange(1, len(table) + 1))


def _lower(table: pa.Table) -> pa.Table:
    return table.rename_columns([name.strip().lower() for name in table.column_names])


def _read_csv(location: Location) -> tuple[pa.Table, np.ndarray, tuple[tuple[int, str], ...]]:
    data = _plain(location.read_bytes())
    malformed: list[tuple[int, str]] = []

    def set_aside(row: csv.InvalidRow) -> str:
        malformed.append(
            (row.number - 1, f"{row.actual_columns} cells where {row.expected_columns} are needed")
        )
        return "skip"

    names = pd.read_csv(io.BytesIO(data), nrows=0, encoding="utf-8-sig").columns
    id_like = {name: pa.string() for name in names if name.strip().lower().endswith(("id", "id_"))}
    table = csv.read_csv(
        io.BytesIO(data),
        read_options=csv.ReadOptions(use_threads=False),  # only then are rows numbered
        parse_options=csv.ParseOptions(invalid_row_handler=set_aside),
        convert_options=csv.ConvertOptions(
            null_values=NULL_CELLS, strings_can_be_null=True, column_types=id_like
        ),
    )
    numbers = np.arange(1, len(table) + len(malformed) + 1)
    return table, np.setdiff1d(numbers, [number for number, _ in malformed]), tuple(malformed)


def _read_astropy(location: Location, form: str) -> pa.Table:
    # Here, for it takes a quarter of a second, and few of Ray's processes read a table of this kind.
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # of small faults in headers, which cost no cell
        table = Table.read(io.BytesIO(_plain(location.read_bytes())), format=form)
    table.convert_bytestring_to_unicode()
    flat = [name for name in table.colnames if table[name].ndim == 1]
    frame = table[flat].to_pandas(index=False)
    return pa.Table.from_pandas(frame, preserve_index=False)


def _read_text(location: Location) -> pa.Table:
    """Read the rows of plain text below whatever stands above them; columns are col1, col2, ..."""
    lines = _plain(location.read_bytes()).decode("utf-8-sig").splitlines()
    rows = [cells for line in lines if (cells := line.split())]
    above = next((i for i in range(len(rows), 0, -1) if len(rows[i - 1]) != len(rows[-1])), 0) if rows else 0
    if not rows[above:]:
        raise ValueError("it holds no row")
    columns = zip(*rows[above:], strict=True)
    return pa.table(
        {
            f"col{i}": pa.array((None if cell in NULL_CELLS else cell for cell in cells), pa.string())
            for i, cells in enumerate(columns, start=1)
        }
    )


def _plain(data: bytes) -> bytes:
    return gzip.decompress(data) if data.startswith(_GZIP_SIGNATURE) else data


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as text, whole numbers without a decimal point."""
    if pa.types.is_binary(column.type):
        return column.cast(pa.string())
    return column.cast(pa.string()) if not pa.types.is_string(column.type) else column


def as_ids(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Read a column of ids.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
        Integers, text, or floats.

    Returns
    -------
    ids : ndarray of int64, shape (n,)
        Zero where an id cannot be trusted.
    trusted : ndarray of bool, shape (n,)
        False for what is empty, the missing-value mark -999, not a whole number, beyond 64 bits, or
        so large that the column's floating-point type rounds it.
    """
    if pa.types.is_integer(column.type):
        values = pc.fill_null(column, 0).to_numpy()
        in_range = (values != _MISSING) & (values <= np.iinfo(np.int64).max)
        trusted = in_range & column.is_valid().to_numpy()
    elif pa.types.is_floating(column.type):
        values = column.to_numpy()
        exact_limit = 2.0 ** (np.finfo(values.dtype).nmant + 1)
        trusted = (np.abs(values) < exact_limit) & (np.trunc(values) == values) & (values != _MISSING)
    else:
        return _ids_of_text(as_text(column).to_pylist())
    return np.where(trusted, values, 0).astype(np.int64), trusted


def _ids_of_text(texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    numbers = [_whole_number(text) for text in texts]
    ids = np.array([number or 0 for number in numbers], dtype=np.int64)
    return ids, np.array([number is not None for number in numbers], dtype=bool)


def _whole_number(text: str | None) -> int | None:
    """Return an id written as text; one written as 123.0 came through a float64, which must hold it."""
    found = _WHOLE_NUMBER.fullmatch(text or "")
    if found is None:
        return None
    number, limit = int(found[1]), _EXACT_FLOAT64_LIMIT if found[2] else 2**63
    return number if abs(number) < limit and number != _MISSING else None


def as_floats(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Read a column of numbers.

    Returns
    -------
    values : ndarray of float64, shape (n,)
        NaN where the cell is empty, a missing-value mark such as -999, or no number.
    legible : ndarray of bool, shape (n,)
        False where a cell holds something that is no number.
    """
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        values = column.cast(pa.float64(), safe=False).to_numpy()
        legible = np.ones(len(values), dtype=bool)
    else:
        text = as_text(column).to_pandas()
        values = np.asarray(pd.to_numeric(text, errors="coerce"), dtype=np.float64)
        legible = ~np.isnan(values) | text.isna().to_numpy() | text.isin(NULL_CELLS).to_numpy()
    return np.where(values == _MISSING, np.nan, values), legible


def vote_columns(statistic: str) -> list[str]:
    """Return the names of the 37 columns of one vote statistic, in schema order."""
    return [f"{answer.column}_{statistic}" for answer in ANSWERS]


def gz2_votes(catalogue: Catalogue, statistic: str) -> tuple[np.ndarray, list[str | None]]:
    """Read the 37 vote fractions of a Galaxy Zoo 2 table (Hart et al. 2016).

    Parameters
    ----------
    catalogue : Catalogue
    statistic : {'weighted_fraction', 'debiased', 'fraction'}
        Which of the published columns to take.

    Returns
    -------
    votes : ndarray of float32, shape (n, 37)
        In schema order; NaN where the question was not asked, which GZ2 writes as zero for all of
        its answers.
    problems : list of str or None, length n
        Names the first column whose value is no fraction.

    Raises
    ------
    MissingColumnError
    """
    columns = vote_columns(statistic)
    catalogue.require(columns)
    votes = np.empty((len(catalogue.table), N_ANSWERS), dtype=np.float32)
    problems: list[str | None] = [None] * len(votes)
    for i, name in enumerate(columns):
        values, legible = as_floats(catalogue.table[name])
        # NaN compares false, so a missing vote is no problem.
        for row in np.flatnonzero((values < 0) | (values > 1) | ~legible):
            problems[row] = problems[row] or f"{name} is {catalogue.table[name][row].as_py()!r}"
        votes[:, i] = values
    return mask_unasked(votes), problems


def mask_unasked(votes: np.ndarray) -> np.ndarray:
    """Set to NaN the answers of every question that nobody answered, shape (n, 37)."""
    questions = np.eye(QUESTION_OF_ANSWER.max() + 1, dtype=np.float32)[QUESTION_OF_ANSWER]
    asked = np.nan_to_num(votes) @ questions > 0
    return np.where(asked[:, QUESTION_OF_ANSWER], votes, np.float32(np.nan))
