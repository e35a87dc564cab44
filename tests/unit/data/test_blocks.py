"""Catalogues in blocks: every row once, in exact types, however the file is cut."""

import gzip
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from galray.core.errors import InputError
from galray.core.storage import open_location
from galray.data.blocks import column_names, parts, read_blocks
from galray.data.expressions import Expression
from galray.data.tables import as_ids

BIG_ID = 587722981736906879
N = 1000
REAL = Path(os.environ.get("GALRAY_REAL_DATA", "../shared/data"))
needs_real_data = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"no real data at {REAL}: set GALRAY_REAL_DATA"
)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    return Table(
        {
            "ObjID": BIG_ID + np.arange(N),
            "ra": rng.uniform(0, 360, N),
            "TYPE": np.array(["PSF", "DEV ", ""])[np.arange(N) % 3],
            "mag": rng.uniform(14, 20, (N, 5)).astype(np.float32),
            "unsigned": np.arange(N, dtype=np.uint32),
            "count": MaskedColumn(np.arange(N), mask=np.arange(N) % 7 == 0),
        }
    )


def written(table, folder, name):
    path = folder / name
    if ".fits" in name:
        table.write(path)
    else:
        plain = table[["ObjID", "ra", "TYPE"]]
        text = "\n".join(["ObjID,ra,TYPE", *(f"{i},{ra!r},{kind}" for i, ra, kind in plain.iterrows())])
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return open_location(str(path))


def rows_of(location, columns, rows_per_part=N, rows_per_block=N):
    blocks = [
        b for part in parts(location, rows_per_part) for b in read_blocks(part, columns, rows_per_block)
    ]
    return pa.concat_tables(blocks, promote_options="default")


@pytest.mark.parametrize(("rows_per_part", "rows_per_block"), [(N, N), (333, 100), (250, 7), (99, 10**6)])
def test_fits_rows_are_read_once_however_they_are_cut(table, tmp_path, rows_per_part, rows_per_block):
    location = written(table, tmp_path, "t.fits")
    read = rows_of(location, ["objid", "ra", "type", "mag"], rows_per_part, rows_per_block)
    assert read["row_"].to_pylist() == list(range(1, N + 1))
    assert read["objid"].to_pylist() == table["ObjID"].tolist()
    assert read["ra"].to_pylist() == table["ra"].tolist()
    assert read["type"].to_pylist() == [{"": None}.get(kind.strip(), kind.strip()) for kind in table["TYPE"]]
    assert read["mag"].to_pylist() == table["mag"].tolist()


def test_fits_types_survive(table, tmp_path):
    read = rows_of(written(table, tmp_path, "t.fits"), ["objid", "unsigned", "count"])
    assert read["objid"].type == pa.int64()
    assert read["unsigned"].to_pylist() == list(range(N))
    assert [value is None for value in read["count"].to_pylist()] == (np.arange(N) % 7 == 0).tolist()


@pytest.mark.parametrize("name", ["t.fits.gz", "t.csv", "t.csv.gz"])
def test_what_can_only_be_read_from_its_beginning_is_one_part(table, tmp_path, name):
    location = written(table, tmp_path, name)
    assert len(parts(location, 10)) == 1
    read = rows_of(location, ["objid", "ra", "absent"], rows_per_block=64)
    ids, trusted = as_ids(read["objid"])
    assert ids.tolist() == table["ObjID"].tolist()
    assert trusted.all()
    assert column_names(location)[:2] == ["objid", "ra"]
    assert "absent" not in read.column_names


def test_a_block_holds_no_more_than_it_should(table, tmp_path):
    location = written(table, tmp_path, "t.fits.gz")
    blocks = list(read_blocks(parts(location)[0], ["ra"], 300))
    assert [len(block) for block in blocks] == [300, 300, 300, 100]


def test_csv_is_text_so_that_no_late_cell_breaks_it(tmp_path):
    lines = ["\ufeffid,x", *(f"{i},0.5" for i in range(200_000)), "200000,many", "1", "7,7,7"]
    (tmp_path / "t.csv").write_text("\r\n".join(lines), encoding="utf-8")
    read = rows_of(open_location(str(tmp_path / "t.csv")), ["id", "x"])
    assert len(read) == 200_003
    assert read["x"].to_pylist()[200_000] == "many"
    malformed = [text for text in read["malformed_"].to_pylist() if text]
    assert sorted(malformed) == ["1 cells where 2 are needed: 1", "3 cells where 2 are needed: 7,7,7"]


def test_damaged_files_are_named(table, tmp_path):
    whole = Path(written(table, tmp_path, "t.fits").path).read_bytes()
    cases = {
        "short.fits": (whole[:20000], "ends after|damaged"),
        "none.fits": (b"", "damaged"),
        "image.fits": (b"", "no plain binary table"),
        "text.fits": (b"<html>" * 3000, "damaged|no plain"),
        "cut.csv.gz": (gzip.compress(b"a,b\n" + b"1,2\n" * 9999)[:-30], "damaged"),
        "none.csv": (b"", "damaged"),
        "t.docx": (b"PK", "give a catalogue that ends in"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        if name == "image.fits":
            fits.PrimaryHDU(np.ones((4, 4))).writeto(tmp_path / name, overwrite=True)
        location = open_location(str(tmp_path / name))
        with pytest.raises(InputError, match=message):
            rows_of(location, ["a", "objid", "ra"])


@needs_real_data
def test_the_real_sdss_photoobj_table():
    location = open_location(
        str(REAL / "fits/sdss_003900-6-0269_photoObj_uframe/photoObj-003900-6-0269.fits")
    )
    read = rows_of(location, ["objid", "ra", "dec", "objc_type", "petromag"], 100, 37)
    reference = Table.read(location.path, 1, unit_parse_strict="silent")
    assert len(read) == len(reference) == 981
    ids, trusted = as_ids(read["objid"])
    assert trusted.all()
    assert ids.tolist() == [int(i) for i in reference["OBJID"]]
    assert read["ra"].to_pylist() == reference["RA"].tolist()
    bright = Expression("objc_type == 3 and petromag[2] > 0 and petromag[2] < 20").holds(read)
    magnitude = np.asarray(reference["PETROMAG"])[:, 2]
    assert bright.tolist() == ((reference["OBJC_TYPE"] == 3) & (magnitude > 0) & (magnitude < 20)).tolist()


@needs_real_data
@pytest.mark.parametrize(
    "name", ["sweep-310m005-320p000", "sweep-330m005-340p000", "tractor-3301m002", "tractor-3303p000"]
)
def test_the_real_legacy_survey_tables(name):
    location = open_location(str(REAL / f"fits/legacysurvey_sweeps/{name}.fits"))
    reference = Table.read(location.path, 1, unit_parse_strict="silent")
    read = rows_of(location, [n.lower() for n in reference.colnames])
    assert read.column_names == [*(n.lower() for n in reference.colnames), "row_"]
    assert read["type"].to_pylist() == [str(kind).strip() for kind in reference["TYPE"]]
    assert read["flux_r"].to_pylist() == reference["FLUX_R"].tolist()
