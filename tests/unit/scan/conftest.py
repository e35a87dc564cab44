"""Scored sources to rank, show and grade."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from galray.core.schema import SCORE_SCHEMA
from galray.scan.candidates import select

FIRST_ID = 587722981736906879  # an SDSS id; a float64 rounds it to another galaxy's


def jpeg(width: int = 64, height: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 80, 70)).save(buffer, "JPEG")
    return buffer.getvalue()


def score_row(i: int, score: float, **changes: Any) -> dict[str, Any]:
    row = {
        "galaxy_id": FIRST_ID + i,
        "ra": 150.0 + i,
        "dec": 2.0,
        "tile": f"tile-{i}.fits",
        "score": score,
        "early_type": 0.5,
        "flags": 0,
        "radius_arcsec": 4.5,
        "magnitude": 16.25,
        "random_arm": False,
        "image": jpeg(),
    }
    return row | changes


def score_table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCORE_SCHEMA)


@pytest.fixture
def scored() -> Callable[..., pa.Table]:
    """Return a function: ``(i, score, {changes}), ...`` -> a table of scores."""
    return lambda *rows: score_table(*(score_row(i, score, **changes) for i, score, changes in rows))


@pytest.fixture
def candidates() -> pa.Table:
    """Return five candidates with every oddity: no position, no cutout, flags, hard strings."""
    rows = (
        score_row(0, 0.95, flags=3),
        score_row(1, 0.90, ra=None, dec=None),
        score_row(2, 0.85, image=None),
        score_row(3, 0.80, tile='Ångström, "5″"'),
        score_row(4, 0.75, tile=None, early_type=None, image=jpeg(48, 32)),
    )
    return select(score_table(*rows), threshold=0.5, count=None, train_prevalence=0.5, survey_prevalence=None)
