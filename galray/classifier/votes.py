"""The likelihood of volunteers' votes: a question that many were asked says more than one that few were.

Galaxies differ in their true vote fractions more than a multinomial of the predicted ones allows, so counts
follow a Dirichlet-multinomial whose concentrations the network predicts (Walmsley et al. 2022, section 4.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from galray.core.schema import DECISION_TREE, QUESTION_OF_ANSWER

N_QUESTIONS = len(DECISION_TREE)
_LARGEST_CONCENTRATION = 100.0


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
        See `galray.data.votes.volunteers_by_question`; 0 leaves the question out.

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
