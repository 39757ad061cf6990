"""Captions of images that have classes: "a photograph of a horse"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

from torch import Tensor

from ddim.data.captions import Vocabulary
from ddim.data.datamodule import Source
from ddim.data.encoded_captions import EncoderVocabulary, vocabulary_for
from ddim.data.splits import ArraySplit, FileSplit
from ddim.errors import UserError

# What `dataset.captions` may be.
CLASSES = "classes"


class ClassCaptions:
    """A data set of images of classes, in which every image has the caption of its class in place of its label.

    Args:
        source: the data set.
        name: what it is called.
        encoder: the text encoder that reads the captions; None for a transformer that is trained.
    """

    def __init__(self, source: Source, name: str, encoder: str | None = None) -> None:
        self._source = cast(Any, source)
        self._name = name
        self._encoder = encoder
        self.channels: int = self._source.channels
        self.resolution: int = self._source.resolution

    def prepare(self) -> None:
        """As the data set does; UserError where its images have no classes."""
        self._source.prepare()
        _ = self._tokens

    def open(self, split: str) -> ArraySplit | FileSplit:
        """The images of a split with the tokens (N, L) of their captions."""
        opened: ArraySplit | FileSplit = self._source.open(split)
        return opened.with_conditions(self._tokens)

    @property
    def meaning(self) -> dict[str, Any]:
        """What a token means: see `Vocabulary`."""
        return self._vocabulary.meaning

    def condition_of(self, numbers: Tensor) -> Tensor:
        """Sample i has the caption of class i mod K, tokens (N, L)."""
        return self._tokens[numbers.cpu() % len(self._tokens)]

    def details(self) -> dict[str, Any]:
        """The data set's own: its pixels do not depend on what they are called."""
        details: dict[str, Any] = self._source.details()
        return details

    @cached_property
    def _captions(self) -> list[str]:
        classes = (getattr(self._source, "meaning", None) or {}).get("classes")
        if not classes:
            raise UserError(
                f"dataset.captions={CLASSES} calls images by their classes, and dataset {self._name} has none; put the "
                "images into a folder for each class, or leave it out."
            )
        return captions_of_classes(classes)

    @cached_property
    def _vocabulary(self) -> Vocabulary | EncoderVocabulary:
        words = [word for caption in self._captions for word in caption.split()]
        return vocabulary_for(list(dict.fromkeys(["a", "an", *words])), self._captions, self._encoder)

    @cached_property
    def _tokens(self) -> Tensor:
        """Of the caption of each class, int64 (K, L)."""
        return self._vocabulary.encode(self._captions)


def captions_of_classes(classes: Sequence[str]) -> list[str]:
    """ "a photograph of an old car" of "Old_car": words are lower-case letters and digits.

    Raises:
        UserError: a name has none of these.
    """
    captions = []
    for name in classes:
        words = re.findall(r"[^\W_]+", str(name).lower())
        if not words:
            raise UserError(f'dataset.captions={CLASSES} finds no word in the class "{name}"; give it another name.')
        article = "an" if words[0][0] in "aeiou" else "a"
        captions.append(f"a photograph of {article} {' '.join(words)}")
    return captions
