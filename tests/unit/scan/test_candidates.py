import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from galray.core.errors import ConfigError
from galray.core.schema import CANDIDATE_SCHEMA, SCORE_SCHEMA
from galray.scan.candidates import select, tables, viewer_url
from galray.scan.known import KnownObjects

FIRST_ID = 587722981736906879
READERS = {
    "csv": {"format": "ascii.csv"},
    "ecsv": {"format": "ascii.ecsv"},
    "fits": {"format": "fits"},
    "vot": {"format": "votable"},
}
SELF_DESCRIBING = ("ecsv", "fits", "vot")


def ranked(scores, **changes):
    options = {"threshold": 0.5, "count": None, "train_prevalence": 0.5, "survey_prevalence": None}
    return select(scores, **(options | changes))


def ids(table):
    return [galaxy_id - FIRST_ID for galaxy_id in table["galaxy_id"].to_pylist()]


def test_select_ranks_the_best_first_and_breaks_ties_by_id(scored):
    table = ranked(scored((7, 0.6, {}), (3, 0.9, {}), (2, 0.9, {}), (5, 0.4, {}), (1, 0.7, {})))
    assert ids(table) == [2, 3, 1, 7]
    assert table["rank"].to_pylist() == [1, 2, 3, 4]
    assert table.schema.equals(CANDIDATE_SCHEMA, check_metadata=True)


def test_select_keeps_scores_equal_to_the_threshold_in_float32(scored):
    assert float(np.float32(0.9)) < 0.9
    assert ids(ranked(scored((0, 0.9, {})), threshold=0.9)) == [0]


def test_select_never_takes_a_score_that_is_not_a_number(scored):
    assert ids(ranked(scored((0, float("nan"), {}), (1, 0.0, {})), threshold=0.0)) == [1]


def test_select_keeps_the_best_count(scored):
    scores = scored((0, 0.6, {}), (1, 0.8, {}), (2, 0.7, {}))
    assert ids(ranked(scores, count=2)) == [1, 2]


def test_select_of_nothing_is_an_empty_table_of_candidates(scored):
    table = ranked(scored((0, 0.1, {})))
    assert table.num_rows == 0
    assert table.schema.equals(CANDIDATE_SCHEMA)
    assert set(tables(table)) == {"parquet", *READERS}


def test_probability_is_the_score_at_the_surveys_prevalence(scored):
    table = ranked(scored((0, 0.9, {})), train_prevalence=0.5, survey_prevalence=0.001)
    odds = 9 * 0.001 / 0.999
    assert table["probability"].to_pylist() == pytest.approx([odds / (1 + odds)], rel=1e-5)
    assert table["score"].to_pylist() == pytest.approx([0.9])


def test_probability_without_a_survey_prevalence_is_the_score(scored):
    table = ranked(scored((0, 0.9, {})))
    assert table["probability"].equals(table["score"])


@pytest.mark.parametrize("changes", [{"threshold": 1.1}, {"threshold": float("nan")}, {"count": 0}])
def test_select_refuses_impossible_options(scored, changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        ranked(scored((0, 0.9, {})), **changes)


def test_the_random_arm_follows_without_ranks(scored):
    drawn = {"random_arm": True}
    rows = scored((0, 0.9, {}), (1, 0.8, drawn), (2, 0.1, drawn), (3, 0.2, {}), (4, 0.3, drawn))
    table = ranked(rows, count=1)
    assert ids(table) == [0, 1, 4, 2]
    assert table["rank"].to_pylist() == [1, None, None, None]
    assert ranked(rows)["rank"].to_pylist() == [1, 2, None, None]
    assert ranked(rows)["random_arm"].to_pylist() == [False, True, True, True]


def test_known_objects_flags_and_origin_stand_in_the_table(scored):
    known = KnownObjects(("far", "near"), np.array([10.0, 150.0]), np.array([0.0, 2.0 + 1 / 3600]))
    table = ranked(
        scored((0, 0.9, {"flags": 3}), (1, 0.8, {"ra": None})), known=known, model_id="model", run_id="run"
    )
    assert table["known_object"].to_pylist() == ["near", None]
    assert table["known_separation"].to_pylist() == [pytest.approx(1.0), None]
    assert table["flag_names"].to_pylist() == ["edge bad_pixels", ""]
    assert table.select(["model_id", "run_id"]).to_pylist()[0] == {"model_id": "model", "run_id": "run"}
    assert "target=150.000000+2.000000" in table["aladin_url"][0].as_py()
    assert table["sdss_url"].to_pylist()[1] is None


def test_viewer_url_points_at_the_position_or_is_null(candidates):
    assert viewer_url(150.1, -2.5) == (
        "https://www.legacysurvey.org/viewer?ra=150.100000&dec=-2.500000&zoom=15&layer=ls-dr10"
    )
    assert viewer_url(float("nan"), 1.0) is None
    assert [url is None for url in candidates["viewer_url"].to_pylist()] == [False, True, False, False, False]


@pytest.mark.parametrize("kind", READERS)
def test_every_format_opens_in_astropy_with_exact_ids_and_nulls(candidates, kind):
    table = Table.read(io.BytesIO(tables(candidates)[kind]), **READERS[kind])
    assert table.colnames == [name for name in CANDIDATE_SCHEMA.names if name != "image"]
    assert table["galaxy_id"].dtype.newbyteorder("=") == np.int64
    assert table["galaxy_id"].tolist() == candidates["galaxy_id"].to_pylist()
    assert np.ma.getmaskarray(table["ra"]).tolist() == [False, True, False, False, False]
    assert np.asarray(table["score"]) == pytest.approx(candidates["score"].to_numpy())


@pytest.mark.parametrize("kind", SELF_DESCRIBING)
def test_units_and_descriptions_survive(candidates, kind):
    table = Table.read(io.BytesIO(tables(candidates)[kind]), **READERS[kind])
    assert table["ra"].unit == table["dec"].unit == "deg"
    for field in SCORE_SCHEMA:
        description = (field.metadata or {}).get(b"description")
        if description and field.name != "image":
            assert table[field.name].description == description.decode()


def test_fits_carries_descriptions_where_topcat_reads_them(candidates):
    header = fits.getheader(io.BytesIO(tables(candidates)["fits"]), 1)
    column = candidates.schema.names.index("ra") + 1
    assert header[f"TTYPE{column}"] == "ra"
    assert header[f"TCOMM{column}"] == "right ascension (J2000)"


def test_text_that_fits_cannot_hold_is_escaped_and_elsewhere_exact(candidates):
    files = tables(candidates)
    exact = 'Ångström, "5″"'
    for kind in ("csv", "ecsv", "vot"):
        assert Table.read(io.BytesIO(files[kind]), **READERS[kind])["tile"][3] == exact
    assert Table.read(io.BytesIO(files["fits"]), format="fits")["tile"].tolist()[3] == (
        '\\xc5ngstr\\xf6m, "5\\u2033"'
    )


def test_parquet_holds_the_cutouts_and_opens_in_astropy(candidates, tmp_path):
    path = tmp_path / "candidates.parquet"
    path.write_bytes(tables(candidates)["parquet"])
    assert pq.read_table(path).equals(candidates)
    assert pq.read_schema(path).field("ra").metadata[b"unit"] == b"deg"
    table = Table.read(path, format="parquet")
    assert table["galaxy_id"].tolist() == candidates["galaxy_id"].to_pylist()
    assert table["ra"].unit == "deg"
    assert table["ra"].description == "right ascension (J2000)"
    assert np.asarray(table["image"])[0] == candidates["image"][0].as_py()
