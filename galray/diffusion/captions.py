"""Captions as condition tokens: votes in words, read by a CLIP text model, as Stable Diffusion is asked.

The same requests as `conditions.VoteEncoder` takes, so that a denoiser conditioned on text is trained and
sampled like any other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from galray.core.errors import ConfigError
from galray.core.schema import ANSWER_NAMES, DECISION_TREE, N_ANSWERS
from galray.diffusion.conditions import ConditionTokens

SEPARATOR = ","
# Where an answer's name alone would not say what the question was.
_PHRASES = {
    "edge_on": "edge-on",
    "not_edge_on": "not edge-on",
    "spiral": "spiral arms",
    "no_spiral": "no spiral arms",
    "in_between": "moderately round",
    "cigar_shaped": "cigar-shaped",
    "other": "other odd feature",
    "no_edge_on_bulge": "no bulge seen edge-on",
    "cant_tell_arms": "uncertain number of arms",
}
PHRASES = tuple(_PHRASES.get(name, name.replace("_", " ")) for name in ANSWER_NAMES)
_ANSWERS_PER_QUESTION = [len(question.answers) for question in DECISION_TREE]


def caption(votes: Tensor) -> str:
    """Describe one galaxy by the answers that lead their questions, in the order of the decision tree.

    Parameters
    ----------
    votes : Tensor of float32, shape (37,)
        Vote fractions; NaN where unknown.

    Returns
    -------
    str
        Such as ``smooth, odd, completely round, dust lane``. Questions that are unknown, or whose answers
        nobody chose, are left out; of equal answers the first is taken. Empty where all is unknown.
    """
    return f"{SEPARATOR} ".join(PHRASES[index] for index in leading_answers(votes[None])[0])


def leading_answers(votes: Tensor) -> list[tuple[int, ...]]:
    """Return the indices of the answers that lead their questions, for each row of votes [B, 37]."""
    by_question = votes.detach().cpu().nan_to_num(0.0).split(_ANSWERS_PER_QUESTION, dim=1)
    leads, first = [], 0
    for fractions in by_question:
        most = fractions.max(dim=1)
        leads.append(torch.where(most.values > 0, first + most.indices, -1))
        first += fractions.shape[1]
    return [tuple(index for index in row if index >= 0) for row in torch.stack(leads, dim=1).tolist()]


class CaptionEncoder(ModelMixin, ConfigMixin):
    """Votes to cross-attention tokens through their caption and a CLIP text model.

    A weight *w* strengthens the tokens of an answer's phrase against those of the empty caption,

    .. math:: \\mathrm{token}_i = e_i(\\varnothing) + w\\,(e_i(\\mathrm{caption}) - e_i(\\varnothing))

    with :math:`e_i` the text model's output in place *i*; this is how GalaxySD's ``{dust lane:1.3}`` is read
    here. All tokens are visible, those of the padding too, as Stable Diffusion is trained.

    Parameters
    ----------
    text_config : dict
        Config of the ``CLIPTextModel``; see `from_parts` for one that exists.

    Attributes
    ----------
    tokenizer : CLIPTokenizer
        Saved in the same folder.
    """

    tokenizer: CLIPTokenizer

    @register_to_config
    def __init__(self, text_config: dict[str, Any]) -> None:
        super().__init__()
        self.text_model = CLIPTextModel(CLIPTextConfig(**text_config))

    @classmethod
    def from_parts(cls, text_model: CLIPTextModel, tokenizer: CLIPTokenizer) -> Self:
        """Return an encoder around a text model and its tokenizer, which are shared, not copied."""
        encoder = cls(text_model.config.to_dict())
        encoder.text_model, encoder.tokenizer = text_model, tokenizer
        return encoder

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, folder: str | os.PathLike, **kwargs: Any
    ) -> Self:
        """Open a component of a model folder, as diffusers' ``ModelMixin.from_pretrained`` does."""
        encoder = super().from_pretrained(folder, **kwargs)
        encoder.tokenizer = CLIPTokenizer.from_pretrained(folder)
        return encoder

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | os.PathLike, **kwargs: Any
    ) -> None:
        """Write weights, config and tokenizer: safetensors and JSON."""
        super().save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory)

    @property
    def length(self) -> int:
        """T, the number of tokens of a caption: 77."""
        return self.text_model.config.max_position_embeddings

    def forward(self, votes: Tensor, weights: Tensor | None = None) -> ConditionTokens:
        """Return tokens and their mask.

        Parameters
        ----------
        votes : Tensor of float32, shape (B, 37)
            Vote fractions; NaN where unknown. Best left on the CPU, where captions are made.
        weights : Tensor of float32, shape (B, 37), optional
            Above 1 strengthens an answer's phrase. Of no effect on answers that the caption leaves out.

        Returns
        -------
        ConditionTokens
            `tokens` float32 [B, T, D]; `mask` bool [B, T], all True.
        """
        words = [self._words(answers) for answers in leading_answers(votes)]
        condition = self._read([ids for ids, _ in words])
        if weights is None:
            return condition
        return self._weighted(condition, weights, [said for _, said in words])

    def encode(self, captions: Sequence[str]) -> ConditionTokens:
        """Return tokens float32 [B, T, D] and their mask for captions in free text.

        Raises
        ------
        ConfigError
            A caption is longer than the text model reads.
        """
        return self._read(self._ids(captions))

    def unconditional(self, count: int) -> ConditionTokens:
        """Return the tokens of `count` galaxies about which nothing is asked: the empty caption."""
        tokens, mask = self._read([[]])
        return ConditionTokens(tokens.expand(count, -1, -1), mask.expand(count, -1))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    @cached_property
    def _phrase_ids(self) -> list[list[int]]:
        return self._ids([*PHRASES, SEPARATOR])

    def _words(self, answers: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the caption's token ids, and of each the answer that it says; `N_ANSWERS` for commas."""
        indices = [index for answer in answers for index in (N_ANSWERS, answer)][1:]
        ids = [token for index in indices for token in self._phrase_ids[index]]
        return ids, [index for index in indices for _ in self._phrase_ids[index]]

    def _read(self, captions: Sequence[list[int]]) -> ConditionTokens:
        """Run the text model on captions of token ids."""
        longest = max(map(len, captions), default=0)
        if longest > self.length - 2:
            raise ConfigError(
                f"A caption has {longest} tokens, and the text model reads {self.length - 2}. Shorten it."
            )
        start, end, padding = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
        ids = self._framed(captions, start, end, padding)
        tokens = self.text_model(input_ids=ids).last_hidden_state.float()
        return ConditionTokens(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def _framed(self, rows: Sequence[list[int]], start: int, end: int, padding: int) -> Tensor:
        """Return int64 [B, T]: rows between a start and an end, padded."""
        full = [[start, *row, end] + [padding] * (self.length - 2 - len(row)) for row in rows]
        return torch.tensor(full, dtype=torch.int64, device=self.text_model.device).view(-1, self.length)

    def _weighted(
        self, condition: ConditionTokens, weights: Tensor, said: Sequence[list[int]]
    ) -> ConditionTokens:
        answer = self._framed(said, N_ANSWERS, N_ANSWERS, N_ANSWERS)
        of_answer = pad(weights.to(answer.device), (0, 1), value=1.0)
        nothing = self.unconditional(1).tokens
        strength = of_answer.gather(1, answer).unsqueeze(-1)
        return ConditionTokens(nothing + strength * (condition.tokens - nothing), condition.mask)
