"""Grades: read, merged into a graded catalogue, and handed back as labels for training."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from galray.core.errors import InputError, MissingColumnError
from galray.core.intervals import Rate
from galray.core.schema import (
    CANDIDATE_SCHEMA,
    GALAXY_SCHEMA,
    GRADE_SCHEMA,
    GRADES,
    N_ANSWERS,
    REJECT_SCHEMA,
    split_of,
)

CONFIRMED = ("A", "B")
FATES = ("confirmed", "refuted", "would_judge", "unclear", "ungraded", "without_image")

GRADED_SCHEMA = pa.schema(
    [
        *(field for field in CANDIDATE_SCHEMA if field.name != "image"),
        pa.field(
            "grade", pa.string(), metadata={"description": "the graders' majority; ties go to the worse"}
        ),
        pa.field(
            "n_graders", pa.int32(), nullable=False, metadata={"description": "how many graded the candidate"}
        ),
        pa.field(
            "grades", pa.string(), nullable=False, metadata={"description": "JSON: each grader's grade"}
        ),
        CANDIDATE_SCHEMA.field("image"),
    ]
)

_ID = re.compile(r"[+-]?[0-9]{1,19}")
_GRADE_OF = {name.casefold(): name for name in GRADES}
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def read_grades(data: bytes, where: str) -> pa.Table:
    """Read a CSV of grades, as the candidate page exports it or a person has edited it.

    Parameters
    ----------
    data : bytes
        UTF-8, with or without a byte order mark, any line ends. Columns ``galaxy_id``, ``grade``
        and ``grader``, and ``graded_utc`` if known, in any order and case; others are ignored.
    where : str
        The file, as the user named it.

    Returns
    -------
    pyarrow.Table
        `galray.core.schema.GRADE_SCHEMA`: one row for each galaxy and grader, the one given last
        by ``graded_utc``, or by its line where the times are equal or missing.

    Raises
    ------
    MissingColumnError
        If a column is missing.
    InputError
        If the file is not UTF-8 CSV, or a line has no valid id, grade, grader or time.
    """
    lines = _lines(data, where)
    header = [name.strip().casefold() for name in next(lines, (0, []))[1]]
    missing = [field.name for field in GRADE_SCHEMA if not field.nullable and field.name not in header]
    if missing:
        raise MissingColumnError(where, missing, header)
    rows = [_grade(dict(zip(header, cells, strict=False)), f"{where}, line {n}") for n, cells in lines]
    return pa.Table.from_pylist(_latest(rows), schema=GRADE_SCHEMA)


def merge(candidates: pa.Table, grades: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Join candidates and grades into the graded catalogue.

    Parameters
    ----------
    candidates : pyarrow.Table
        `galray.core.schema.CANDIDATE_SCHEMA`.
    grades : pyarrow.Table
        `galray.core.schema.GRADE_SCHEMA`, one row for each galaxy and grader.

    Returns
    -------
    graded : pyarrow.Table
        `GRADED_SCHEMA`, one row a candidate in their order; ``grade`` is null where nobody graded.
    rejects : pyarrow.Table
        `galray.core.schema.REJECT_SCHEMA`: the grades of galaxies that are no candidates.
    """
    known = np.isin(grades["galaxy_id"].to_numpy(), candidates["galaxy_id"].to_numpy())
    by_galaxy: dict[int, dict[str, str]] = defaultdict(dict)
    for row in grades.filter(pa.array(known)).to_pylist():
        by_galaxy[row["galaxy_id"]][row["grader"]] = row["grade"]
    given = [by_galaxy.get(galaxy_id, {}) for galaxy_id in candidates["galaxy_id"].to_pylist()]
    columns: dict[str, Any] = {
        **{name: candidates[name] for name in candidates.column_names},
        "grade": pa.array(map(consensus, (g.values() for g in given)), pa.string()),
        "n_graders": pa.array(map(len, given), pa.int32()),
        "grades": pa.array(json.dumps(g, sort_keys=True, ensure_ascii=False) for g in given),
    }
    graded = pa.table([columns[name] for name in GRADED_SCHEMA.names], schema=GRADED_SCHEMA)
    return graded, _strangers(grades.filter(pa.array(~known)))


def consensus(grades: Iterable[str]) -> str | None:
    """Return the grade given most often, the worse where several are; None where there is none."""
    counts = Counter(grades)
    return max(counts, key=lambda grade: (counts[grade], GRADES.index(grade)), default=None)


def purity(graded: pa.Table) -> Rate:
    """Return the share of A and B among the graded candidates; the random arm alone is none of them."""
    grades = graded.filter(graded["rank"].is_valid())["grade"].drop_null().to_pylist()
    return Rate(sum(grade in CONFIRMED for grade in grades), len(grades))


def labelled_galaxies(
    graded: pa.Table, target_name: str, *, survey: str, source: str = "real"
) -> tuple[pa.Table, dict[str, int]]:
    """Return confirmed and refuted candidates as labelled galaxies for the next training.

    Parameters
    ----------
    graded : pyarrow.Table
        `GRADED_SCHEMA`, with cutouts.
    target_name : str
        The label of what was looked for. Grades A and B get it, rejects get ``not_<target_name>``.
    survey, source : str
        As in `galray.core.schema.GALAXY_SCHEMA`.

    Returns
    -------
    galaxies : pyarrow.Table
        `galray.core.schema.GALAXY_SCHEMA`; all votes are NaN, the provenance names the graders.
    counts : dict of str to int
        What became of every row: ``confirmed``, ``refuted``; and left out, ``would_judge``,
        ``unclear`` (grade C), ``ungraded`` and ``without_image``.

    Notes
    -----
    A candidate that its score chose may teach, but not judge: among validation and test galaxies it would
    feign a survey in which what the classifier confuses is common. One of the random arm may do both.
    """
    rows = graded.to_pylist()
    fates = list(map(_fate, rows))
    labels = {"confirmed": target_name, "refuted": f"not_{target_name}"}
    galaxies = [
        _labelled(row, labels[fate], survey, source)
        for row, fate in zip(rows, fates, strict=True)
        if fate in labels
    ]
    return pa.Table.from_pylist(galaxies, schema=GALAXY_SCHEMA), {name: fates.count(name) for name in FATES}


def _lines(data: bytes, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the CSV's rows that hold anything, each with the number of its last line."""
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{where} is not a CSV file in UTF-8 ({error}). Export the grades from the page again."
        ) from error


def _grade(row: Mapping[str, str], where: str) -> dict[str, Any]:
    return {
        "galaxy_id": _galaxy_id(row.get("galaxy_id", ""), where),
        "grade": _known_grade(row.get("grade", ""), where),
        "grader": _grader(row.get("grader", ""), where),
        "graded_utc": _time(row.get("graded_utc", ""), where),
    }


def _galaxy_id(text: str, where: str) -> int:
    if _ID.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    raise InputError(
        f"{where}: galaxy_id {text!r} is not a whole number of 64 bits. Spreadsheets round long ids: "
        "take the file as the page exported it, and edit it as plain text."
    )


def _known_grade(text: str, where: str) -> str:
    if text.casefold() not in _GRADE_OF:
        raise InputError(f"{where}: grade {text!r} is none of {', '.join(GRADES)}. Write one of these.")
    return _GRADE_OF[text.casefold()]


def _grader(text: str, where: str) -> str:
    if not text:
        raise InputError(f"{where}: the grader is missing. Write who gave this grade.")
    return text


def _time(text: str, where: str) -> str | None:
    try:
        return text if text and _moment(text) else None
    except ValueError as error:
        raise InputError(
            f"{where}: graded_utc {text!r} is not a time such as 2026-01-31T12:00:00Z. "
            "Mend it, or leave it empty."
        ) from error


def _moment(text: str | None) -> datetime:
    """Return a time to order by; times without a zone are UTC, a missing one precedes all."""
    if not text:
        return _LONG_AGO
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _latest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep each grader's last grade of each galaxy."""
    in_time = sorted(rows, key=lambda row: _moment(row["graded_utc"]))
    return list({(row["galaxy_id"], row["grader"]): row for row in in_time}.values())


def _strangers(grades: pa.Table) -> pa.Table:
    rejects = [
        {
            "id_text": str(row["galaxy_id"]),
            "item": f"grade by {row['grader']}",
            "reason": "grade_without_candidate",
            "detail": f"{row['grader']} graded {row['galaxy_id']} {row['grade']}, "
            "which is not in this candidate list",
        }
        for row in grades.to_pylist()
    ]
    return pa.Table.from_pylist(rejects, schema=REJECT_SCHEMA)


def _fate(row: Mapping[str, Any]) -> str:
    if row["grade"] is None:
        return "ungraded"
    if row["grade"] == "C":
        return "unclear"
    if row["image"] is None:
        return "without_image"
    if _split(row) != "train" and not row["random_arm"]:
        return "would_judge"
    return "confirmed" if row["grade"] in CONFIRMED else "refuted"


def _split(row: Mapping[str, Any]) -> str:
    return str(split_of(np.array([row["galaxy_id"]]))[0])


def _labelled(row: Mapping[str, Any], label: str, survey: str, source: str) -> dict[str, Any]:
    with Image.open(io.BytesIO(row["image"])) as image:  # reads the header only
        width, height = image.size
    provenance = {
        "graded": json.loads(row["grades"]),
        "consensus": row["grade"],
        "score": row["score"],
        "tile": row["tile"],
    }
    return {
        **{name: row[name] for name in ("galaxy_id", "ra", "dec", "image")},
        "survey": survey,
        "votes": np.full(N_ANSWERS, np.nan, dtype=np.float32),
        "label": label,
        "height": height,
        "width": width,
        "split": _split(row),
        "source": source,
        "provenance": json.dumps(provenance, sort_keys=True, ensure_ascii=False),
    }
