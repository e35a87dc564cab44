"""The likelihood of volunteers' votes: a question that many were asked says more than one that few were.

Galaxies differ in their true vote fractions more than a multinomial of the predicted ones allows, so counts
follow a Dirichlet-multinomial whose concentrations the network predicts (Walmsley et al. 2022, section 4.1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from galray.core.schema import ANSWERS, DECISION_TREE, N_ANSWERS, QUESTION_INDEX, QUESTION_OF_ANSWER

N_QUESTIONS = len(DECISION_TREE)
_LARGEST_CONCENTRATION = 100.0
_LEADS_TO = [QUESTION_INDEX[answer.leads_to] if answer.leads_to else None for answer in ANSWERS]


def _in_order() -> list[int]:
    """Return the questions so that each follows all those that lead to it."""
    ordered: list[int] = []
    while len(ordered) < N_QUESTIONS:
        waiting = {to for a, to in enumerate(_LEADS_TO) if QUESTION_OF_ANSWER[a] not in ordered}
        ordered += [q for q in range(N_QUESTIONS) if q not in ordered and q not in waiting]
    return ordered


_ORDER = _in_order()


def volunteers(votes: np.ndarray, classifications: np.ndarray) -> np.ndarray:
    """Return how many volunteers were asked each question.

    Parameters
    ----------
    votes : ndarray of float, shape (n, 37)
        Vote fractions; NaN where the question was not asked or is unknown.
    classifications : ndarray of float, shape (n,)
        Volunteers who saw the galaxy; NaN where nobody counted.

    Returns
    -------
    ndarray of float32, shape (n, 11)
        All for the first question, and for each other one those whose answers lead to it; 0 where a
        question's answers are not all known.
    """
    fractions = np.nan_to_num(votes)
    asked = np.zeros((len(votes), N_QUESTIONS))
    asked[:, 0] = np.nan_to_num(classifications)
    for question in _ORDER:
        for answer in np.flatnonzero(question == QUESTION_OF_ANSWER):
            if (to := _LEADS_TO[answer]) is not None:
                asked[:, to] += asked[:, question] * fractions[:, answer]
    unknown = np.zeros((len(votes), N_QUESTIONS), dtype=bool)
    for answer in range(N_ANSWERS):
        unknown[:, QUESTION_OF_ANSWER[answer]] |= np.isnan(votes[:, answer])
    return np.where(unknown, 0, asked).astype(np.float32)


def vote_loss(logits: Tensor, votes: Tensor, volunteers: Tensor) -> Tensor:
    """Return the mean negative log likelihood of the votes, over the questions that anyone was asked.

    Of a question with counts k, n volunteers and concentrations a that sum to A it is
    ``-log [G(A) / G(A + n) prod_i G(a_i + k_i) / G(a_i)]`` with the gamma function G; the binomial
    coefficients, which no network can change, are left out.

    Parameters
    ----------
    logits : Tensor of float32, shape (B, 37)
    votes : Tensor of float32, shape (B, 37)
        Fractions, NaN where unknown.
    volunteers : Tensor of float32, shape (B, 11)
        See `volunteers`; 0 leaves the question out.

    Returns
    -------
    Tensor
        Scalar; 0 where nobody was asked anything.
    """
    question = torch.as_tensor(QUESTION_OF_ANSWER, device=logits.device)
    concentration = _concentrations(logits)
    counts = votes.nan_to_num() * volunteers[:, question]
    answers = (concentration + counts).lgamma() - concentration.lgamma()
    total, found, count = (_by_question(x, question) for x in (concentration, answers, counts))
    log_likelihood = total.lgamma() - (total + count).lgamma() + found
    known = volunteers > 0
    return -(log_likelihood * known).sum() / known.sum().clamp(min=1)


def expected_fractions(logits: Tensor) -> Tensor:
    """Return the expected vote fractions, float32 (B, 37); each question's sum to 1."""
    question = torch.as_tensor(QUESTION_OF_ANSWER, device=logits.device)
    concentration = _concentrations(logits)
    return concentration / _by_question(concentration, question)[:, question]


def _concentrations(logits: Tensor) -> Tensor:
    return 1 + (_LARGEST_CONCENTRATION - 1) * logits.sigmoid()


def _by_question(values: Tensor, question: Tensor) -> Tensor:
    return values.new_zeros(len(values), N_QUESTIONS).index_add(1, question, values)
