"""The decision tree and the tables' words; the split of a galaxy never changes."""

import numpy as np
import pytest

from galray.core.schema import (
    ANSWER_INDEX,
    ANSWERS,
    DECISION_TREE,
    LABEL_ANSWERS,
    N_ANSWERS,
    QUESTION_INDEX,
    QUESTION_OF_ANSWER,
    REJECT_REASONS,
    SPLITS,
    fingerprint,
    split_of,
    votes_of_label,
)

FIRST_ID = 587722981736906879
# Pinned: were these to change, galaxies of the test set would leak into training.
PINNED = {
    FIRST_ID: "train train train train test train test test train train",
    100_008: "train",
    0: "validation",
    -1: "validation",
}


def test_the_tree_has_the_published_shape():
    assert [len(question.answers) for question in DECISION_TREE] == [3, 2, 2, 2, 4, 2, 3, 7, 3, 3, 6]
    assert len(ANSWERS) == N_ANSWERS == 37
    assert len({answer.name for answer in ANSWERS}) == len({a.column for a in ANSWERS}) == 37
    assert ANSWERS[ANSWER_INDEX["dust_lane"]].column == "t08_odd_feature_a38_dust_lane"


def test_every_answer_leads_to_a_question_or_ends():
    assert {answer.leads_to for answer in ANSWERS} <= {None, *QUESTION_INDEX}
    reached = {answer.leads_to for answer in ANSWERS} | {"smooth_or_features"}
    assert set(QUESTION_INDEX) <= reached


def test_answers_know_their_question():
    for question, q in QUESTION_INDEX.items():
        names = [answer.name for answer in DECISION_TREE[q].answers]
        assert [QUESTION_OF_ANSWER[ANSWER_INDEX[name]] for name in names] == [q] * len(names), question


def test_splits_are_pinned():
    for first, splits in PINNED.items():
        expected = splits.split()
        assert split_of(first + np.arange(len(expected))).tolist() == expected


def test_a_split_depends_on_nothing_but_the_id():
    ids = FIRST_ID + np.arange(1000)
    alone = np.concatenate([split_of(ids[i : i + 1]) for i in range(0, 1000, 100)])
    assert (alone == split_of(ids)[::100]).all()


@pytest.mark.parametrize("ids", [FIRST_ID + np.arange(50_000), np.arange(50_000), -np.arange(1, 50_001)])
def test_splits_have_their_shares(ids):
    shares = [np.mean(split_of(ids) == name) for name in SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.006)  # 4 standard deviations of 50,000 draws


def test_a_label_says_what_it_implies_and_no_more():
    votes = votes_of_label("edge_on")
    assert votes[ANSWER_INDEX["edge_on"]] == votes[ANSWER_INDEX["features_or_disk"]] == 1
    assert votes[ANSWER_INDEX["smooth"]] == votes[ANSWER_INDEX["not_edge_on"]] == 0
    assert np.isnan(votes[QUESTION_INDEX["odd"] == QUESTION_OF_ANSWER]).all()


@pytest.mark.parametrize(
    ("label", "known"),
    [
        ("completely_round_smooth", {"smooth_or_features": "1 0 0", "rounded": "1 0 0"}),
        ("in_between_smooth", {"smooth_or_features": "1 0 0", "rounded": "0 1 0"}),
        ("cigar_shaped_smooth", {"smooth_or_features": "1 0 0", "rounded": "0 0 1"}),
        ("edge_on", {"smooth_or_features": "0 1 0", "edge_on": "1 0"}),
        ("spiral", {"smooth_or_features": "0 1 0", "edge_on": "0 1", "spiral": "1 0"}),
    ],
)
def test_the_five_classes_settle_their_questions_and_leave_the_rest_open(label, known):
    votes = votes_of_label(label)
    for question, q in QUESTION_INDEX.items():
        found = votes[q == QUESTION_OF_ANSWER]
        if question in known:
            assert found.tolist() == [float(vote) for vote in known[question].split()]
        else:
            assert np.isnan(found).all()


@pytest.mark.parametrize("label", LABEL_ANSWERS)
def test_a_labels_questions_sum_to_one(label):
    votes = votes_of_label(label)
    for q in set(QUESTION_OF_ANSWER[~np.isnan(votes)]):
        assert votes[q == QUESTION_OF_ANSWER].sum() == 1


@pytest.mark.parametrize("label", [None, "Sc?t", ""])
def test_an_unknown_label_says_nothing(label):
    assert np.isnan(votes_of_label(label)).all()


def test_reasons_are_words_with_a_meaning():
    assert all(reason.isidentifier() and len(meaning) > 15 for reason, meaning in REJECT_REASONS.items())


def test_fingerprints_are_stable():
    assert fingerprint("galaxy") == "eba4ae33f54ae0f9"
