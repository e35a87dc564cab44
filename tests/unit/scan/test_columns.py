"""Catalogues of many dialects become sources; every row is a source, a reject or counted."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from galray.core.errors import ConfigError, MissingColumnError
from galray.core.storage import open_location
from galray.data.blocks import column_names, parts, read_blocks
from galray.data.expressions import Expression
from galray.scan.columns import SOURCE_SCHEMA, Columns, ReadColumns

REAL = Path(os.environ.get("GALRAY_REAL_DATA", "../shared/data"))
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no real data at {REAL}: set GALRAY_REAL_DATA"
)
BIG_ID = 587722981736906879


def sources(table, columns=None, wanted=None):
    meanings = (columns or Columns()).found_in(table.column_names, "cat")
    return ReadColumns(meanings, Expression(wanted) if wanted else None)(table)


@pytest.mark.parametrize(
    ("table", "galaxy_id"),
    [
        ({"galaxy_id": [5], "objid": [6]}, 5),
        ({"objid": [BIG_ID]}, BIG_ID),
        ({"dr7objid": [str(BIG_ID)], "asset_id": [3]}, BIG_ID),
        ({"release": [8000], "brickid": [330248], "objid": [15]}, (8000 << 40) | (330248 << 16) | 15),
    ],
)
def test_ids_of_the_surveys_that_are_known(table, galaxy_id):
    found = sources(pa.table({**table, "ra": [1.0], "dec": ["2.5"]}))
    assert found.schema == SOURCE_SCHEMA
    assert found.select(["galaxy_id", "ra", "dec", "tile"]).to_pylist() == [
        {"galaxy_id": galaxy_id, "ra": 1.0, "dec": 2.5, "tile": None}
    ]


def test_radius_and_magnitude_are_kept_where_they_are_known():
    photo = pa.FixedSizeListArray.from_arrays(pa.array([20.0, 18.0, 17.0, 16.5, 16.2]), 5)
    found = sources(
        pa.table({"objid": [1], "ra": [1.0], "dec": [1.0], "petromag": photo, "petroth90": photo})
    )
    assert found.select(["radius_arcsec", "magnitude"]).to_pylist() == [
        {"radius_arcsec": 17.0, "magnitude": 17.0}
    ]
    tractor = {"release": [1], "brickid": [1], "objid": [1], "ra": [1.0], "dec": [1.0], "flux_r": [100.0]}
    assert sources(pa.table(tractor))["magnitude"].to_pylist() == [17.5]


def test_columns_by_option():
    table = pa.table({"name_": [7], "alpha": [10.0], "delta": [2.0], "r_px": [4.0], "field": [12]})
    columns = Columns(galaxy_id="name_", ra="Alpha", dec="delta", radius_arcsec="0.4 * r_px", tile="field")
    row = sources(table, columns).to_pylist()[0]
    assert (row["galaxy_id"], row["ra"], row["dec"], row["tile"]) == (7, 10.0, 2.0, "12")
    assert row["radius_arcsec"] == pytest.approx(1.6)


def test_columns_that_are_not_there_are_named():
    with pytest.raises(MissingColumnError, match=r"'dec' \(did you mean 'decl'"):
        Columns().found_in(["objid", "ra", "decl"], "cat.csv")
    with pytest.raises(MissingColumnError, match="'alpha'"):
        Columns(ra="alpha").found_in(["objid", "ra", "dec"], "cat.csv")
    with pytest.raises(ConfigError):
        Columns(ra="alpha +")


def test_rows_in_are_sources_and_rejects_and_those_not_selected():
    """However a catalogue is cut into blocks."""
    rng = np.random.default_rng(1)
    n = 500
    ids = [None if i % 50 == 3 else BIG_ID + i for i in range(n)]
    malformed = [None if i % 90 else "2 cells where 3 are needed: 1,2" for i in range(n)]
    table = pa.table(
        {"objid": ids, "ra": rng.uniform(0, 360, n), "dec": rng.uniform(-90, 90, n), "malformed_": malformed}
    )
    for rows_per_block in (1, 37, n):
        blocks = [
            sources(table.slice(i, rows_per_block), wanted="dec > 0") for i in range(0, n, rows_per_block)
        ]
        rows = pa.concat_tables(blocks).to_pylist()
        by_reason = {
            reason: [r for r in rows if r["reason"] == reason] for reason in {r["reason"] for r in rows}
        }
        left_out = len(by_reason["not_selected"])
        assert left_out > 100
        assert len(by_reason["malformed_row"]) == 6
        assert all(row["dec"] > 0 for row in by_reason[None] + by_reason["bad_id"])
        assert len(by_reason[None]) + len(by_reason["bad_id"]) + left_out + 6 == n


@needs_real_data
@pytest.mark.parametrize(
    ("name", "wanted", "expected"),
    [
        ("legacysurvey_sweeps/tractor-3301m002.fits", "type != 'PSF'", 5),
        ("legacysurvey_sweeps/sweep-310m005-320p000.fits", "type != 'PSF'", 2),
        ("sdss_003900-6-0269_photoObj_uframe/photoObj-003900-6-0269.fits", "petromag[2] > 0", 949),
    ],
)
def test_real_catalogues_are_understood_without_options(name, wanted, expected):
    location = open_location(str(REAL / "fits" / name))
    read = ReadColumns(Columns().found_in(column_names(location), name), Expression(wanted))
    blocks = [block for part in parts(location) for block in read_blocks(part, read.names)]
    found = pa.concat_tables(map(read, blocks))
    good = found.filter(found["reason"].is_null())
    assert len(set(good["galaxy_id"].to_pylist())) == len(good) == expected
    assert good["magnitude"].null_count < len(good)
    assert (np.abs(good["dec"].to_numpy()) <= 90).all()
