"""Captions in the tokens of a text encoder that others have trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.data.captions import PADDING, Vocabulary
from ddim.errors import UserError
from ddim.runs.transformers_extra import from_transformers

# Tokens that a caption may have beyond the longest one that is trained on.
ROOM = 8

# Of any caption, so that what a damaged file says is not tried.
LONGEST = 100_000


class EncoderVocabulary:
    """As `Vocabulary`, with the tokens of an encoder's tokenizer, one more than there: 0 is PADDING.

    Args:
        words: that the captions trained on are made of; others can be read as well.
        length: L, tokens of every encoded caption.
        name: of the encoder, a folder or one of the hub's.

    Raises:
        UserError: there is no such tokenizer.
    """

    def __init__(self, words: Sequence[str], length: int, name: str) -> None:
        self.words, self.length, self.name = tuple(words), length, name
        self._tokenizer = from_transformers(
            name, lambda package: package.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        )

    @property
    def meaning(self) -> dict[str, Any]:
        """What checkpoints keep."""
        about = {"words": list(self.words), "caption_length": self.length}
        return {**about, "encoder": self.name, "num_words": len(self._tokenizer)}

    def encode(self, captions: Sequence[str]) -> Tensor:
        """int64 (N, L); the empty caption is nothing but PADDING. Raises `UserError` for one of more than L tokens."""
        tokens = torch.full((len(captions), self.length), PADDING)
        for row, caption in zip(tokens, captions, strict=True):
            numbers = self.numbers(caption)
            if len(numbers) > self.length:
                raise UserError(
                    f'The caption "{caption}" has {len(numbers)} tokens; at most {self.length} can be read.'
                )
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """The captions of token ids (N, L)."""
        rows = [[number - 1 for number in row if number != PADDING] for row in tokens.tolist()]
        return [self._tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    def numbers(self, caption: str) -> list[int]:
        """The tokens of a caption, without PADDING."""
        text = " ".join(caption.lower().split())
        return [number + 1 for number in self._tokenizer(text)["input_ids"]] if text else []


def vocabulary_for(
    words: Sequence[str], captions: Sequence[str], encoder: str | None
) -> Vocabulary | EncoderVocabulary:
    """What captions made of these words are read with, those of an encoder where its name is given."""
    if encoder is None:
        return Vocabulary(words, max(len(caption.split()) for caption in captions))
    longest = max(map(len, map(EncoderVocabulary(words, 1, encoder).numbers, captions)))
    return EncoderVocabulary(words, longest + ROOM, encoder)


def vocabulary_from(meaning: Mapping[str, Any], origin: str = "the data set") -> Vocabulary | EncoderVocabulary:
    """What captions are read with, from what a checkpoint or a data set says that its conditions mean.

    origin: what messages call it.

    Raises:
        UserError: it does not say so, or there is no tokenizer of the encoder that it names.
    """
    words, length, encoder = (meaning.get(key) for key in ("words", "caption_length", "encoder"))
    if not isinstance(words, list | tuple):
        raise UserError(f"{origin} is damaged: words={_shown(words)} is no list of words.")
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= LONGEST:
        raise UserError(f"{origin} is damaged: caption_length={_shown(length)} is no whole number from 1 to {LONGEST}.")
    try:
        return Vocabulary(words, length) if encoder is None else EncoderVocabulary(words, length, str(encoder))
    except ValueError as error:
        raise UserError(f"{origin} is damaged: {_shown(error)}.") from error


def _shown(value: Any) -> str:
    """As a message can show what a file says: short, and in one line."""
    return "".join(character if character.isprintable() else "?" for character in str(value)[:200])
