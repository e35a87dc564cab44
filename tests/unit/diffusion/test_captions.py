import pytest
import torch

from galray.core.errors import ConfigError
from galray.core.schema import ANSWER_INDEX, N_ANSWERS, votes_of_label
from galray.diffusion.captions import PHRASES, CaptionEncoder, caption
from galray.diffusion.conditions import condition
from tests.unit.diffusion import tiny_stable_diffusion


@pytest.fixture
def encoder() -> CaptionEncoder:
    torch.manual_seed(0)
    tokenizer = tiny_stable_diffusion.tokenizer()
    return CaptionEncoder.from_parts(tiny_stable_diffusion.text_model(len(tokenizer)), tokenizer)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ([], ""),
        (["dust_lane", "smooth"], "smooth, dust lane"),
        (["smooth", "completely_round", "odd", "dust_lane:1.3"], "smooth, odd, completely round, dust lane"),
        ({"smooth": 0.4, "features_or_disk": 0.5}, "features or disk"),
        ({"bar": 0.5}, "bar"),
        ({"edge_on": 0.0, "spiral": 0.7, "four_arms": 0.3}, "not edge-on, spiral arms, four arms"),
    ],
)
def test_a_caption_names_the_answers_that_lead(request_: object, expected: str) -> None:
    assert caption(condition(request_).votes) == expected  # type: ignore[arg-type]


def test_a_question_that_nobody_answered_is_left_out() -> None:
    assert caption(torch.zeros(N_ANSWERS)) == ""


def test_a_label_has_a_caption() -> None:
    assert caption(torch.from_numpy(votes_of_label("cigar_shaped_smooth"))) == "smooth, cigar-shaped"


def test_every_answer_has_words_of_its_own() -> None:
    assert len(set(PHRASES)) == N_ANSWERS
    assert all(phrase.isascii() and "_" not in phrase and "," not in phrase for phrase in PHRASES)


def test_votes_are_read_as_their_caption(encoder: CaptionEncoder, votes: torch.Tensor) -> None:
    tokens, mask = encoder(votes)
    written = encoder.encode([caption(row) for row in votes])
    assert tokens.shape == (8, 77, tiny_stable_diffusion.TOKEN_DIM)
    assert tokens.dtype == torch.float32
    assert mask.all()
    torch.testing.assert_close(tokens, written.tokens)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_tokens_are_those_of_transformers(encoder: CaptionEncoder) -> None:
    """As a Stable Diffusion pipeline encodes its prompt."""
    text = "smooth, cigar-shaped"
    ids = encoder.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = encoder.text_model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(encoder.encode([text]).tokens, expected)


def test_nothing_asked_is_the_empty_caption(encoder: CaptionEncoder) -> None:
    tokens, mask = encoder.unconditional(3)
    torch.testing.assert_close(tokens, encoder.encode(["", "", ""]).tokens)
    torch.testing.assert_close(tokens, encoder(torch.full((3, N_ANSWERS), float("nan"))).tokens)
    assert mask.shape == (3, 77)


def test_a_weight_strengthens_the_phrase_against_the_empty_caption(encoder: CaptionEncoder) -> None:
    votes, ordinary = condition(["smooth", "odd", "dust_lane"])
    plain = encoder(votes[None], ordinary[None]).tokens[0]
    torch.testing.assert_close(plain, encoder(votes[None]).tokens[0])
    strong = encoder(votes[None], condition(["dust_lane:1.3"]).weights[None]).tokens[0]
    nothing = encoder.unconditional(1).tokens[0]
    # <start> smooth , odd , dust lane <end>: only the phrase's own places change
    before, with_phrase = (
        1 + len(encoder.tokenizer(t, add_special_tokens=False)["input_ids"])
        for t in ("smooth, odd,", "smooth, odd, dust lane")
    )
    phrase = slice(before, with_phrase)
    torch.testing.assert_close(strong[phrase], nothing[phrase] + 1.3 * (plain - nothing)[phrase])
    changed = (strong - plain).abs().amax(dim=1) > 1e-5
    assert changed.nonzero().flatten().tolist() == list(range(before, with_phrase))


def test_a_weight_of_what_is_not_asked_changes_nothing(encoder: CaptionEncoder) -> None:
    votes = condition(["smooth"]).votes[None]
    weights = torch.ones(1, N_ANSWERS)
    weights[0, ANSWER_INDEX["dust_lane"]] = 2.0
    torch.testing.assert_close(encoder(votes, weights).tokens, encoder(votes).tokens)


def test_a_caption_that_is_too_long_is_refused(encoder: CaptionEncoder) -> None:
    with pytest.raises(ConfigError, match=r"has 120 tokens, and the text model reads 75"):
        encoder.encode(["odd", "odd, " * 60])


def test_a_saved_encoder_is_the_same(encoder: CaptionEncoder, votes: torch.Tensor, tmp_path) -> None:
    encoder.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    reopened = CaptionEncoder.from_pretrained(tmp_path)
    assert torch.equal(reopened(votes).tokens, encoder(votes).tokens)
