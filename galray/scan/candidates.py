"""Scores -> ranked candidates, and the same list in the file formats that astronomers open."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table, meta

from galray.classifier.metrics import shift_prior
from galray.core.errors import ConfigError
from galray.core.schema import CANDIDATE_SCHEMA

_VIEWER = "https://www.legacysurvey.org/viewer"
_VIEWER_LAYER = "ls-dr10"
_VIEWER_ZOOM = 15


def select(
    scores: pa.Table,
    *,
    threshold: float,
    count: int | None,
    train_prevalence: float,
    survey_prevalence: float | None,
) -> pa.Table:
    """Rank the sources that score at or above a threshold.

    Parameters
    ----------
    scores : pyarrow.Table
        `galray.core.schema.SCORE_SCHEMA`, in any order.
    threshold : float
        The lowest score that makes a candidate, in [0, 1]; compared in the scores' own float32.
    count : int or None
        Keep at most so many of the best; None keeps all.
    train_prevalence : float
        Share of targets in what the classifier was trained on.
    survey_prevalence : float or None
        Share of targets expected in the survey; None leaves the score as the probability.

    Returns
    -------
    pyarrow.Table
        `galray.core.schema.CANDIDATE_SCHEMA`, best first, ranks from 1. Equal scores are ordered
        by ``galaxy_id``, so that the same scores always give the same list. A score that is not a
        number is never a candidate.

    Raises
    ------
    ConfigError
        If the threshold or the count cannot be.
    """
    _check(threshold, count)
    best = scores.filter(pa.array(scores["score"].to_numpy() >= np.float32(threshold)))
    best = best.sort_by([("score", "descending"), ("galaxy_id", "ascending")]).slice(0, count)
    columns = {
        **{name: best[name] for name in best.column_names},
        "rank": np.arange(1, best.num_rows + 1),
        "probability": _probability(best["score"].to_numpy(), train_prevalence, survey_prevalence),
        "viewer_url": list(map(viewer_url, best["ra"].to_pylist(), best["dec"].to_pylist())),
    }
    return pa.table([_as(columns[field.name], field) for field in CANDIDATE_SCHEMA], schema=CANDIDATE_SCHEMA)


def viewer_url(ra_deg: float | None, dec_deg: float | None) -> str | None:
    """Return the Legacy Survey viewer's page at a position, or None where there is no position."""
    if ra_deg is None or dec_deg is None or not (np.isfinite(ra_deg) and np.isfinite(dec_deg)):
        return None
    position = {"ra": f"{ra_deg:.6f}", "dec": f"{dec_deg:.6f}"}
    return f"{_VIEWER}?{urlencode({**position, 'zoom': _VIEWER_ZOOM, 'layer': _VIEWER_LAYER})}"


def tables(table: pa.Table) -> dict[str, bytes]:
    """Encode a table of candidates in every format that it is handed over in.

    Parameters
    ----------
    table : pyarrow.Table
        Candidates, or a graded catalogue; units and descriptions come from its fields' metadata.

    Returns
    -------
    dict of str to bytes
        File contents by extension: ``parquet`` (the only one with the cutouts), ``csv`` (plain,
        for spreadsheets and pandas), ``ecsv`` (CSV whose header carries units and descriptions),
        ``fits`` and ``vot``. All open in astropy and TOPCAT; ids are int64 throughout.
    """
    return {
        "parquet": _parquet(table),
        "csv": _text(table, format="ascii.csv"),
        "ecsv": _text(table, format="ascii.ecsv", delimiter=","),
        "fits": _fits(table),
        "vot": _votable(table),
    }


def as_astropy(table: pa.Table) -> Table:
    """Return a table without its binary columns as an astropy Table, nulls masked."""
    fields = [field for field in table.schema if not pa.types.is_binary(field.type)]
    return Table({field.name: _column(table[field.name], field) for field in fields})


def _check(threshold: float, count: int | None) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold {threshold} is not in [0, 1], as scores are. Give a score.")
    if count is not None and count < 1:
        raise ConfigError(f"count {count} would keep no candidate. Give 1 or more, or leave it out.")


def _probability(score: np.ndarray, train: float, survey: float | None) -> np.ndarray:
    return score if survey is None else shift_prior(score, train, survey)


def _as(values, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values.cast(field.type)
    return pa.array(values, field.type)


def _column(values: pa.ChunkedArray, field: pa.Field) -> Column:
    known = values.fill_null("" if pa.types.is_string(field.type) else 0).to_pylist()
    data = np.array(known, dtype=_dtype(field))
    mask = values.is_null().to_numpy()
    return _annotated(MaskedColumn(data, mask=mask) if mask.any() else Column(data), field)


def _dtype(field: pa.Field) -> type:
    if pa.types.is_string(field.type):
        return np.str_
    return np.bytes_ if pa.types.is_binary(field.type) else field.type.to_pandas_dtype()


def _annotated(column: Any, field: pa.Field) -> Column:
    column.unit, column.description = _note(field, "unit"), _note(field, "description")
    return column


def _note(field: pa.Field, key: str) -> str | None:
    return (field.metadata or {}).get(key.encode(), b"").decode() or None


def _parquet(table: pa.Table) -> bytes:
    """Write all columns, with the notes that astropy looks for beside Arrow's own."""
    notes = {**(table.schema.metadata or {}), **_astropy_layout(table), **_astropy_lengths(table)}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(notes), buffer)
    return buffer.getvalue()


def _astropy_layout(table: pa.Table) -> dict[str, str]:
    """Return the columns' types, units and descriptions as astropy notes them in Parquet files."""
    empty = {field.name: _annotated(Column(np.empty(0, _dtype(field))), field) for field in table.schema}
    return {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(Table(empty)))}


def _astropy_lengths(table: pa.Table) -> dict[str, str]:
    """Return the longest text of each column, without which astropy warns and guesses."""
    columns = {
        field.name: table[field.name] for field in table.schema if _dtype(field) in (np.str_, np.bytes_)
    }
    longest = {n: max(map(len, c.drop_null().to_pylist()), default=1) for n, c in columns.items()}
    return {f"table::len::{name}": str(max(length, 1)) for name, length in longest.items()}


def _text(table: pa.Table, **how: str) -> bytes:
    buffer = io.StringIO()
    as_astropy(table).write(buffer, **how)
    return buffer.getvalue().encode()


def _votable(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    as_astropy(table).write(buffer, format="votable")
    return buffer.getvalue()


def _fits(table: pa.Table) -> bytes:
    """Write a binary table, with the descriptions as TCOMMn, where TOPCAT looks for them."""
    catalogue = as_astropy(_in_ascii(table))
    written, described = io.BytesIO(), io.BytesIO()
    catalogue.write(written, format="fits")
    written.seek(0)
    with fits.open(written) as hdus:
        header = next(hdu.header for hdu in hdus if isinstance(hdu, fits.BinTableHDU))
        for i, name in enumerate(catalogue.colnames, start=1):
            if note := _note(table.schema.field(name), "description"):
                header[f"TCOMM{i}"] = note
        hdus.writeto(described)
    return described.getvalue()


def _in_ascii(table: pa.Table) -> pa.Table:
    """Escape what FITS, which stores ASCII only, cannot hold."""
    for i, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            texts = table[field.name].to_pylist()
            escaped = [t and t.encode("ascii", "backslashreplace").decode() for t in texts]
            table = table.set_column(i, field, pa.array(escaped, pa.string()))
    return table
