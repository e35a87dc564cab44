"""What came in, row by row, before any image is read.

A plan has one row for each row of the catalogue and one for each image that no row names, so that
whatever becomes of them, rows in = rows out + rejects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa

from galray.core.cells import list_cells
from galray.core.errors import InputError
from galray.core.schema import N_ANSWERS, fingerprint
from galray.data.sources import ImageSource, ParquetSource, climbs_out
from galray.data.tables import Catalogue, as_floats, as_ids, as_text, gz2_votes, vote_columns

ROWS_PER_BLOCK = 512


@dataclass(frozen=True)
class Plan:
    """What came in, one row each, before any image is read. `reason` is None for what may be good."""

    frame: pd.DataFrame
    votes: np.ndarray

    @classmethod
    def of(cls, row: np.ndarray, id_text: pa.ChunkedArray, ids: np.ndarray, trusted: np.ndarray) -> Plan:
        frame = pd.DataFrame({"row": row, "id_text": id_text.to_pylist(), "galaxy_id": ids})
        for name in ("ra", "dec"):
            frame[name] = np.nan
        for name in ("classifications", "label", "item", "reason", "detail"):
            frame[name] = pd.Series([None] * len(frame), dtype=object)
        plan = cls(frame, np.full((len(frame), N_ANSWERS), np.nan, dtype=np.float32))
        texts = frame["id_text"].tolist()
        plan.reject(~trusted, "bad_id", pd.Series([_fault_of_id(text) for text in texts], dtype=object))
        # Among the trusted only, and as integers: beside missing values pandas would round them to floats.
        repeated = np.zeros(len(frame), dtype=bool)
        repeated[trusted] = frame.loc[trusted, "galaxy_id"].duplicated()
        earlier = pd.Series([f"an earlier row has the id {text}" for text in texts], dtype=object)
        plan.reject(repeated, "duplicate_id", earlier)
        return plan

    def reject(self, which: np.ndarray | pd.Series, reason: str, detail: str | pd.Series) -> None:
        """Set rows aside; the first reason found stays."""
        rows = np.asarray(which) & self.frame["reason"].isna().to_numpy()
        self.frame.loc[rows, "reason"] = reason
        self.frame.loc[rows, "detail"] = detail[rows] if isinstance(detail, pd.Series) else detail

    def blocks(self, sizes: list[int] | None = None) -> Iterator[pa.Table]:
        """Cut the plan into Arrow tables, of the given sizes or of about equal ones."""
        total = len(self.frame)
        sizes = sizes or [ROWS_PER_BLOCK] * (total // ROWS_PER_BLOCK) + [total % ROWS_PER_BLOCK]
        start = 0
        for size in sizes:
            if size:
                yield self._block(slice(start, start + size))
            start += size

    def _block(self, part: slice) -> pa.Table:
        votes = list_cells(self.votes[part])
        table = pa.Table.from_pandas(self.frame.iloc[part], schema=_PLAN_SCHEMA, preserve_index=False)
        return table.append_column("votes", votes)


def _fault_of_id(text: str | None) -> str:
    if text is None or pd.isna(text):
        return "the id is empty"
    rounded = "e" in text.lower() or "." in text
    cause = "went through a floating-point column, which rounds it" if rounded else "is no 64-bit integer"
    return f"the id {text!r} {cause}"


_PLAN_SCHEMA = pa.schema(
    [("row", pa.int64()), ("id_text", pa.string()), ("galaxy_id", pa.int64()), ("ra", pa.float64())]
    + [("dec", pa.float64()), ("classifications", pa.int32())]
    + [(name, pa.string()) for name in ("label", "item", "reason", "detail")]
)


def plan_gz2(catalogue: Catalogue, mapping: Catalogue | None, source: ImageSource, statistic: str) -> Plan:
    """Plan the ingest of Galaxy Zoo 2 as it is published.

    Parameters
    ----------
    catalogue : Catalogue
        The vote table: ``dr7objid`` (or ``objid``), 37 ``*_<statistic>`` columns and
        ``total_classifications``; ``ra``, ``dec`` and ``gz2class`` (or ``gz2_class``), kept as the
        label, where it has them.
    mapping : Catalogue or None
        ``objid``, ``asset_id``; None where the vote table has ``asset_id``.
    source : ImageSource
        Its files are listed, not read.
    statistic : str
        See `galray.data.tables.gz2_votes`.

    Raises
    ------
    MissingColumnError
    """
    id_column = catalogue.table[catalogue.first_of(["dr7objid", "objid"])]
    catalogue.require(["total_classifications", *vote_columns(statistic)])
    votes, problems = gz2_votes(catalogue, statistic)
    plan = Plan.of(catalogue.row, as_text(id_column), *as_ids(id_column))
    plan.votes[:] = votes
    bad_fraction = np.array([problem is not None for problem in problems], dtype=bool)
    plan.reject(bad_fraction, "fraction_out_of_range", pd.Series(problems, dtype=object))
    _take_columns(plan.frame, catalogue)
    stems = _image_stems(plan, catalogue, mapping)
    plan.reject(stems.isna(), "unmapped_galaxy", "the filename mapping has no asset_id for this galaxy")
    orphans = _match_images(plan, stems, source)
    return _append(plan, [orphans, _malformed(catalogue)])


def plan_images(mapping: Catalogue | None, source: ImageSource) -> Plan:
    """Plan the ingest of images of which neither votes nor labels are known.

    Parameters
    ----------
    mapping : Catalogue or None
        ``objid`` (or ``dr7objid``, ``galaxy_id``) and ``asset_id``, an image's name without its ending;
        ``ra`` and ``dec`` where it has them. None: a file's name is its id where it is a whole number, and
        its id is a hash of the name where not.
    source : ImageSource
        Its files are listed, not read.

    Raises
    ------
    MissingColumnError
    """
    if mapping is None:
        return _plan_listed(sorted(source.names()))
    id_column = mapping.table[mapping.first_of(["objid", "dr7objid", "galaxy_id"])]
    mapping.require(["asset_id"])
    plan = Plan.of(mapping.row, as_text(id_column), *as_ids(id_column))
    _take_positions(plan.frame, mapping)
    stems = pd.Series(as_text(mapping.table["asset_id"]).to_pylist(), dtype=object)
    plan.reject(stems.isna(), "unmapped_galaxy", "the row names no image")
    orphans = _match_images(plan, stems, source)
    return _append(plan, [orphans, _malformed(mapping)])


def _plan_listed(names: list[str]) -> Plan:
    stems = [PurePosixPath(name).stem for name in names]
    texts = pa.chunked_array([pa.array(stems, pa.string())])
    ids, numbers = as_ids(texts)
    hashed = [int(fingerprint(stem), 16) >> 1 for stem in stems]  # below zero are synthetic galaxies
    ids = np.where(numbers, ids, np.array(hashed, np.int64))
    plan = Plan.of(np.arange(1, len(names) + 1), texts, ids, np.ones(len(ids), bool))
    plan.frame["item"] = names
    plan.reject(
        np.array([climbs_out(name) for name in names], bool), "unsafe_path", "it climbs out of its folder"
    )
    return plan


def _take_positions(frame: pd.DataFrame, catalogue: Catalogue) -> None:
    for name in ("ra", "dec"):
        if name in catalogue.table.column_names:
            frame[name] = as_floats(catalogue.table[name])[0]


def _take_columns(frame: pd.DataFrame, catalogue: Catalogue) -> None:
    _take_positions(frame, catalogue)
    for name in ("gz2class", "gz2_class"):
        if name in catalogue.table.column_names:
            frame["label"] = as_text(catalogue.table[name]).to_pylist()
    count, _ = as_floats(catalogue.table["total_classifications"])
    frame["classifications"] = pd.array(np.where(np.isfinite(count), count, -1).astype(np.int32)).astype(
        "Int32"
    )
    frame.loc[frame["classifications"] < 0, "classifications"] = pd.NA


def _image_stems(plan: Plan, catalogue: Catalogue, mapping: Catalogue | None) -> pd.Series:
    """Return each galaxy's asset id as text; None where it has none."""
    table = mapping or catalogue
    table.require(["asset_id"])
    assets, known = as_ids(table.table["asset_id"])
    stems = [str(asset) if ok else None for asset, ok in zip(assets.tolist(), known, strict=True)]
    if mapping is None:
        return pd.Series(stems, dtype=object)
    objids, trusted = as_ids(mapping.table[mapping.first_of(["objid", "dr7objid"])])
    usable = np.flatnonzero(trusted & known)[::-1]  # backwards, so that the first row of an id keeps it
    by_id = {objids[row].item(): stems[row] for row in usable}
    return pd.Series([by_id.get(galaxy_id) for galaxy_id in plan.frame["galaxy_id"]], dtype=object)


def _match_images(plan: Plan, stems: pd.Series, source: ImageSource) -> pd.DataFrame:
    """Give each row its image's name; return the images that no row names, as rejects.

    Where several files have the name, the first takes it; one that climbs out of its folder comes last.
    """
    names = sorted(source.names(), key=lambda name: (climbs_out(name), name))
    by_stem = {PurePosixPath(name).stem: name for name in reversed(names)}
    found = pd.Series([by_stem.get(stem) for stem in stems], dtype=object)
    plan.frame["item"] = found
    absent = pd.Series([f"no file {stem}.jpg or .png among the images" for stem in stems], dtype=object)
    plan.reject(found.isna() & stems.notna(), "missing_image", absent)
    taken = set(found.dropna())
    left = [name for name in names if name not in taken]
    return pd.DataFrame([_orphan(name) for name in left], columns=["item", "reason", "detail"])


def _orphan(name: str) -> tuple[str, str, str]:
    if climbs_out(name):
        return name, "unsafe_path", "the archive entry climbs out of its folder, and no row needs it"
    return name, "image_without_row", "no usable row of the table names it"


def _malformed(catalogue: Catalogue) -> pd.DataFrame:
    rows = pd.DataFrame(list(catalogue.malformed), columns=["row", "detail"])
    return rows.assign(reason="malformed_row", item=catalogue.where)


def _append(plan: Plan, extra: list[pd.DataFrame]) -> Plan:
    """Add rejects that are no row of the catalogue."""
    columns = plan.frame.columns
    filled = [frame.reindex(columns=columns).assign(galaxy_id=0) for frame in extra if len(frame)]
    frame = pd.concat([plan.frame.astype(object), *(f.astype(object) for f in filled)], ignore_index=True)
    frame = frame.where(frame.notna(), None)
    missing = np.full((len(frame) - len(plan.votes), N_ANSWERS), np.nan, dtype=np.float32)
    return Plan(frame, np.concatenate([plan.votes, missing]))


def plan_labelled(source: ParquetSource) -> Iterator[pa.Table]:
    """Plan the ingest of Parquet files with ``galaxy_id``, ``label`` and ``image``.

    Yields one block for each row group, so that workers read it once; here only ids and labels are
    read. Where an id repeats, in whatever file, the first row keeps it.

    Raises
    ------
    MissingColumnError
    InputError
        Where there is no Parquet file.
    """
    parts: list[pa.Table] = []
    for name in source.files():
        file = source.open(name)
        where = f"{source.location.uri}/{name}".rstrip("/")
        Catalogue(where, file.schema_arrow.empty_table(), np.empty(0)).require(
            ["galaxy_id", "label", "image"]
        )
        for group in range(file.metadata.num_row_groups):
            rows = file.read_row_group(group, columns=["galaxy_id", "label"])
            parts.append(rows.append_column("item", pa.array(source.names_of(name, group, len(rows)))))
    if not parts:
        raise InputError(f"{source.location.uri} holds no Parquet file. Check --labelled.")
    table = pa.concat_tables(parts, promote_options="permissive")
    plan = Plan.of(np.arange(1, len(table) + 1), as_text(table["galaxy_id"]), *as_ids(table["galaxy_id"]))
    plan.frame["label"] = as_text(table["label"]).to_pylist()
    plan.frame["item"] = table["item"].to_pylist()
    yield from plan.blocks([len(part) for part in parts])
