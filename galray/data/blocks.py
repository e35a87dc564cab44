"""Catalogue files as blocks of rows, so that one of many gigabytes is never held as a whole.

`parts` says how a file can be read by several tasks at once; `read_blocks` reads one part, a block at
a time. A FITS table is cut by rows. A file that can only be read from its beginning (CSV, anything
gzipped) is one part of many blocks. A VOTable is read whole: its format has no other way.
"""

from __future__ import annotations

import csv as text_csv
import gzip
import io
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from galray.core.cells import list_cells
from galray.core.errors import InputError
from galray.core.storage import Location, storage_errors
from galray.data.tables import FITS_SUFFIXES, NULL_CELLS, VOTABLE_SUFFIXES, read_catalogue

ROWS_PER_PART = 1 << 20
ROWS_PER_BLOCK = 1 << 16
_CSV_BLOCK_BYTES = 8 << 20
_HEADER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError, IndexError, KeyError, TypeError, zlib.error)


@dataclass(frozen=True)
class Part:
    """Rows of a file that one task reads.

    Attributes
    ----------
    location : Location
    start, stop : int
        Rows from 0; -1 stops at the file's end.
    """

    location: Location
    start: int = 0
    stop: int = -1


def parts(location: Location, rows_per_part: int = ROWS_PER_PART) -> list[Part]:
    """Cut a FITS, CSV or VOTable file into what tasks can read at once; reads a header at most.

    Raises
    ------
    InputError
        For a file of another kind, or a damaged one.
    """
    if not _is_fits(location) or location.name.lower().endswith(".gz"):
        column_names(location)
        return [Part(location)]
    with _opened(location) as stream, _named(location):
        rows = _table_hdu(stream, location).header["NAXIS2"]
    starts = range(0, max(rows, 1), rows_per_part)
    return [Part(location, start, min(start + rows_per_part, rows)) for start in starts]


def column_names(location: Location) -> list[str]:
    """Return the names of a file's columns in lower case; reads its header, but all of a VOTable."""
    with _named(location):
        if _is_fits(location):
            with _opened(location) as stream:
                return [name.lower() for name in _table_hdu(stream, location).columns.names]
        if _is_csv(location):
            with _opened(location) as stream:
                return [name.strip().lower() for name in _csv_header(stream)]
        if location.name.lower().endswith(VOTABLE_SUFFIXES):
            return read_catalogue(location).table.column_names
    raise InputError(
        f"{location.uri}: give a catalogue that ends in .parquet, .fits, .fits.gz, .csv, .csv.gz or .vot."
    )


def read_blocks(
    part: Part, columns: Sequence[str], rows_per_block: int = ROWS_PER_BLOCK
) -> Iterator[pa.Table]:
    """Read a part's rows, a block at a time.

    Parameters
    ----------
    part : Part
    columns : sequence of str
        Those wanted, in lower case; ones that the file lacks are left out.
    rows_per_block : int
        Of FITS and VOTable; a block of CSV is 8 MiB of it.

    Yields
    ------
    pyarrow.Table
        The columns, and ``row_`` int64, the row's number in the file from 1; where CSV rows have too
        many or too few cells they come with nulls, and ``malformed_`` says what is wrong.

    Raises
    ------
    InputError
        For a damaged file.
    """
    with _named(part.location):
        if _is_fits(part.location):
            yield from _fits_blocks(part, columns, rows_per_block)
        elif _is_csv(part.location):
            yield from _csv_blocks(part.location, columns)
        else:
            table = read_catalogue(part.location).table
            table = table.select([name for name in columns if name in table.column_names])
            yield _numbered(table, 0)


@contextmanager
def _named(location: Location) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise InputError(
            f"{location.uri} is damaged or not what its name says: {error}. Fetch it again, or rename it."
        ) from error


@contextmanager
def _opened(location: Location) -> Iterator[Any]:
    """Open a file to read and to seek in, through its gzip if it has one."""
    with storage_errors(location.uri), location.filesystem.open_input_file(location.path) as raw:
        if location.name.lower().endswith(".gz"):
            with gzip.open(raw) as stream:  # pyright: ignore[reportCallIssue, reportArgumentType]
                yield stream
        else:
            yield raw


def _is_fits(location: Location) -> bool:
    return location.name.lower().endswith(FITS_SUFFIXES)


def _is_csv(location: Location) -> bool:
    return location.name.lower().endswith((".csv", ".csv.gz"))


def _numbered(table: pa.Table, before: int) -> pa.Table:
    return table.append_column("row_", pa.array(np.arange(len(table)) + before + 1, pa.int64()))


def _table_hdu(stream: IO[bytes], location: Location) -> Any:
    """Find the first binary table; no row is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # of small faults in headers, which cost no cell
        hdus: Any = fits.open(stream, memmap=False, lazy_load_hdus=True)
        for hdu in hdus:
            if isinstance(hdu, fits.BinTableHDU):
                return hdu
            if hdu.header.get("ZTABLE"):
                break
    raise InputError(f"{location.uri} holds no plain binary table. Unpack it (funpack), or give another.")


def _fits_blocks(part: Part, columns: Sequence[str], rows_per_block: int) -> Iterator[pa.Table]:
    with _opened(part.location) as stream:
        hdu = _table_hdu(stream, part.location)
        header, row_bytes, data_start = hdu.header, hdu.header["NAXIS1"], hdu.fileinfo()["datLoc"]
        stop = header["NAXIS2"] if part.stop < 0 else part.stop
        stream.seek(data_start + part.start * row_bytes)
        for first in range(part.start, stop, rows_per_block):
            count = min(rows_per_block, stop - first)
            data = stream.read(count * row_bytes)
            if len(data) < count * row_bytes:
                ended = first + len(data) // row_bytes
                raise InputError(f"{part.location.uri} ends after {ended} of its {header['NAXIS2']} rows.")
            yield _numbered(_fits_rows(header, data, count, columns), first)


def _fits_rows(header: fits.Header, data: bytes, count: int, columns: Sequence[str]) -> pa.Table:
    """Read some rows of a table: with the table's header and another NAXIS2 they are a table too."""
    header = header.copy()
    header["NAXIS2"], header["PCOUNT"] = count, 0  # no heap: columns that point there cannot be read
    header.remove("THEAP", ignore_missing=True)
    hdu: Any = fits.BinTableHDU.fromstring(header.tostring().encode() + data)
    found = {column.name.lower(): column for column in hdu.columns}
    return pa.table({name: _arrow(found[name], hdu.data) for name in columns if name in found})


def _arrow(column: Any, rows: Any) -> pa.Array:
    if column.format.lstrip("0123456789").startswith(("P", "Q")):
        raise InputError(f"column {column.name} has cells of many lengths, which are not read here.")
    values = np.asarray(rows[column.name])
    values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind in "SU":
        texts = np.char.rstrip(values.astype(np.str_))
        return pa.array(texts.tolist(), pa.string(), mask=texts == "")
    if values.ndim > 1:
        return list_cells(values)
    missing = values == column.null if column.null is not None else None
    return pa.array(values, mask=missing, from_pandas=True)


def _csv_header(stream: IO[bytes]) -> list[str]:
    text = io.TextIOWrapper(io.BytesIO(stream.read(_HEADER_BYTES)), "utf-8-sig", newline="")
    names = next(text_csv.reader(text), [])
    if not names:
        raise ValueError("it has no line of column names")
    return names


def _csv_blocks(location: Location, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Read CSV as text throughout: types guessed from a block would fail in the next."""
    with _opened(location) as stream:
        names = {name.strip().lower(): name for name in _csv_header(stream)}
        wanted = [names[name] for name in columns if name in names]
    malformed: list[str] = []

    def set_aside(row: csv.InvalidRow) -> str:
        malformed.append(f"{row.actual_columns} cells where {row.expected_columns} are needed: {row.text}")
        return "skip"

    with _opened(location) as stream:
        reader = csv.open_csv(
            pa.PythonFile(stream, "r"),
            read_options=csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False),
            parse_options=csv.ParseOptions(invalid_row_handler=set_aside),
            convert_options=csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(wanted, pa.string()),
                null_values=NULL_CELLS,
                strings_can_be_null=True,
            ),
        )
        for batch in reader:
            table = pa.Table.from_batches([batch])
            yield table.rename_columns([name.strip().lower() for name in table.column_names])
        if malformed:
            nothing = {name: pa.nulls(len(malformed), pa.string()) for name in columns if name in names}
            yield pa.table({**nothing, "malformed_": malformed})
