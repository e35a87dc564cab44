"""Catalogues in every form astronomers publish, and the ways in which they come damaged."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from astropy.table import Table

from galray.core.errors import InputError, MissingColumnError
from galray.core.schema import ANSWER_INDEX, ANSWERS, QUESTION_INDEX, QUESTION_OF_ANSWER
from galray.core.storage import open_location
from galray.data.tables import Catalogue, as_floats, as_ids, gz2_votes, mask_unasked, read_catalogue

BIG_ID = 587722981736906879  # needs 60 bits; a float64 keeps 53
ROWS = [{"ObjID": BIG_ID + i, "ra": 10.5 + i, "name": f"NGC {i}"} for i in range(3)]


def read(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    return read_catalogue(open_location(str(tmp_path / name)))


def column(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


FORMS = {
    "t.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "t.csv.gz": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "t.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
    "t.fits": lambda path: Table(rows=ROWS).write(path),
    "t.fits.gz": lambda path: Table(rows=ROWS).write(path),
    "T.VOT": lambda path: Table(rows=ROWS).write(path, format="votable"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_reads_alike(tmp_path, name):
    FORMS[name](tmp_path / name)
    catalogue = read_catalogue(open_location(str(tmp_path / name)))
    assert catalogue.table.column_names == ["objid", "ra", "name"]
    ids, trusted = as_ids(catalogue.table["objid"])
    assert ids.tolist() == [BIG_ID, BIG_ID + 1, BIG_ID + 2]
    assert trusted.all()
    assert as_floats(catalogue.table["ra"])[0].tolist() == [10.5, 11.5, 12.5]
    assert catalogue.table["name"].to_pylist() == ["NGC 0", "NGC 1", "NGC 2"]
    assert catalogue.row.tolist() == [1, 2, 3]


def test_csv_as_windows_and_spreadsheets_write_it(tmp_path):
    data = "\ufeff objid ,ra,note\r\n" + f'{BIG_ID},-999,"a, b"\r\n,NaN,\r\n'
    table = read(tmp_path, "t.csv", data.encode()).table
    assert table.column_names == ["objid", "ra", "note"]
    assert table.to_pylist() == [
        {"objid": str(BIG_ID), "ra": None, "note": "a, b"},
        {"objid": None, "ra": None, "note": None},
    ]


def test_rows_with_other_cells_are_set_aside_and_numbers_stay(tmp_path):
    catalogue = read(tmp_path, "t.csv", b"objid,ra\n1,1\n2\n3,3\n4,4,4\n5,5\n")
    assert catalogue.table["objid"].to_pylist() == ["1", "3", "5"]
    assert catalogue.row.tolist() == [1, 3, 5]
    assert catalogue.malformed == (
        (2, "1 cells where 2 are needed"),
        (4, "3 cells where 2 are needed"),
    )


def test_one_bad_cell_far_down_does_not_cost_the_table(tmp_path):
    lines = [f"{i},0.5" for i in range(200_000)]
    lines[150_000] = "150000,many"
    table = read(tmp_path, "t.csv", ("objid,x\n" + "\n".join(lines)).encode()).table
    values, legible = as_floats(table["x"])
    assert np.flatnonzero(~legible).tolist() == [150_000]
    assert np.nansum(values) == pytest.approx(0.5 * 199_999)


def test_joined_gzip_files_are_read_to_the_end(tmp_path):
    data = gzip.compress(b"objid\n1\n") + gzip.compress(b"2\n")
    assert read(tmp_path, "t.csv.gz", data).table["objid"].to_pylist() == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", b""),
        ("t.csv", b"\xff\xfe\x00a,b\n"),
        ("t.csv.gz", gzip.compress(b"objid\n" + b"1\n" * 999, mtime=0)[:-12]),
        ("t.csv.gz", b"\x1f\x8bnot gzip"),
        ("t.parquet", b"PAR1 and nothing"),
        ("t.fits", b"SIMPLE  =                    T"),
        ("t.fits", b""),
        ("t.vot", b"<VOTABLE><nonsense"),
        ("t.xml", b""),
    ],
)
def test_damaged_tables_are_named(tmp_path, name, data):
    with pytest.raises(InputError, match=rf"{name} is damaged.*Fetch it again"):
        read(tmp_path, name, data)


def test_unknown_forms_are_told_the_known(tmp_path):
    with pytest.raises(InputError, match=r"t\.docx: give a table that ends in \.csv"):
        read(tmp_path, "t.docx", b"PK")


def test_columns_are_asked_for_by_name():
    catalogue = Catalogue("votes.csv", pa.table({"dr7_objid": [1], "ra": [1.0]}), np.array([1]))
    catalogue.require(["ra"])
    assert catalogue.first_of(["objid", "ra"]) == "ra"
    with pytest.raises(
        MissingColumnError, match=r"votes\.csv lacks 1 .*'dr7objid' \(did you mean 'dr7_objid'"
    ):
        catalogue.require(["dr7objid", "ra"])
    with pytest.raises(MissingColumnError, match="'dr7objid or objid'"):
        catalogue.first_of(["dr7objid", "objid"])


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([BIG_ID, None, -999], pa.int64(), [BIG_ID, None, None]),
        ([2**63, 5], pa.uint64(), [None, 5]),
        ([7, 8], pa.int32(), [7, 8]),
        ([123.0, float(BIG_ID), 1.5, np.nan, np.inf, -999.0], pa.float64(), [123, *[None] * 5]),
        ([2.0**53 - 1, 2.0**53], pa.float64(), [2**53 - 1, None]),
        ([2.0**24 - 1, 2.0**24, 1.0], pa.float32(), [2**24 - 1, None, 1]),
        ([str(BIG_ID), f" {BIG_ID} ", "+5"], pa.string(), [BIG_ID, BIG_ID, 5]),
        (["130549.0", "130549.", f"{BIG_ID}.0", "1.5"], pa.string(), [130549, 130549, None, None]),
        (["", None, "abc", "12x", "5.8e17", "0x10", "1_000"], pa.string(), [None] * 7),
        ([str(2**63 - 1), str(2**63), "9" * 40, "-999"], pa.string(), [2**63 - 1, None, None, None]),
        ([b"42", None], pa.binary(), [42, None]),
        ([None, None], pa.null(), [None, None]),
    ],
)
def test_ids_are_exact_or_not_trusted(values, kind, expected):
    ids, trusted = as_ids(column(values, kind))
    assert ids.dtype == np.int64
    assert [int(i) if ok else None for i, ok in zip(ids, trusted, strict=True)] == expected
    assert not ids[~trusted].any()


@pytest.mark.parametrize(
    ("values", "kind", "expected", "illegible"),
    [
        ([0.5, None, -999.0], pa.float64(), [0.5, None, None], []),
        ([1, -999], pa.int32(), [1.0, None], []),
        (["0.5", "-999", "", None, "NA", "many"], pa.string(), [0.5, *[None] * 5], [5]),
        ([None], pa.null(), [None], []),
    ],
)
def test_numbers_missing_values_and_what_is_neither(values, kind, expected, illegible):
    numbers, legible = as_floats(column(values, kind))
    assert [None if np.isnan(v) else v for v in numbers] == expected
    assert np.flatnonzero(~legible).tolist() == illegible


def votes_table(**changes):
    columns = {f"{answer.column}_debiased": [0.25, 0.25] for answer in ANSWERS} | changes
    return Catalogue("v", pa.table(columns), np.array([1, 2]))


def test_votes_are_in_the_order_of_the_tree():
    table = votes_table(t08_odd_feature_a38_dust_lane_debiased=[0.75, 0.5])
    votes, problems = gz2_votes(table, "debiased")
    assert votes.dtype == np.float32
    assert votes[:, ANSWER_INDEX["dust_lane"]].tolist() == [0.75, 0.5]
    assert problems == [None, None]


@pytest.mark.parametrize("bad", [1.01, -0.01, np.inf])
def test_fractions_outside_their_range_are_named(bad):
    _, problems = gz2_votes(votes_table(t03_bar_a06_bar_debiased=[0.5, bad]), "debiased")
    assert problems == [None, f"t03_bar_a06_bar_debiased is {bad!r}"]


def test_missing_vote_columns_are_named():
    with pytest.raises(MissingColumnError, match="37 needed"):
        gz2_votes(votes_table(), "weighted_fraction")


def test_questions_that_nobody_was_asked_are_unknown():
    votes = np.zeros((1, 37), dtype=np.float32)
    votes[0, ANSWER_INDEX["smooth"]] = 1
    masked = mask_unasked(votes)
    asked = QUESTION_INDEX["smooth_or_features"] == QUESTION_OF_ANSWER
    assert masked[0, asked].tolist() == [1, 0, 0]
    assert np.isnan(masked[0, ~asked]).all()
