"""Rare-object definitions: the grammar, Kleene's logic, and what NaN means in which row."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from galray.classifier.targets import (
    DUST_LANE_EARLY_TYPE,
    MORPHOLOGY,
    NAMES,
    TARGETS,
    Target,
    find_target,
    morphology,
    truth,
    truths,
)
from galray.core.errors import ConfigError, MissingColumnError
from galray.core.schema import ANSWER_INDEX, ANSWERS, LABEL_ANSWERS, N_ANSWERS, votes_of_label

REAL_DATA = Path(os.environ.get("GALRAY_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))


def galaxies(rows: list[dict]) -> pa.Table:
    """Make a table of galaxies from named votes, ``classifications``, ``label`` and ``source``."""
    votes = np.full((len(rows), N_ANSWERS), np.nan, dtype=np.float32)
    for row, fields in zip(votes, rows, strict=True):
        for name in ANSWER_INDEX.keys() & fields.keys():
            row[ANSWER_INDEX[name]] = fields[name]
    return pa.table(
        {
            "votes": pa.FixedSizeListArray.from_arrays(pa.array(votes.ravel()), N_ANSWERS),
            "classifications": pa.array([r.get("classifications") for r in rows], pa.int32()),
            "label": pa.array([r.get("label") for r in rows], pa.string()),
            "source": pa.array([r.get("source", "real") for r in rows], pa.string()),
        }
    )


def counted(**votes) -> dict:
    return {"classifications": 40, "smooth": 0.8, "features_or_disk": 0.2, "star_or_artifact": 0.0, **votes}


LANE = {"odd": 0.5, "not_odd": 0.5, "dust_lane": 0.9}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (counted(**LANE), 1),
        (counted(**LANE, smooth=0.3, features_or_disk=0.7), 0),
        (counted(**LANE | {"odd": 0.05, "not_odd": 0.95, "dust_lane": 1.0}), 0),  # two of 40 said odd
        (counted(**LANE | {"classifications": None}), -1),  # the guard cannot be checked
        (counted(**LANE | {"classifications": None, "smooth": 0.1}), 0),  # and need not be
        (counted(), 0),  # nobody was asked about odd features: nobody saw a lane
        (counted(odd=np.nan, not_odd=0.4, dust_lane=0.9), -1),  # half a question is damage, not "not asked"
        ({"classifications": 40}, -1),  # counted, but the votes are missing
        ({}, -1),
        ({"label": "in_between_smooth"}, -1),  # smooth, and no more is known
        ({"label": "spiral"}, 0),  # not smooth, whatever else
        ({"label": "dust_lane_early_type"}, 1),
        ({"label": "not_dust_lane_early_type"}, 0),
        ({"label": "no such class"}, -1),
        (counted(label="dust_lane_early_type"), 1),  # a label wins over votes
        ({"source": "synthetic", "smooth": 1.0, "odd": 1.0, "dust_lane": 1.0}, 1),  # stated, not counted
        ({"source": "synthetic", "smooth": 1.0, "odd": 0.1, "dust_lane": 1.0}, 0),
        ({"source": "synthetic", "smooth": 1.0}, -1),  # left open to the denoiser
        ({"source": "synthetic", "smooth": 0.0}, 0),
    ],
)
def test_dust_lane_early_type(row, expected):
    assert truth(galaxies([row]), DUST_LANE_EARLY_TYPE).tolist() == [expected]


def test_votes_alone_decide_a_labelled_galaxy_that_was_counted():
    row = counted(**LANE, label="spiral")  # the label names another class, the votes say dust lane
    assert truth(galaxies([row]), DUST_LANE_EARLY_TYPE).tolist() == [1]


def test_absent_columns_read_as_null():
    table = galaxies([counted(**LANE), {"smooth": 0.0}]).select(["votes"])
    assert truth(table, DUST_LANE_EARLY_TYPE).tolist() == [-1, 0]
    with pytest.raises(MissingColumnError, match="votes"):
        truth(table.rename_columns(["vote"]), DUST_LANE_EARLY_TYPE)


def test_sliced_and_chunked_tables_keep_their_rows():
    table = galaxies([counted(), counted(**LANE), {"label": "spiral"}, {}])
    assert truth(table.slice(1, 2), DUST_LANE_EARLY_TYPE).tolist() == [1, 0]
    twice = pa.concat_tables([table.slice(1, 2), table])
    assert truth(twice, DUST_LANE_EARLY_TYPE).tolist() == [1, 0, 0, 1, 0, -1]


def test_empty_table():
    assert truths(galaxies([]), tuple(TARGETS.values())).shape == (0, 3)
    assert morphology(galaxies([])).shape == (0,)


def test_kleene_tables_against_every_completion():
    """An expression is decided exactly where all completions of the unknowns agree."""
    text = "(smooth >= 0.5 and not ring >= 0.5) or (dust_lane >= 0.5 and smooth < 0.5)"
    target = Target("x", text)
    values = [0.0, 1.0, np.nan]
    frame = pd.DataFrame(
        [(s, r, d) for s in values for r in values for d in values], columns=["smooth", "ring", "dust_lane"]
    )
    for row, decided in zip(frame.itertuples(index=False), target.evaluate(frame), strict=True):
        options = [[v] if v == v else [0.0, 1.0] for v in row]
        outcomes = {
            (s >= 0.5 and not r >= 0.5) or (d >= 0.5 and s < 0.5)
            for s in options[0]
            for r in options[1]
            for d in options[2]
        }
        if decided != -1:
            assert outcomes == {bool(decided)}
        if not np.isnan(row[0]):  # with `smooth` known each unknown occurs once, and Kleene is exact
            assert (decided == -1) == (len(outcomes) == 2)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("-smooth < -0.5", 1),
        ("0.5 * 2 - 0.1 <= smooth", 1),
        ("0.5 <= smooth <= 0.8", 0),
        ("not smooth >= 0.5 or ring / 2 > 0.3", 1),
        ("smooth + ring > 1.7 and (classifications > 10 or smooth < 0)", 0),
    ],
)
def test_grammar(expression, value):
    frame = pd.DataFrame({name: [0.9] for name in NAMES}).assign(ring=0.8)
    frame["classifications"] = 5.0
    assert Target("x", expression).evaluate(frame).tolist() == [value]


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true') > 0",
        "smooth.__class__ > 0",
        "smooth.values > 0",
        "@smooth > 0",
        "smooth[0] > 0",
        "abs(smooth) > 0",
        "smooth > 9 ** 9 ** 9",
        "smooth > 'a'",
        "smooth > True",
        "smooth > 1j",
        "smooth == 0.5",
        "(lambda: smooth)() > 0",
        "[smooth] > 0",
        "smooth > 0 if ring > 0 else ring > 1",
        "(x := smooth) > 0",
        "smooth > 0; ring > 0",
        "smooth > 0\nring > 0",
        "smooth > 0 & ring > 0",
        "smooth",
        "not smooth",
        "smooth > 0.5 and ring",
        "(smooth > 0.5) + 1 > 0",
        "(smooth > 0.5) > 0",
        "1 > 0",
        "smooth > 1 / 0",
        "",
        "smooth >",
        "(" * 3000 + "smooth > 0" + ")" * 3000,
        "smooth > " + "-" * 20000 + "1",
    ],
)
def test_all_else_is_refused(expression):
    with pytest.raises(ConfigError, match="target 'x'"):
        Target("x", expression)


def test_unknown_vote_is_met_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no vote 'dustlane' \(did you mean 'dust_lane'"):
        Target("x", "dustlane > 0.5")


@pytest.mark.parametrize("name", ["Ring", "two words", "", "1st"])
def test_name_must_be_an_identifier(name):
    with pytest.raises(ConfigError, match="identifier"):
        Target(name, "ring > 0.5")


def test_find_target():
    assert find_target("ring") is TARGETS["ring"]
    assert find_target("mine = ring>=0.5") == Target("mine", "ring>=0.5")
    with pytest.raises(ConfigError, match=r"did you mean 'merger'"):
        find_target("mergers")
    with pytest.raises(ConfigError, match="identifier"):
        find_target("smooth >= 0.5")


def test_morphology_of_every_plain_label():
    names = [target.name for target in MORPHOLOGY]
    table = galaxies([{"label": name} for name in [*names, "star", None]])
    assert morphology(table).tolist() == [0, 1, 2, 3, 4, -1, -1]


@pytest.mark.parametrize("name", [target.name for target in MORPHOLOGY])
def test_definition_and_label_agree(name):
    """The votes that a class label implies meet that class's own definition, and no other's."""
    votes = {k: float(v) for k, v in zip(ANSWER_INDEX, votes_of_label(name), strict=True)}
    index = [target.name for target in MORPHOLOGY].index(name)
    assert morphology(galaxies([{"classifications": 40, **votes}])).tolist() == [index]


def test_morphology_from_votes():
    rows = [
        counted(completely_round=0.6, in_between=0.4, cigar_shaped=0.0),
        counted(completely_round=0.5, in_between=0.5, cigar_shaped=0.0),  # two classes: none
        counted(completely_round=0.4, in_between=0.4, cigar_shaped=0.2),  # none
        counted(smooth=0.468, features_or_disk=0.532, cigar_shaped=1.0),  # just not smooth enough
        counted(label="spiral", cigar_shaped=0.9),  # the label wins
    ]
    assert morphology(galaxies(rows)).tolist() == [0, -1, -1, -1, 4]


def test_built_in_targets_need_eight_odd_votes():
    for target in TARGETS.values():
        answer = "dust_lane" if target is DUST_LANE_EARLY_TYPE else target.name
        few = counted(odd=0.1, not_odd=0.9, **{answer: 1.0})
        many = counted(odd=0.2, not_odd=0.8, **{answer: 1.0})
        assert truth(galaxies([few, many]), target).tolist() == [0, 1]


def test_dust_lane_label_is_a_label_of_the_tree():
    assert DUST_LANE_EARLY_TYPE.name in LABEL_ANSWERS


@pytest.mark.skipif(not (REAL_DATA / "gz2").is_dir(), reason=f"no real Galaxy Zoo 2 votes in {REAL_DATA}")
def test_real_votes_that_the_guard_refuses():
    """Seven real galaxies have smooth and dust-lane fractions of a half; six rest on four votes or fewer."""
    table = pd.read_csv(REAL_DATA / "gz2" / "votes.csv")
    columns = {answer.name: table[f"{answer.column}_weighted_fraction"] for answer in ANSWERS}
    frame = pd.DataFrame(columns).assign(classifications=table["total_classifications"])
    bare = Target("bare", "smooth >= 0.5 and dust_lane >= 0.5")
    assert (bare.evaluate(frame) == 1).sum() == 7
    assert (DUST_LANE_EARLY_TYPE.evaluate(frame) == 1).sum() == 1
