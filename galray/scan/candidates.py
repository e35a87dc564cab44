"""Scores -> ranked candidates, and the same list in the file formats that astronomers open."""

from __future__ import annotations

import io
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table, meta

from galray.classifier.calibration import shift_prior
from galray.core.errors import ConfigError
from galray.core.schema import CANDIDATE_SCHEMA, CUTOUT_FLAGS
from galray.scan.known import KnownObjects

_VIEWER = "https://www.legacysurvey.org/viewer"
_VIEWER_LAYER = "ls-dr10"
_VIEWER_ZOOM = 15
_SDSS = "https://skyserver.sdss.org/dr18/VisualTools/navi"
_ALADIN = "https://aladin.cds.unistra.fr/AladinLite/"
_ALADIN_FIELD_DEG = 0.03


def select(
    scores: pa.Table,
    *,
    threshold: float,
    count: int | None,
    train_prevalence: float,
    survey_prevalence: float | None,
    temperature: float = 1.0,
    known: KnownObjects | None = None,
    model_id: str = "",
    run_id: str = "",
) -> pa.Table:
    """Rank the sources that score at or above a threshold, and add those of the random arm.

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
        Share of targets expected in the survey; None leaves it as in the training.
    temperature : float
        Of the classifier's decision: how much less sure than its score it may be.
    known : KnownObjects or None
        What to cross-match with.
    model_id, run_id : str
        Kept with each row.

    Returns
    -------
    pyarrow.Table
        `galray.core.schema.CANDIDATE_SCHEMA`, best first, ranks from 1. Equal scores are ordered
        by ``galaxy_id``, so that the same scores always give the same list. Sources of the random
        arm that are no candidates follow, without a rank. A score that is not a number is never a
        candidate.

    Raises
    ------
    ConfigError
        If the threshold or the count cannot be.
    """
    _check(threshold, count)
    best_first = [("score", "descending"), ("galaxy_id", "ascending")]
    is_high = scores["score"].to_numpy() >= np.float32(threshold)
    best = scores.filter(pa.array(is_high)).sort_by(best_first).slice(0, count)
    drawn = scores.filter(scores["random_arm"]).sort_by(best_first)
    drawn = drawn.filter(pc.invert(pc.is_in(drawn["galaxy_id"], value_set=best["galaxy_id"])))  # pyright: ignore
    rows = pa.concat_tables([best, drawn])
    positions = list(zip(rows["ra"].to_pylist(), rows["dec"].to_pylist(), strict=True))
    columns = {
        **{name: rows[name] for name in rows.column_names},
        **_nearest_known(rows, known),
        "rank": [*range(1, len(best) + 1), *[None] * len(drawn)],
        "probability": _probability(
            rows["score"].to_numpy(), train_prevalence, survey_prevalence, temperature
        ),
        "flag_names": [" ".join(flag_names(flags)) for flags in rows["flags"].to_pylist()],
        "model_id": [model_id] * len(rows),
        "run_id": [run_id] * len(rows),
        **{name: [link(*position) for position in positions] for name, link in LINKS.items()},
    }
    return pa.table([_as(columns[field.name], field) for field in CANDIDATE_SCHEMA], schema=CANDIDATE_SCHEMA)


def flag_names(flags: int) -> list[str]:
    """Spell out bits of ``schema.CUTOUT_FLAGS``."""
    return [name for name, bit in CUTOUT_FLAGS.items() if flags & bit]


def viewer_url(ra_deg: float | None, dec_deg: float | None) -> str | None:
    """Return the Legacy Survey viewer's page at a position, or None where there is no position."""
    return _url(_VIEWER, ra_deg, dec_deg, zoom=_VIEWER_ZOOM, layer=_VIEWER_LAYER)


def sdss_url(ra_deg: float | None, dec_deg: float | None) -> str | None:
    """Return SDSS's page at a position, or None where there is no position."""
    return _url(_SDSS, ra_deg, dec_deg, scale=0.2, opt="G")


def aladin_url(ra_deg: float | None, dec_deg: float | None) -> str | None:
    """Return Aladin Lite at a position, or None where there is no position."""
    if _url(_ALADIN, ra_deg, dec_deg) is None:
        return None
    return f"{_ALADIN}?{urlencode({'target': f'{ra_deg:.6f} {dec_deg:.6f}', 'fov': _ALADIN_FIELD_DEG})}"


LINKS = {"viewer_url": viewer_url, "sdss_url": sdss_url, "aladin_url": aladin_url}


def _url(page: str, ra_deg: float | None, dec_deg: float | None, **options: Any) -> str | None:
    if ra_deg is None or dec_deg is None or not (np.isfinite(ra_deg) and np.isfinite(dec_deg)):
        return None
    return f"{page}?{urlencode({'ra': f'{ra_deg:.6f}', 'dec': f'{dec_deg:.6f}', **options})}"


def _nearest_known(rows: pa.Table, known: KnownObjects | None) -> dict[str, Any]:
    if known is None:
        nothing = [None] * len(rows)
        return {"known_object": nothing, "known_separation": nothing}
    ra_deg, dec_deg = (pc.fill_null(rows[name], np.nan).to_numpy() for name in ("ra", "dec"))
    index, separation_arcsec = known.nearest(ra_deg, dec_deg)
    names = [known.name[i] if i >= 0 else None for i in index]
    return {"known_object": names, "known_separation": pa.array(separation_arcsec, from_pandas=True)}


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


def _probability(score: np.ndarray, train: float, survey: float | None, temperature: float) -> np.ndarray:
    if survey is None and temperature == 1:
        return score
    return shift_prior(score, train, train if survey is None else survey, temperature)


def _as(values, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values.cast(field.type)
    return pa.array(values, field.type)


def _column(values: pa.ChunkedArray, field: pa.Field) -> Column:
    empty = pa.scalar("") if pa.types.is_string(field.type) else pa.scalar(0).cast(field.type)
    known = values.fill_null(empty).to_pylist()
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
