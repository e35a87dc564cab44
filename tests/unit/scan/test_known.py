"""Known objects: what is near, and which are found again."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from galray.core.errors import EmptyInputError, MissingColumnError
from galray.core.storage import open_location
from galray.scan.columns import Columns
from galray.scan.known import MATCHED, KnownObjects, MatchKnown, nearest_sources

REAL = Path(os.environ.get("GALRAY_REAL_DATA", "../shared/data"))
TEXT_COLUMNS = Columns(galaxy_id="col1", ra="col2", dec="col3")
LIST = KnownObjects(("a", "b"), np.array([359.9999, 10.0]), np.array([0.0, 80.0]))


def test_the_nearest_is_on_the_sphere():
    index, separation = LIST.nearest(np.array([0.0001, 10.001, np.nan]), np.array([0.0, 80.0, 0.0]))
    assert index.tolist() == [0, 1, -1]
    assert separation[:2] == pytest.approx([0.72, 3.6 * np.cos(np.radians(80))], rel=1e-3)
    assert np.isnan(separation[2])


def test_sources_within_the_radius_are_matched_and_the_nearest_kept():
    scores = pa.table(
        {"galaxy_id": [1, 2, 3, 4], "ra": [0.0001, 359.9999, 10.0, None], "dec": [0.0, 0.0003, 81.0, 1.0]}
    ).append_column("score", pa.array([0.2, 0.9, 0.8, 0.1], pa.float32()))
    matched = MatchKnown(LIST, 2.0)(scores)
    assert matched.schema == MATCHED
    assert matched["galaxy_id"].to_pylist() == [1, 2]
    assert nearest_sources(matched)["galaxy_id"].to_pylist() == [1]
    assert len(nearest_sources(matched.slice(0, 0))) == 0


def test_a_text_table_below_its_header(tmp_path):
    path = tmp_path / "known.txt"
    path.write_text(
        "-----\nA list of objects\n---\n\n587722982300516593  233.79 -0.66\n5877 208.4 -999.0\n\n"
    )
    known = KnownObjects.read(open_location(str(path)), TEXT_COLUMNS)
    assert (known.name, known.ra_deg.tolist()) == (("587722982300516593",), [233.79])
    with pytest.raises(MissingColumnError, match="--columns"):
        KnownObjects.read(open_location(str(path)), Columns())
    with pytest.raises(EmptyInputError, match="no row with a position"):
        KnownObjects.read(open_location(str(path)), Columns(galaxy_id="col1", ra="col2", dec="col1"))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}: set GALRAY_REAL_DATA")
def test_the_dust_lane_spheroids_of_kaviraj_2012():
    place = open_location(str(REAL / "dustlane/kaviraj2012/Basic_Information.txt"))
    known = KnownObjects.read(place, TEXT_COLUMNS)
    assert len(known) == 362
    assert known.name[0] == "587722982300516593"
    index, separation = known.nearest(known.ra_deg, known.dec_deg)
    assert index.tolist() == list(range(362))
    assert separation.max() < 1e-6
