"""Scores -> ranked candidates, and the same list in the file formats that astronomers open."""

from __future__ import annotations

import io
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    best = scores.filter(pc.greater_equal(scores["score"], pa.scalar(threshold, pa.float32())))
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
    catalogue = as_astropy(table)
    return {
        "parquet": _parquet(table, catalogue),
        "csv": _text(catalogue, format="ascii.csv"),
        "ecsv": _text(catalogue, format="ascii.ecsv", delimiter=","),
        "fits": _fits(catalogue),
        "vot": _votable(catalogue),
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
    info = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    is_text = pa.types.is_string(field.type)
    known = values.fill_null("" if is_text else 0)
    data = np.array(known.to_pylist(), dtype=np.str_ if is_text else field.type.to_pandas_dtype())
    about = {"unit": info.get("unit"), "description": info.get("description")}
    if not values.null_count:
        return Column(data, **about)
    return MaskedColumn(data, mask=values.is_null().to_numpy(), **about)


def _parquet(table: pa.Table, catalogue: Table) -> bytes:
    """Write all columns, with the notes that astropy looks for beside Arrow's own."""
    notes = {"table_meta_yaml": "\n".join(meta.get_yaml_from_table(catalogue))}
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
            longest = pc.max(pc.binary_length(table[field.name])).as_py()
            notes[f"table::len::{field.name}"] = str(max(longest or 0, 1))
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **notes}), buffer)
    return buffer.getvalue()


def _text(catalogue: Table, **how) -> bytes:
    buffer = io.StringIO()
    catalogue.write(buffer, **how)
    return buffer.getvalue().encode()


def _fits(catalogue: Table) -> bytes:
    ascii_only = catalogue.copy()
    for name in catalogue.colnames:
        if catalogue[name].dtype.kind == "U":
            _to_ascii(ascii_only, name)
    buffer = io.BytesIO()
    ascii_only.write(buffer, format="fits")
    return _with_comments(buffer, catalogue)


def _to_ascii(catalogue: Table, name: str) -> None:
    """Escape what FITS, which stores ASCII only, cannot hold."""
    column = catalogue[name]
    text = np.array([str(t).encode("ascii", "backslashreplace").decode() for t in column.tolist()], dtype="U")
    catalogue[name] = MaskedColumn(text, mask=getattr(column, "mask", None), description=column.description)


def _with_comments(buffer: io.BytesIO, catalogue: Table) -> bytes:
    """Add the descriptions as TCOMMn, where TOPCAT looks; astropy keeps its own copy."""
    described = io.BytesIO()
    with fits.open(buffer) as hdus:
        for i, name in enumerate(catalogue.colnames, start=1):
            if catalogue[name].description:
                hdus[1].header[f"TCOMM{i}"] = catalogue[name].description
        hdus.writeto(described)
    return described.getvalue()


def _votable(catalogue: Table) -> bytes:
    buffer = io.BytesIO()
    catalogue.write(buffer, format="votable")
    return buffer.getvalue()


