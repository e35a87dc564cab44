"""What came in, row by row: every row and every image is accounted for, once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galray.core.errors import InputError, MissingColumnError
from galray.core.schema import ANSWERS, N_ANSWERS
from galray.core.storage import Location, open_location
from galray.data.plan import ROWS_PER_BLOCK, plan_gz2, plan_images, plan_labelled
from galray.data.sources import ParquetSource
from galray.data.tables import Catalogue

FIRST_ID = 587722981736906879


@dataclass
class Listing:
    """Images by name alone: a plan reads none."""

    listed: Sequence[str]
    location: Location = field(default_factory=lambda: open_location("images"))

    def names(self) -> Iterator[str]:
        return iter(self.listed)

    def read(self, names):
        raise AssertionError(f"a plan must not read {names}")


def catalogue(columns, where="votes.csv", malformed=()):
    table = pa.table(columns)
    return Catalogue(where, table, np.arange(1, len(table) + 1), malformed)


def votes(ids, **changes):
    fractions = {f"{answer.column}_fraction": np.full(len(ids), 0.5) for answer in ANSWERS}
    return {"dr7objid": ids, "total_classifications": [40] * len(ids), **fractions, **changes}


def mapping(ids, assets):
    return catalogue({"objid": ids, "asset_id": assets}, "mapping.csv")


def plan(ids, images, assets=None, malformed=(), **changes):
    assets = list(range(1, len(ids) + 1)) if assets is None else assets
    table = catalogue(votes(ids, **changes), malformed=malformed)
    return plan_gz2(table, mapping(ids, assets), Listing(images), "fraction").frame


def outcome(frame):
    return [row["reason"] or row["item"] for row in frame.to_dict("records")]


IDS = [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2]


def test_images_alone_are_called_by_their_ids_or_by_a_hash_of_their_names():
    names = ["b/J0013+0042.jpg", "a/5877.jpg", "c/5877.png", "../6.jpg", "notes.txt"]
    found = {row["item"]: row for row in plan_images(None, Listing(names)).frame.to_dict("records")}
    reasons = {item: row["reason"] for item, row in found.items() if row["reason"]}
    assert reasons == {"c/5877.png": "duplicate_id", "../6.jpg": "unsafe_path"}
    assert found["a/5877.jpg"]["galaxy_id"] == 5877
    named = found["b/J0013+0042.jpg"]
    assert named["id_text"] == "J0013+0042"
    assert named["galaxy_id"] == plan_images(None, Listing(["J0013+0042.png"])).frame["galaxy_id"].item() > 0
    assert len(plan_images(None, Listing([])).frame) == 0


def test_images_with_a_mapping_have_its_ids_and_positions():
    rows = {
        "objid": [*IDS, 9],
        "asset_id": ["x", "y", "z", None],
        "ra": [1.0, 2, 3, 4],
        "dec": [5.0, 6, 7, 8],
    }
    found = plan_images(catalogue(rows, "mapping.csv"), Listing(["y.jpg", "x.jpg", "w.jpg"]))
    assert outcome(found.frame) == ["x.jpg", "y.jpg", "missing_image", "unmapped_galaxy", "image_without_row"]
    assert found.frame["ra"].tolist()[:2] == [1, 2]
    assert found.frame["galaxy_id"].tolist()[:2] == IDS[:2]
    assert found.frame["label"].tolist() == [None] * 5
    assert np.isnan(found.votes).all()
    with pytest.raises(MissingColumnError, match="asset_id"):
        plan_images(catalogue({"objid": IDS}), Listing([]))


def test_each_row_gets_its_image():
    frame = plan(IDS, ["2.jpg", "b/3.png", "1.jpg"])
    assert outcome(frame) == ["1.jpg", "2.jpg", "b/3.png"]
    assert frame["galaxy_id"].tolist() == IDS
    assert frame["row"].tolist() == [1, 2, 3]


def test_neighbouring_ids_beside_a_bad_one_are_no_duplicates():
    # A float64 rounds these ids to one number, and pandas makes floats of ids beside a missing one.
    ids = pa.array([str(FIRST_ID), "x", str(FIRST_ID + 1)])
    frame = plan_gz2(
        catalogue(votes(ids)),
        mapping([FIRST_ID, FIRST_ID + 1], [1, 2]),
        Listing(["1.jpg", "2.jpg"]),
        "fraction",
    ).frame
    assert outcome(frame) == ["1.jpg", "bad_id", "2.jpg"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "'x' is no 64-bit integer"),
        ("5.877e+17", "'5.877e+17' went through a floating-point column"),
        (None, "the id is empty"),
    ],
)
def test_a_bad_id_is_explained(text, said):
    table = catalogue(votes(pa.array([text], pa.string())))
    frame = plan_gz2(table, mapping(IDS, [1, 2, 3]), Listing([]), "fraction").frame
    assert frame["reason"].tolist() == ["bad_id"]
    assert said in frame["detail"].tolist()[0]


def test_the_first_of_several_rows_keeps_an_id():
    frame = plan([IDS[0], IDS[0], IDS[1]], ["1.jpg", "3.jpg"])
    assert outcome(frame) == ["1.jpg", "duplicate_id", "3.jpg"]
    assert str(IDS[0]) in frame["detail"].tolist()[1]


def test_a_row_without_an_asset_or_an_image():
    frame = plan(IDS, ["1.jpg"], assets=[1, None, 3])
    assert outcome(frame) == ["1.jpg", "unmapped_galaxy", "missing_image"]
    assert "3.jpg" in frame["detail"].tolist()[2]


def test_images_that_no_row_names():
    frame = plan(IDS[:1], ["1.jpg", "9.jpg", "README.md"])
    assert outcome(frame) == ["1.jpg", "image_without_row", "image_without_row"]
    assert frame["item"].tolist() == ["1.jpg", "9.jpg", "README.md"]


def test_a_path_that_climbs_out_never_displaces_a_good_image():
    frame = plan(IDS[:1], ["../1.jpg", "a/1.jpg"])
    assert outcome(frame) == ["a/1.jpg", "unsafe_path"]


def test_malformed_rows_are_counted():
    frame = plan(IDS[:1], ["1.jpg"], malformed=((7, "3 cells where 9 are needed"),))
    assert outcome(frame) == ["1.jpg", "malformed_row"]
    assert frame["row"].tolist() == [1, 7]


def test_fractions_out_of_range_name_their_column():
    frame = plan(IDS[:2], ["1.jpg", "2.jpg"], t03_bar_a06_bar_fraction=[0.5, 3.0])
    assert outcome(frame) == ["1.jpg", "fraction_out_of_range"]
    assert frame["detail"].tolist()[1] == "t03_bar_a06_bar_fraction is 3.0"


def test_the_table_may_have_the_asset_ids_itself():
    table = catalogue(votes(IDS, asset_id=[3, 2, 1], gz2_class=["Ei", None, "Sb"]))
    frame = plan_gz2(table, None, Listing(["1.jpg", "2.jpg", "3.jpg"]), "fraction").frame
    assert outcome(frame) == ["3.jpg", "2.jpg", "1.jpg"]
    assert frame["label"].tolist() == ["Ei", None, "Sb"]


@pytest.mark.parametrize(
    ("column", "where"), [("total_classifications", "votes.csv"), ("dr7objid", "votes.csv")]
)
def test_missing_columns_name_their_table(column, where):
    columns = votes(IDS)
    del columns[column]
    with pytest.raises(MissingColumnError, match=rf"{where} lacks 1 .*{column}"):
        plan_gz2(catalogue(columns), mapping(IDS, [1, 2, 3]), Listing([]), "fraction")


def test_missing_asset_ids_name_the_mapping():
    table = catalogue({"objid": IDS, "assetid": [1, 2, 3]}, "mapping.csv")
    with pytest.raises(
        MissingColumnError, match=r"mapping\.csv lacks 1 .*'asset_id' \(did you mean 'assetid'"
    ):
        plan_gz2(catalogue(votes(IDS)), table, Listing([]), "fraction")


def test_blocks_hold_every_row_once():
    ids = [FIRST_ID + i for i in range(2 * ROWS_PER_BLOCK + 3)]
    table, listing = catalogue(votes(ids)), Listing(["5.jpg", "stray.jpg"])
    blocks = list(plan_gz2(table, mapping(ids, list(range(len(ids)))), listing, "fraction").blocks())
    assert [len(block) for block in blocks] == [ROWS_PER_BLOCK, ROWS_PER_BLOCK, 4]
    whole = pa.concat_tables(blocks)
    assert whole["galaxy_id"].to_pylist() == [*ids, 0]
    assert whole["votes"].type == pa.list_(pa.float32(), N_ANSWERS)
    assert whole["votes"][5].as_py() == [0.5] * N_ANSWERS
    assert whole["classifications"][5].as_py() == 40


@pytest.fixture
def labelled(tmp_path):
    def write(*parts):
        for i, columns in enumerate(parts):
            pq.write_table(pa.table(columns), tmp_path / f"{i}.parquet", row_group_size=2)
        return ParquetSource(open_location(str(tmp_path)))

    return write


def test_labelled_rows_by_row_group(labelled):
    source = labelled(
        {"galaxy_id": IDS, "label": ["a", "b", None], "image": [b"1"] * 3},
        {"galaxy_id": [IDS[2]], "label": ["c"], "image": [b"1"]},
    )
    blocks = list(plan_labelled(source))
    assert [len(block) for block in blocks] == [2, 1, 1]
    whole = pa.concat_tables(blocks)
    assert whole["item"].to_pylist() == list(source.names())
    assert whole["label"].to_pylist() == ["a", "b", None, "c"]
    assert whole["reason"].to_pylist() == [None, None, None, "duplicate_id"]


def test_labelled_columns_are_needed(labelled):
    with pytest.raises(MissingColumnError, match=r"0\.parquet lacks 1 .*'label' \(did you mean 'labels'"):
        list(plan_labelled(labelled({"galaxy_id": IDS, "labels": ["a"] * 3, "image": [b"1"] * 3})))


def test_a_folder_without_parquet(tmp_path):
    with pytest.raises(InputError, match="holds no Parquet file"):
        list(plan_labelled(ParquetSource(open_location(str(tmp_path)))))
