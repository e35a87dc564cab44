import json

import numpy as np
import pyarrow as pa
import pytest

from galray.core.errors import InputError, MissingColumnError
from galray.core.schema import (
    GALAXY_SCHEMA,
    GRADE_SCHEMA,
    GRADES,
    REJECT_REASONS,
    REJECT_SCHEMA,
    SPLITS,
    split_of,
)
from galray.scan.candidates import tables
from galray.scan.vetting import GRADED_SCHEMA, consensus, labelled_galaxies, merge, purity, read_grades

FIRST_ID = 587722981736906879
HEADER = "galaxy_id,grade,grader,graded_utc\n"


def read(text: str | bytes) -> list[dict]:
    data = text if isinstance(text, bytes) else text.encode()
    return read_grades(data, "grades.csv").to_pylist()


def grades_of(*rows: tuple[int, str, str]) -> pa.Table:
    named = [{"galaxy_id": FIRST_ID + i, "grade": grade, "grader": who} for i, grade, who in rows]
    return pa.Table.from_pylist(named, schema=GRADE_SCHEMA)


def test_read_grades_keeps_ids_exact():
    assert read(f"{HEADER}{FIRST_ID},A,Ann,2026-01-31T12:00:00.123Z\n") == [
        {"galaxy_id": FIRST_ID, "grade": "A", "grader": "Ann", "graded_utc": "2026-01-31T12:00:00.123Z"}
    ]


def test_read_grades_takes_what_editors_do_to_a_file():
    text = '\ufeffGrade, Galaxy_ID ,note,grader\r\n\r\na,1,"x, y","Núñez, A."\r\nREJECT,2,,B\r\n,,,\r\n'
    rows = read(text)
    assert [(row["galaxy_id"], row["grade"], row["grader"]) for row in rows] == [
        (1, "A", "Núñez, A."),
        (2, "reject", "B"),
    ]
    assert {row["graded_utc"] for row in rows} == {None}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5.877e17,A,Ann,", r"line 3: galaxy_id '5\.877e17'.*round long ids"),
        ("1.0,A,Ann,", r"line 3: galaxy_id '1\.0'"),
        ("9223372036854775808,A,Ann,", "line 3: galaxy_id"),
        ("1_0,A,Ann,", "line 3: galaxy_id"),
        (",A,Ann,", "line 3: galaxy_id ''"),
        ("2,D,Ann,", "line 3: grade 'D' is none of A, B, C, reject"),
        ("2", "line 3: grade ''"),
        ("2,A, ,", "line 3: the grader is missing"),
        ("2,A,Ann,yesterday", "line 3: graded_utc 'yesterday'"),
    ],
)
def test_read_grades_names_the_line_and_the_remedy(line, message):
    with pytest.raises(InputError, match=r"^grades\.csv, " + message):
        read(f"{HEADER}1,A,Ann,\n{line}\n")


def test_read_grades_names_missing_columns_and_the_nearest():
    with pytest.raises(MissingColumnError, match=r"grades\.csv.*'galaxy_id' \(did you mean 'galaxyid'"):
        read("galaxyid,grade,grader\n1,A,Ann\n")
    with pytest.raises(MissingColumnError):
        read("")


@pytest.mark.parametrize("data", ["grader,José".encode("latin-1"), HEADER.encode("utf-16")])
def test_read_grades_refuses_other_encodings(data):
    with pytest.raises(InputError, match=r"grades\.csv is not a CSV file in UTF-8"):
        read(data)


def test_the_last_grade_of_a_grader_wins_by_time_then_by_line():
    rows = read(
        f"{HEADER}1,A,Ann,2026-01-02T00:00:00Z\n1,B,Ann,2026-01-01T00:00:00Z\n1,C,Bob,\n1,reject,Bob,\n"
        "2,A,Ann,2026-01-01T10:00:00\n2,B,Ann,2026-01-01T10:30:00+01:00\n"
    )
    assert {(row["galaxy_id"], row["grader"]): row["grade"] for row in rows} == {
        (1, "Ann"): "A",
        (1, "Bob"): "reject",
        (2, "Ann"): "A",  # 10:30 in a zone an hour ahead is 09:30 UTC
    }
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", None),
        ("A", "A"),
        ("AAB", "A"),
        ("AB", "B"),
        ("ABC", "C"),
        ("AABB", "B"),
        ("AAX", "A"),
        ("AX", "reject"),
    ],
)
def test_consensus_is_the_majority_and_ties_go_to_the_worse(given, expected):
    names = dict(zip("ABCX", GRADES, strict=True))
    assert consensus(names[letter] for letter in given) == expected


def test_merge_grades_every_candidate_and_rejects_the_others(candidates):
    graded, rejects = merge(
        candidates, grades_of((0, "A", "Ann"), (0, "B", "Bob"), (3, "reject", "Ann"), (99, "A", "Ann"))
    )
    assert graded.schema.equals(GRADED_SCHEMA)
    assert graded["galaxy_id"].equals(candidates["galaxy_id"])
    assert graded["grade"].to_pylist() == ["B", None, None, "reject", None]
    assert graded["n_graders"].to_pylist() == [2, 0, 0, 1, 0]
    assert json.loads(graded["grades"][0].as_py()) == {"Ann": "A", "Bob": "B"}
    assert rejects.schema.equals(REJECT_SCHEMA)
    assert rejects["id_text"].to_pylist() == [str(FIRST_ID + 99)]
    assert set(rejects["reason"].to_pylist()) == {"grade_without_candidate"} <= set(REJECT_REASONS)


def test_the_graded_catalogue_is_written_as_the_candidates_are(candidates):
    graded, _ = merge(candidates, grades_of((0, "A", "Ann")))
    assert b"the graders' majority" in tables(graded)["fits"]


def test_purity_counts_a_and_b_among_the_graded(candidates):
    graded, _ = merge(candidates, grades_of((0, "A", "x"), (1, "B", "x"), (2, "C", "x"), (3, "reject", "x")))
    rate = purity(graded)
    assert (rate.count, rate.total, rate.value) == (2, 4, 0.5)
    # Wilson's score interval at 95% for 2 of 4, by hand: (p + z²/2n ± z√(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    assert (rate.low, rate.high) == pytest.approx((0.1500, 0.8500), abs=1e-4)


def test_purity_of_nothing_graded_is_unknown(candidates):
    rate = purity(merge(candidates, grades_of())[0])
    assert (rate.total, rate.low, rate.high) == (0, 0.0, 1.0)


def of_random_arm(graded: pa.Table) -> pa.Table:
    place, drawn = graded.column_names.index("random_arm"), pa.array([True] * len(graded))
    return graded.set_column(place, graded.schema.field("random_arm"), drawn)


def test_labelled_galaxies_go_back_into_training(candidates):
    graded, _ = merge(
        candidates,
        grades_of(
            (0, "A", "Ann"), (1, "C", "Ann"), (2, "A", "Ann"), (4, "reject", "Ann"), (4, "reject", "Bob")
        ),
    )
    galaxies, counts = labelled_galaxies(of_random_arm(graded), "dust_lane_early_type", survey="mock")
    assert galaxies.schema.equals(GALAXY_SCHEMA)
    assert counts == {
        "confirmed": 1,
        "refuted": 1,
        "would_judge": 0,
        "unclear": 1,
        "ungraded": 1,
        "without_image": 1,
    }
    assert sum(counts.values()) == candidates.num_rows
    first, second = galaxies.to_pylist()
    assert (first["galaxy_id"], first["label"]) == (FIRST_ID, "dust_lane_early_type")
    assert (second["galaxy_id"], second["label"]) == (FIRST_ID + 4, "not_dust_lane_early_type")
    assert (second["height"], second["width"]) == (32, 48)
    assert json.loads(second["provenance"])["graded"] == {"Ann": "reject", "Bob": "reject"}
    assert all(vote != vote for vote in first["votes"])
    assert {first["split"], second["split"]} <= set(SPLITS)
    assert (first["survey"], first["source"]) == ("mock", "real")


def test_what_its_score_chose_may_teach_and_not_judge(candidates):
    """Unless it was drawn regardless of its score; whose split would have it judge follows from its id."""
    first = next(i for i in range(100) if split_of(np.array([FIRST_ID + i]))[0] == "validation")
    ids = pa.array([FIRST_ID + first] + [FIRST_ID + 1000 + i for i in range(4)])
    place = candidates.column_names.index("galaxy_id")
    moved = candidates.set_column(place, candidates.schema.field("galaxy_id"), ids)
    teaches = next(i for i in range(1, 5) if split_of(ids.to_numpy())[i] == "train" and i != 2)
    graded, _ = merge(moved, grades_of((first, "A", "Ann"), (1000 + teaches - 1, "A", "Ann")))
    galaxies, counts = labelled_galaxies(graded, "ring", survey="mock")
    assert galaxies["galaxy_id"].to_pylist() == [ids[teaches].as_py()]
    assert (counts["confirmed"], counts["would_judge"]) == (1, 1)
    galaxies, counts = labelled_galaxies(of_random_arm(graded), "ring", survey="mock")
    assert galaxies["split"].to_pylist() == ["validation", "train"]
    assert (counts["confirmed"], counts["would_judge"]) == (2, 0)


def test_of_nothing_decided_nothing_can_be_learnt(candidates):
    graded, _ = merge(candidates, grades_of((0, "C", "Ann")))
    galaxies, counts = labelled_galaxies(graded, "ring", survey="mock")
    assert len(galaxies) == 0
    assert galaxies.schema == GALAXY_SCHEMA
    assert counts["unclear"] == 1
