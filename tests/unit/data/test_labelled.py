"""Labels that are hidden, and models that have known them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from galray.core.errors import InputError, LineageError, MissingColumnError
from galray.core.manifest import Manifest, ancestry, publish, write_parquet
from galray.core.schema import N_ANSWERS
from galray.core.storage import Location, open_location
from galray.data.labelled import LABELS, Labelled
from galray.data.lineage import refuse_other_labels, trained_on

LARGE = 587722952230174996  # a float64 rounds it


def listed(path: Path, ids: list[int]) -> Location:
    path.write_text("\n".join(["galaxy_id", *map(str, ids)]) + "\n")
    return open_location(str(path))


def galaxies() -> pa.Table:
    votes = np.full((3, N_ANSWERS), 0.5, np.float32)
    return pa.table(
        {
            "galaxy_id": [1, 2, LARGE],
            "votes": pa.FixedSizeListArray.from_arrays(pa.array(votes.ravel()), N_ANSWERS),
            "classifications": pa.array([40, 41, 42], pa.int32()),
            "label": ["spiral", None, "edge_on"],
            "image": [b"a", b"b", b"c"],
        }
    )


def test_all_that_is_known_of_others_is_hidden(tmp_path: Path) -> None:
    before = galaxies()
    after = Labelled.read(listed(tmp_path / "labels.csv", [LARGE, 7])).apply(before)
    assert after.schema == before.schema
    assert after["label"].to_pylist() == [None, None, "edge_on"]
    assert after["classifications"].to_pylist() == [None, None, 42]
    known = ~np.isnan(np.array(after["votes"].to_pylist())).all(axis=1)
    assert known.tolist() == [False, False, True]
    assert after["image"] == before["image"]


def test_parquet_and_csv_hold_the_same_list(tmp_path: Path) -> None:
    pq.write_table(pa.table({"galaxy_id": [LARGE, 1, 1]}), tmp_path / "labels.parquet")
    read = Labelled.read(open_location(str(tmp_path / "labels.parquet")))
    assert read.galaxy_id.tolist() == [1, LARGE]
    assert Labelled.read(listed(tmp_path / "labels.csv", [1, LARGE])).galaxy_id.tolist() == [1, LARGE]


def test_a_list_may_give_labels_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f"galaxy_id,label\n2,edge_on\n{LARGE},\n1,ring\n1,ring\n")
    after = Labelled.read(open_location(str(path))).apply(galaxies())
    assert after.schema == galaxies().schema
    assert after["label"].to_pylist() == ["ring", "edge_on", "edge_on"]
    assert after["classifications"].to_pylist() == [None, None, 42]
    known = ~np.isnan(np.array(after["votes"].to_pylist())).all(axis=1)
    assert known.tolist() == [False, False, True]


def test_two_labels_of_one_galaxy_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("galaxy_id,label\n1,ring\n2,\n1,edge_on\n")
    with pytest.raises(InputError, match="gives galaxy 1 two labels"):
        Labelled.read(open_location(str(path)))


def published_labels(place: Location, lineage: dict) -> Labelled:
    """Publish labels that a classifier gave to galaxies 1 to 4."""
    with publish(place, LABELS) as publication:
        publication.add(write_parquet(place, "galaxies.parquet", pa.table({"galaxy_id": [1, 2, 3, 4]})))
        publication.lineage = lineage
    return Labelled.read(place / "galaxies.parquet")


def test_labels_that_a_classifier_gave_tell_no_more_than_it_knew(tmp_path: Path) -> None:
    few = Labelled.read(listed(tmp_path / "few.csv", [1, 2]))
    more = Labelled.read(listed(tmp_path / "more.csv", [1, 2, 3]))
    given = published_labels(open_location(str(tmp_path / "labels")), {"labelled": few.uri})
    place = open_location(str(tmp_path / "taught"))
    taught = model(place, given)
    assert taught[place.uri].lineage["labelled"] == few.uri
    assert given.parents.keys() <= taught.keys()  # its history is known
    for labelled in (few, more, given):
        refuse_other_labels(taught, labelled, "this classifier")
    of_more = model(open_location(str(tmp_path / "of-more")), more)
    with pytest.raises(LineageError, match="has known labels"):
        refuse_other_labels(of_more, given, "this classifier")


def test_published_labels_that_were_altered_are_refused(tmp_path: Path) -> None:
    given = published_labels(open_location(str(tmp_path / "labels")), {})
    pq.write_table(pa.table({"galaxy_id": [1, 2, 3, 4, 5]}), given.uri)
    with pytest.raises(InputError, match="not what was published"):
        Labelled.read(open_location(given.uri))


def test_labels_of_a_classifier_that_knew_all_hide_nothing(tmp_path: Path) -> None:
    given = published_labels(open_location(str(tmp_path / "labels")), {})
    assert "labelled" not in trained_on(given.parents, given)
    refuse_other_labels(model(open_location(str(tmp_path / "of-all")), None), given, "this classifier")


def test_lists_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("id\n1\n")
    with pytest.raises(MissingColumnError, match="galaxy_id"):
        Labelled.read(open_location(str(path)))
    path.write_text("galaxy_id\n1\nx\n")
    with pytest.raises(InputError, match="row 2: the galaxy_id"):
        Labelled.read(open_location(str(path)))
    with pytest.raises(InputError, match="lists no galaxy"):
        Labelled.read(listed(path, []))


def model(place: Location, labelled: Labelled | None) -> dict[str, Manifest]:
    """Publish a model that has known these labels; returns its ancestry."""
    parents = labelled.parents if labelled else {}
    with publish(place, "denoiser", parents=parents) as publication:
        publication.write("weights", "data")
        publication.lineage = trained_on(parents, labelled)
    return ancestry(place)


def test_models_that_knew_more_labels_are_refused(tmp_path: Path) -> None:
    few, more = (Labelled.read(listed(tmp_path / f"{len(ids)}.csv", ids)) for ids in ([1, 2], [1, 2, 3]))
    of_few = model(open_location(str(tmp_path / "of-few")), few)
    of_more = model(open_location(str(tmp_path / "of-more")), more)
    of_all = model(open_location(str(tmp_path / "of-all")), None)
    for known in (of_few, of_more, of_all):
        refuse_other_labels(known, None, "this classifier")
    refuse_other_labels(of_few, few, "this classifier")
    refuse_other_labels(of_few, more, "this classifier")
    for known in (of_more, of_all):
        with pytest.raises(LineageError, match=r"denoiser.* has known labels that --labelled"):
            refuse_other_labels(known, few, "this classifier")


def test_a_list_that_has_changed_breaks_the_ancestry(tmp_path: Path) -> None:
    place = open_location(str(tmp_path / "model"))
    model(place, Labelled.read(listed(tmp_path / "labels.csv", [1, 2])))
    listed(tmp_path / "labels.csv", [1, 2, 3])
    with pytest.raises(LineageError, match=r"another version of .*labels\.csv"):
        ancestry(place)
