"""Votes as condition tokens: what is asked for, what is left open, and how strongly.

A condition is one vector of 37 GZ2 vote fractions in the order of ``schema.ANSWERS``. NaN means
that nothing is known, or nothing asked for, which differs from 0: "certainly not". A vector of
weights goes with it where an answer is to be pushed beyond what votes can say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from galray.core.errors import ConfigError, nearest
from galray.core.schema import (
    ANSWER_INDEX,
    ANSWER_NAMES,
    DECISION_TREE,
    N_ANSWERS,
    QUESTION_OF_ANSWER,
)

_QUESTION_OF_ANSWER = torch.from_numpy(QUESTION_OF_ANSWER)


class ConditionTokens(NamedTuple):
    """Tokens for cross-attention: `tokens` float32 [B, T, D]; `mask` bool [B, T], True where visible."""

    tokens: Tensor
    mask: Tensor


class Condition(NamedTuple):
    """One request: `votes` float32 [37], NaN where open; `weights` float32 [37], 1 where ordinary."""

    votes: Tensor
    weights: Tensor


def summarise(condition: ConditionTokens) -> Tensor:
    """Return the sum of all visible tokens, over the square root of their greatest number: float32 [B, D].

    Beside the noise level it scales and shifts every layer of a network made for it (Perez et al. 2018,
    arXiv:1709.07871). Cross-attention must first learn where to look: after 640 steps on mock galaxies it
    alone told cigars from the rest, and with the summary classes differed in colour and shape.
    """
    visible = condition.tokens * condition.mask.unsqueeze(-1)
    return visible.sum(dim=1) * condition.tokens.shape[1] ** -0.5


class VoteEncoder(ModelMixin, ConfigMixin):
    """Vote fractions to cross-attention tokens, one for each GZ2 answer.

    For an answer *i* with vote fraction :math:`f_i` and weight :math:`w_i`,

    .. math:: \\mathrm{token}_i = f_i w_i E_i + P_i

    with learned :math:`E_i, P_i`. The second term tells an answer that nobody chose (:math:`f_i = 0`)
    from one that is unknown, which is masked. Token 0 is learned, always visible, and stands for
    "a galaxy": with all votes unknown it alone remains, so that the unconditional prediction
    that guidance needs is one that was trained.

    Parameters
    ----------
    token_dim : int
        D, the length of a token; the ``cross_attention_dim`` of the denoiser.
    n_answers : int
        The number of vote fractions; a model folder says how many it was trained with.
    """

    @register_to_config
    def __init__(self, token_dim: int = 128, n_answers: int = N_ANSWERS) -> None:
        super().__init__()
        self.galaxy = nn.Parameter(torch.randn(1, 1, token_dim))
        self.amount = nn.Parameter(torch.randn(n_answers, token_dim))
        self.position = nn.Parameter(torch.randn(n_answers, token_dim))

    def forward(self, votes: Tensor, weights: Tensor | None = None) -> ConditionTokens:
        """Return tokens and their mask.

        Parameters
        ----------
        votes : Tensor of float32, shape (B, 37)
            Vote fractions in [0, 1]; NaN where unknown.
        weights : Tensor of float32, shape (B, 37), optional
            Above 1 strengthens an answer. Default: all 1.

        Returns
        -------
        ConditionTokens
            `tokens` float32 [B, 38, D] and `mask` bool [B, 38].
        """
        known = ~votes.isnan()
        strength = votes.nan_to_num(0.0)
        if weights is not None:
            strength = strength * weights
        answers = strength.unsqueeze(-1) * self.amount + self.position
        tokens = torch.cat([self.galaxy.expand(len(votes), -1, -1), answers], dim=1)
        return ConditionTokens(tokens, nn.functional.pad(known, (1, 0), value=True))

    def unconditional(self, count: int) -> ConditionTokens:
        """Return the tokens of `count` galaxies about which nothing is asked."""
        return self(torch.full((count, self.config["n_answers"]), float("nan"), device=self.galaxy.device))


def drop_questions(
    votes: Tensor, p_question: float, p_all: float, generator: torch.Generator | None = None
) -> Tensor:
    """Hide whole questions at random, so that any part of the tree can be asked for or left open.

    Parameters
    ----------
    votes : Tensor of float32, shape (B, 37)
    p_question : float
        Probability that a question is hidden, with all its answers, independently of the others.
    p_all : float
        Probability that a galaxy is shown with no votes at all (Ho & Salimans 2022).
    generator : torch.Generator, optional
        The same generator state gives the same dropout.

    Returns
    -------
    Tensor of float32, shape (B, 37)
        A copy with NaN where hidden.
    """
    device = generator.device if generator is not None else votes.device
    draws = torch.rand(len(votes), len(DECISION_TREE) + 1, generator=generator, device=device).to(
        votes.device
    )
    hidden_questions = draws[:, 1:] < p_question
    hidden_galaxies = draws[:, :1] < p_all
    hidden = hidden_questions[:, _QUESTION_OF_ANSWER.to(votes.device)] | hidden_galaxies
    return votes.masked_fill(hidden, float("nan"))


def condition(answers: Mapping[str, float] | Iterable[str]) -> Condition:
    """Build one condition from the answers that it names.

    Parameters
    ----------
    answers : mapping of str to float, or iterable of str
        Answer names, each ``name`` or ``name:weight``, and their vote fractions; a plain list of
        names asks for a fraction of 1 each. What is left of a question's fraction is shared
        equally among its answers that are not named; questions not named stay open.

    Returns
    -------
    Condition

    Raises
    ------
    ConfigError
        A name that is no GZ2 answer, a weight that is no positive number, a fraction outside
        [0, 1], or fractions of one question that add up to more than 1.

    Examples
    --------
    A smooth galaxy with a pronounced dust lane, as GalaxySD's ``{dust lane:1.3}``:

    >>> votes, weights = condition(["smooth", "odd", "dust_lane:1.3"])
    >>> votes[:3].tolist()
    [1.0, 0.0, 0.0]
    """
    requests = dict(answers) if isinstance(answers, Mapping) else dict.fromkeys(answers, 1.0)
    votes, weights = torch.full((N_ANSWERS,), float("nan")), torch.ones(N_ANSWERS)
    for request, fraction in requests.items():
        index, weight = _parse_request(request)
        votes[index], weights[index] = _checked_fraction(request, fraction), weight
    return Condition(_share_remainders(votes), weights)


def _parse_request(request: str) -> tuple[int, float]:
    name, _, weight = request.partition(":")
    name = name.strip()
    if name not in ANSWER_INDEX:
        raise ConfigError(
            f"{name!r} is no Galaxy Zoo 2 answer{nearest(name, ANSWER_NAMES)}. "
            f"Use one of: {', '.join(ANSWER_NAMES)}."
        )
    return ANSWER_INDEX[name], _parse_weight(request, weight)


def _parse_weight(request: str, weight: str) -> float:
    try:
        value = float(weight or 1.0)
    except ValueError:
        value = float("nan")
    if not 0.0 < value < float("inf"):
        raise ConfigError(f"{request!r}: the weight must be a positive number, as in 'dust_lane:1.3'.")
    return value


def _checked_fraction(request: str, fraction: float) -> float:
    if not 0.0 <= float(fraction) <= 1.0:
        raise ConfigError(
            f"{request!r}: the vote fraction {fraction} is not within [0, 1]. "
            "To ask for more than certainty, give a weight: 'dust_lane:1.3'."
        )
    return float(fraction)


def _share_remainders(votes: Tensor) -> Tensor:
    """Fill the unnamed answers of every question of which an answer is named."""
    filled = votes.clone()
    for index, question in enumerate(DECISION_TREE):
        of_question = _QUESTION_OF_ANSWER.eq(index)
        open_answers = of_question & votes.isnan()
        if not (of_question & ~open_answers).any():
            continue
        remainder = 1.0 - float(votes[of_question].nansum())
        if remainder < -1e-6:
            raise ConfigError(
                f"The fractions asked for in question {question.name!r} add up to {1.0 - remainder:.3g}. "
                "Name its answers so that they add up to at most 1."
            )
        filled[open_answers] = max(remainder, 0.0) / max(int(open_answers.sum()), 1)
    return filled
