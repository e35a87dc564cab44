"""The likelihood of votes: counts along the tree, and the density as scipy has it."""

import numpy as np
import pytest
import torch
from scipy.special import gammaln
from scipy.stats import dirichlet_multinomial

from galray.classifier.votes import expected_fractions, vote_loss
from galray.core.schema import ANSWER_INDEX, N_ANSWERS, QUESTION_INDEX, QUESTION_OF_ANSWER
from galray.data.votes import volunteers_by_question


def votes_of(**answers: float) -> np.ndarray:
    """Return one galaxy's votes; a question of which an answer is given has 0 for the others."""
    votes = np.full((1, N_ANSWERS), np.nan, np.float32)
    for name in answers:
        votes[0, QUESTION_OF_ANSWER[ANSWER_INDEX[name]] == QUESTION_OF_ANSWER] = 0
    for name, fraction in answers.items():
        votes[0, ANSWER_INDEX[name]] = fraction
    return votes


def test_volunteers_follow_the_tree() -> None:
    votes = votes_of(
        smooth=0.75, features_or_disk=0.25, edge_on=0.2, not_edge_on=0.8, in_between=1.0, odd=0.5
    )
    asked = volunteers_by_question(votes, np.array([40.0]))[0]
    expected = {"smooth_or_features": 40, "rounded": 30, "edge_on": 10, "odd": 30}
    for name, count in expected.items():
        assert asked[QUESTION_INDEX[name]] == pytest.approx(count)
    assert asked[QUESTION_INDEX["bar"]] == 0  # eight were asked, and what they said is unknown
    assert not volunteers_by_question(votes, np.array([np.nan])).any()


def test_the_loss_is_the_density_that_scipy_has() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, N_ANSWERS, generator=generator)
    votes = torch.from_numpy(votes_of(smooth=0.75, features_or_disk=0.25))
    asked = torch.from_numpy(volunteers_by_question(votes.numpy(), np.array([40.0])))
    alpha = (1 + 99 * logits[0, :3].sigmoid()).double().numpy()
    counts = np.array([30, 10, 0])
    coefficient = gammaln(41) - gammaln(counts + 1).sum()
    expected = -(dirichlet_multinomial.logpmf(counts, alpha, 40) - coefficient)
    assert vote_loss(logits, votes, asked).item() == pytest.approx(expected, rel=1e-4)


def test_many_volunteers_pull_harder() -> None:
    votes = torch.from_numpy(votes_of(smooth=1.0)).expand(2, -1)
    logits = torch.zeros(2, N_ANSWERS, requires_grad=True)
    asked = torch.from_numpy(volunteers_by_question(votes.numpy(), np.array([4.0, 40.0])))
    vote_loss(logits, votes, asked).backward()
    assert logits.grad is not None
    few, many = logits.grad[:, ANSWER_INDEX["smooth"]].abs()
    assert many > 2 * few > 0
    assert not logits.grad[:, 3:7].any()  # nobody was asked


def test_unknown_votes_cost_nothing() -> None:
    logits = torch.randn(3, N_ANSWERS, requires_grad=True)
    value = vote_loss(logits, torch.full((3, N_ANSWERS), torch.nan), torch.zeros(3, 11))
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_expected_fractions_sum_to_one() -> None:
    fractions = expected_fractions(torch.randn(5, N_ANSWERS)).numpy()
    sums = np.add.reduceat(fractions, np.flatnonzero(np.diff(QUESTION_OF_ANSWER, prepend=-1)), axis=1)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
