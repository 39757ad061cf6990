"""Captions as a network reads them: words to token ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.errors import UserError

# What fills a caption up to the common length. The empty caption is nothing but this.
PADDING = 0


class Vocabulary:
    """The words that captions are made of; token i + 1 is `words[i]`, PADDING follows the last word of a caption.

    Args:
        words: lower-case, each once, without spaces.
        length: L, tokens of every encoded caption.

    Raises:
        ValueError: there are no words, one is no word or is there twice, or the length is less than 1.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        bad = [word for word in words if not isinstance(word, str) or [word] != word.lower().split()]
        if not words or bad or len(set(words)) < len(words) or length < 1:
            raise ValueError(f"a vocabulary needs different lower-case words and a length, got {list(words)}, {length}")
        self.words = tuple(words)
        self.length = length
        self._ids = {word: number for number, word in enumerate(words, start=PADDING + 1)}

    @property
    def meaning(self) -> dict[str, Any]:
        """What checkpoints keep."""
        return {"words": list(self.words), "caption_length": self.length}

    def encode(self, captions: Sequence[str]) -> Tensor:
        """int64 (N, L) of N captions; case and repeated spaces do not matter.

        Raises:
            UserError: a word is not known, or a caption has more than L words.
        """
        tokens = torch.full((len(captions), self.length), PADDING)
        for row, caption in zip(tokens, captions, strict=True):
            words = caption.lower().split()
            for word in words:
                if word not in self._ids:
                    raise UserError(f'The word "{word}" is not known; known are: {", ".join(sorted(self.words))}.')
            if len(words) > self.length:
                raise UserError(f'The caption "{caption}" has {len(words)} words; at most {self.length} can be read.')
            row[: len(words)] = torch.tensor([self._ids[word] for word in words], dtype=torch.int64)
        return tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """The captions of token ids (N, L)."""
        return [
            " ".join(self.words[number - 1] for number in caption if number != PADDING) for caption in tokens.tolist()
        ]
