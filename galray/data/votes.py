"""What is known of galaxies' votes: from enough volunteers, or else from a class label."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa

from galray.core.cells import votes_array
from galray.core.schema import (
    ANSWER_INDEX,
    ANSWERS,
    DECISION_TREE,
    QUESTION_INDEX,
    QUESTION_OF_ANSWER,
    votes_of_label,
)

LEAST_VOLUNTEERS = 5
ODD_VOLUNTEERS = 8  # fewer than these who find a galaxy odd may be mistaken (Willett et al. 2013)


def condition_votes(galaxies: pa.Table) -> np.ndarray:
    """Return what is known of each galaxy's votes, from volunteers or else from its class label.

    The tree leads few volunteers to some questions, and what few say is noise: of the 612 galaxies of Stripe
    82 whose debiased dust_lane is at least 0.5, fewer than five volunteers were asked about 500. The answers
    of fewer than `LEAST_VOLUNTEERS` are therefore unknown, where it is known how many volunteers there were.

    Parameters
    ----------
    galaxies : pyarrow.Table
        With ``votes``, ``classifications`` and ``label``.

    Returns
    -------
    ndarray of float32, shape (n, 37)
        NaN where nothing is known: an unlabelled galaxy is all NaN.
    """
    votes = votes_array(galaxies).copy()
    classifications = classifications_array(galaxies)
    few = volunteers_asked(votes, classifications) < LEAST_VOLUNTEERS  # never where that is NaN
    votes[few] = np.nan
    for row in np.flatnonzero(np.isnan(votes).all(axis=1)):
        votes[row] = votes_of_label(galaxies["label"][int(row)].as_py())
    return votes


def volunteers_asked(votes: np.ndarray, classifications: np.ndarray) -> np.ndarray:
    """Return how many volunteers came to each answer's question, on their way down the tree.

    Parameters
    ----------
    votes : ndarray of float32, shape (n, 37)
        Fractions within each question; NaN where unknown, or where nobody came.
    classifications : ndarray of float32, shape (n,)
        Volunteers; NaN where unknown.

    Returns
    -------
    ndarray of float32, shape (n, 37)
        NaN where `classifications` or every way to the question is unknown.
    """

    @cache
    def asked(question: int) -> np.ndarray:
        before = [i for i, answer in enumerate(ANSWERS) if answer.leads_to == DECISION_TREE[question].name]
        if not before:  # all begin here
            return classifications
        ways = np.stack([asked(int(QUESTION_OF_ANSWER[i])) * votes[:, i] for i in before])
        return np.where(np.isnan(ways).all(axis=0), np.nan, np.nansum(ways, axis=0))

    return np.stack([asked(int(question)) for question in QUESTION_OF_ANSWER], axis=1)


def volunteers_by_question(votes: np.ndarray, classifications: np.ndarray) -> np.ndarray:
    """Return how many volunteers were asked each question.

    Parameters
    ----------
    votes, classifications
        See `volunteers_asked`.

    Returns
    -------
    ndarray of float32, shape (n, 11)
        0 where a question's answers are not all known.
    """
    first = np.searchsorted(QUESTION_OF_ANSWER, np.arange(len(DECISION_TREE)))
    asked = np.nan_to_num(volunteers_asked(votes, classifications)[:, first])
    unknown = np.logical_or.reduceat(np.isnan(votes), first, axis=1)
    return np.where(unknown, 0, asked).astype(np.float32)


def answered(galaxies: pa.Table, answers: Sequence[str]) -> np.ndarray:
    """Return whether volunteers, or else the label, gave all of these answers: bool, shape (n,).

    Each must have at least half of the votes; and, for a feature that is asked for only of odd galaxies,
    enough volunteers must have found the galaxy odd.

    Parameters
    ----------
    galaxies : pyarrow.Table
        With ``votes``, ``label`` and ``classifications``.
    answers : sequence of str
        GZ2 answers.
    """
    columns = [ANSWER_INDEX[name] for name in answers]
    votes = condition_votes(galaxies)
    found_odd = (
        np.nan_to_num(votes[:, ANSWER_INDEX["odd"]] * classifications_array(galaxies)) >= ODD_VOLUNTEERS
    )
    asked_if_odd = QUESTION_OF_ANSWER[columns] == QUESTION_INDEX["odd_feature"]
    given = (np.nan_to_num(votes[:, columns]) >= 0.5) & (~asked_if_odd | found_odd[:, None])
    return given.all(axis=1)


def classifications_array(galaxies: pa.Table) -> np.ndarray:
    """Return how many volunteers saw each galaxy, float32, shape (n,); NaN where nobody counted."""
    return galaxies["classifications"].cast(pa.float32()).to_numpy(zero_copy_only=False)
