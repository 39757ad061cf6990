"""Two handwritten digits in one image and a sentence that says which and where, true by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddim.data.captions import Vocabulary
from ddim.data.digits import Digits
from ddim.data.encoded_captions import vocabulary_for
from ddim.data.options import Options
from ddim.data.splits import ArraySplit

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = ("a", "an", *NUMBERS, "left", "right", "of", "above", "below")
# Two ways to say each layout: with the first digit first, and with the second one first.
BESIDE, STACKED = ("left of", "right of"), ("above", "below")
LAYOUTS = (BESIDE, STACKED)
CAPTION_LENGTH = 8
VOCABULARY = Vocabulary(WORDS, CAPTION_LENGTH)
SIDE = 16
# Rows and columns of the first and of the second digit: halves of the image, in the middle of the other direction.
CELLS = {
    BESIDE: ((slice(4, 12), slice(0, 8)), (slice(4, 12), slice(8, 16))),
    STACKED: ((slice(0, 8), slice(4, 12)), (slice(8, 16), slice(4, 12))),
}
SEEN, NEW_WORDING, NEW_COMBINATION = "trained", "new wording", "new combination"
KINDS = (SEEN, NEW_WORDING, NEW_COMBINATION)


@dataclass(frozen=True)
class Caption:
    """What is in an image, `first` (0 to 9) left of or above `second`, and how that is said.

    layout: BESIDE or STACKED.
    wording: 0 begins with the first digit ("a three left of a seven"), 1 with the second ("a seven right of a three").
    """

    first: int
    layout: tuple[str, str]
    second: int
    wording: int

    @property
    def text(self) -> str:
        digits = [self.first, self.second] if self.wording == 0 else [self.second, self.first]
        one, other = (f"{_article(digit)} {NUMBERS[digit]}" for digit in digits)
        return f"{one} {self.layout[self.wording]} {other}"

    @property
    def kind(self) -> str:
        """SEEN for the captions of the training images, and how the others differ from those.

        NEW_COMBINATION: no training image has these digits in these places. NEW_WORDING: some have, and are only called
        by the other wording. In each layout every digit is once the first and once the second of a NEW_COMBINATION.
        """
        difference = (self.second - self.first) % 10
        if difference == (3 if self.layout is BESIDE else 6):
            return NEW_COMBINATION
        return NEW_WORDING if difference == (1, 5)[self.wording] else SEEN


CAPTIONS = [Caption(*which) for which in product(range(10), LAYOUTS, range(10), (0, 1))]


def captions_of(*kinds: str) -> list[Caption]:
    """The CAPTIONS of these kinds, of which each must have as many, one kind after the other in turn."""
    members = [[caption for caption in CAPTIONS if caption.kind == kind] for kind in kinds]
    return [caption for turn in zip(*members, strict=True) for caption in turn]


class CaptionedDigits:
    """Pairs of scikit-learn's digits in 16x16 images with their captions; test images are of test digits alone.

    Image i and its caption are a function of i and the split. Captions take turns, so that all are as frequent: those
    that are SEEN in the training split, all of them in the test split. Which of the split's images of a digit is shown
    is drawn with i as the seed.
    """

    def __init__(self, options: Options, cache_dir: Path) -> None:
        self.channels = options.choice("channels", 1, (1,))
        self.resolution = options.choice("resolution", SIDE, (SIDE,))
        self._counts = {"train": options.integer("count", 20000), "test": options.integer("test_count", 2000)}
        self._digits = Digits(Options({}), cache_dir)
        encoder = options.text("encoder", None)
        self._reader = VOCABULARY if encoder is None else vocabulary_for(WORDS, [c.text for c in CAPTIONS], encoder)

    def prepare(self) -> None:
        """Nothing to do: the digits come with scikit-learn."""

    def open(self, split: str) -> ArraySplit:
        """uint8 (N, 1, 16, 16) and the tokens (N, CAPTION_LENGTH) of their captions."""
        numbers = np.arange(self._counts[split])
        captions = captions_of(SEEN) if split == "train" else CAPTIONS
        shown = [captions[number % len(captions)] for number in numbers]
        return ArraySplit(self._compose(split, numbers, shown), self._tokens_of(shown))

    @property
    def meaning(self) -> dict[str, Any]:
        """What a token means: see `Vocabulary`."""
        return self._reader.meaning

    def condition_of(self, numbers: Tensor) -> Tensor:
        """Sample i has the caption of training image i, so that samples can be compared with these images."""
        tokens = self._tokens_of(captions_of(SEEN))
        return tokens[numbers.cpu() % len(tokens)]

    def details(self) -> dict[str, Any]:
        return {"split_rule": f"pairs of digits; {self._digits.details()['split_rule']}"}

    def _tokens_of(self, captions: Sequence[Caption]) -> Tensor:
        texts = list(dict.fromkeys(caption.text for caption in captions))
        place = {text: number for number, text in enumerate(texts)}
        return self._reader.encode(texts)[[place[caption.text] for caption in captions]]

    def _compose(self, split: str, numbers: np.ndarray, captions: Sequence[Caption]) -> Tensor:
        of_split = self._digits.open(split)
        assert of_split.conditions is not None
        digits, classes = of_split.images.numpy(), of_split.conditions.numpy()
        images = np.zeros((len(numbers), 1, SIDE, SIDE), dtype=np.uint8)
        beside = np.array([caption.layout is BESIDE for caption in captions])
        for place in (0, 1):
            shown = np.array([(caption.first, caption.second)[place] for caption in captions])
            drawn = _mixed(2 * numbers.astype(np.uint64) + np.uint64(place))
            for layout, digit in product(LAYOUTS, range(10)):
                here = np.flatnonzero((shown == digit) & (beside == (layout is BESIDE)))
                choice = np.flatnonzero(classes == digit)
                rows, columns = CELLS[layout][place]
                images[here, :, rows, columns] = digits[choice[drawn[here] % np.uint64(len(choice))]]
        return torch.from_numpy(images)


def _article(digit: int) -> str:
    return "an" if NUMBERS[digit] == "eight" else "a"


def _mixed(seeds: np.ndarray) -> np.ndarray:
    """One number of uint64 for each, as if random: SplitMix64 (Steele, Lea and Flood 2014), the first of each seed."""
    z = seeds * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
