import pytest
import torch

from galray.core.errors import ConfigError
from galray.core.schema import ANSWER_INDEX, N_ANSWERS, QUESTION_INDEX, QUESTION_OF_ANSWER
from galray.diffusion.conditions import ConditionTokens, VoteEncoder, condition, drop_questions, summarise

QUESTION = torch.from_numpy(QUESTION_OF_ANSWER)


@pytest.fixture
def encoder() -> VoteEncoder:
    torch.manual_seed(0)
    return VoteEncoder(token_dim=16)


def answers_of(question: str) -> torch.Tensor:
    return QUESTION.eq(QUESTION_INDEX[question])


def test_tokens_have_one_place_for_the_galaxy_and_one_for_each_answer(encoder: VoteEncoder) -> None:
    tokens, mask = encoder(torch.rand(3, N_ANSWERS))
    assert tokens.shape == (3, 38, 16)
    assert tokens.dtype == torch.float32
    assert mask.shape == (3, 38)
    assert mask.dtype == torch.bool
    assert mask.all()


def test_unknown_votes_are_masked_and_finite(encoder: VoteEncoder, votes: torch.Tensor) -> None:
    tokens, mask = encoder(votes)
    assert torch.equal(mask[:, 1:], ~votes.isnan())
    assert mask[:, 0].all()
    assert tokens.isfinite().all()


def test_a_vote_of_zero_is_not_an_unknown_vote(encoder: VoteEncoder) -> None:
    tokens, mask = encoder(condition({"smooth": 0.0}).votes[None])
    assert mask[0, 1 + ANSWER_INDEX["smooth"]]
    assert torch.equal(tokens[0, 1], encoder.position[0])


def test_the_unconditional_tokens_show_the_galaxy_alone(encoder: VoteEncoder) -> None:
    tokens, mask = encoder.unconditional(2)
    assert mask.sum().item() == 2
    assert mask[:, 0].all()
    assert torch.equal(tokens[0, 0], encoder.galaxy[0, 0])


def test_token_grows_in_proportion_to_fraction_and_weight(encoder: VoteEncoder) -> None:
    def token(request: object) -> torch.Tensor:
        votes, weights = condition(request)  # type: ignore[arg-type]
        index = ANSWER_INDEX["dust_lane"]
        return encoder(votes[None], weights[None]).tokens[0, 1 + index] - encoder.position[index]

    torch.testing.assert_close(token({"dust_lane:2": 0.5}), token(["dust_lane"]))
    torch.testing.assert_close(token(["dust_lane:1.3"]), 1.3 * token(["dust_lane"]))


def test_the_summary_is_the_sum_of_what_is_visible() -> None:
    tokens = torch.arange(12.0).view(1, 4, 3)
    visible = torch.tensor([[True, False, True, False]])
    summary = summarise(ConditionTokens(tokens, visible))
    torch.testing.assert_close(summary, torch.tensor([[6.0, 8.0, 10.0]]) / 2)


def test_all_parameters_learn(encoder: VoteEncoder) -> None:
    encoder(torch.rand(2, N_ANSWERS)).tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_dropout_hides_whole_questions_at_the_rate_asked_for() -> None:
    votes = torch.rand(20_000, N_ANSWERS)
    dropped = drop_questions(votes, 0.3, 0.1, torch.Generator().manual_seed(1))
    hidden = dropped.isnan()
    for question in range(int(QUESTION.max()) + 1):
        of_question = hidden[:, QUESTION.eq(question)]
        assert torch.equal(of_question.all(dim=1), of_question.any(dim=1))
        assert of_question.float().mean().item() == pytest.approx(1 - 0.7 * 0.9, abs=0.015)
    # 11 questions are hardly ever all hidden by chance (0.3^11), so this is the full dropout.
    assert hidden.all(dim=1).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[~hidden], votes[~hidden])


def test_dropout_is_settled_by_the_generator() -> None:
    votes = torch.rand(64, N_ANSWERS)
    draws = [drop_questions(votes, 0.5, 0.1, torch.Generator().manual_seed(s)).isnan() for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_dropout_of_none_and_of_all() -> None:
    votes = torch.rand(64, N_ANSWERS)
    assert torch.equal(drop_questions(votes, 0.0, 0.0), votes)
    assert drop_questions(votes, 0.0, 1.0).isnan().all()
    assert not votes.isnan().any()


def test_condition_settles_the_other_answers_of_a_question() -> None:
    votes, weights = condition(["smooth", "dust_lane:1.3"])
    assert votes[answers_of("smooth_or_features")].tolist() == [1, 0, 0]
    assert votes[answers_of("odd_feature")].tolist() == [0, 0, 0, 0, 0, 0, 1]
    known = answers_of("smooth_or_features") | answers_of("odd_feature")
    assert votes[~known].isnan().all()
    assert weights[ANSWER_INDEX["dust_lane"]].item() == pytest.approx(1.3)
    assert weights.sum().item() == pytest.approx(36 + 1.3)


def test_condition_shares_what_is_left() -> None:
    votes = condition({"smooth": 0.6, "bar": 0.2}).votes
    torch.testing.assert_close(votes[answers_of("smooth_or_features")], torch.tensor([0.6, 0.2, 0.2]))
    torch.testing.assert_close(votes[answers_of("bar")], torch.tensor([0.2, 0.8]))


def test_condition_keeps_fractions_that_are_all_named() -> None:
    votes = condition({"bar": 0.1, "no_bar": 0.2}).votes
    torch.testing.assert_close(votes[answers_of("bar")], torch.tensor([0.1, 0.2]))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (["dustlane"], "did you mean 'dust_lane'"),
        ({"smooth": 1.5}, r"not within \[0, 1\]"),
        ({"smooth": float("nan")}, r"not within \[0, 1\]"),
        (["smooth:much"], "positive number"),
        (["smooth:-1"], "positive number"),
        ({"smooth": 0.8, "star_or_artifact": 0.4}, "'smooth_or_features' add up to 1.2"),
    ],
)
def test_condition_refuses(request_: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        condition(request_)  # type: ignore[arg-type]
