"""Captions that are true of their images, and those that no training image has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ddim.data import ImageDataModule
from ddim.data.captioned_digits import (
    BESIDE,
    CAPTIONS,
    KINDS,
    LAYOUTS,
    NEW_COMBINATION,
    NEW_WORDING,
    NUMBERS,
    SEEN,
    VOCABULARY,
    WORDS,
    captions_of,
)
from ddim.data.captions import Vocabulary
from ddim.data.digits import Digits
from ddim.data.options import Options
from ddim.errors import UserError
from ddim.metrics.digits_cnn import DigitsFeatures

Make = Callable[..., ImageDataModule]


@pytest.fixture
def data(make_datamodule: Make) -> ImageDataModule:
    found = make_datamodule({"name": "captioned_digits", "count": 900, "test_count": 400})
    found.setup("fit")
    return found


def shown(data: ImageDataModule, split: str) -> tuple[torch.Tensor, list[str]]:
    conditions = data.conditions(split)
    assert conditions is not None
    return torch.cat(list(data.images(split, 500))), VOCABULARY.decode(conditions)


def understood(caption: str) -> tuple[str, str, str]:
    """(left or upper digit, "beside" or "stacked", right or lower digit), by grammar alone."""
    one, relation, other = (" ".join(words) for words in parts(caption.split()))
    first, second = (one, other) if relation in ("left of", "above") else (other, one)
    return first, "beside" if relation in ("left of", "right of") else "stacked", second


def parts(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    assert words[0] == ("an" if words[1] == "eight" else "a") and words[-2] == ("an" if words[-1] == "eight" else "a")
    return words[1:2], words[2:-2], words[-1:]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_caption_is_true_of_its_image(data: ImageDataModule, tmp_path: Any, split: str) -> None:
    """The digits are found pixel by pixel among those of the split, whose class the caption has to name."""
    images, captions = shown(data, split)
    digits = Digits(Options({}), tmp_path).open(split)
    assert digits.conditions is not None
    number_of = {image.numpy().tobytes(): NUMBERS[n] for image, n in zip(digits.images, digits.conditions, strict=True)}
    for image, caption in zip(images[:, 0], captions, strict=True):
        first, layout, second = understood(caption)
        across = image if layout == "beside" else image.T
        assert not across[:4].any() and not across[12:].any()
        halves = (image[4:12, :8], image[4:12, 8:]) if layout == "beside" else (image[:8, 4:12], image[8:, 4:12])
        assert [number_of[half.numpy().tobytes()] for half in halves] == [first, second]


def test_the_classifier_reads_what_the_captions_say(data: ImageDataModule) -> None:
    images, captions = shown(data, "test")
    cnn = DigitsFeatures()
    beside = torch.tensor([understood(caption)[1] == "beside" for caption in captions])
    left = cnn.classify(images[beside][:, :, 4:12, :8])
    named = [NUMBERS.index(understood(caption)[0]) for caption in captions]
    assert (left == torch.tensor(named)[beside]).float().mean() > 0.97


def test_training_never_shows_what_is_held_out(data: ImageDataModule) -> None:
    trained = set(shown(data, "train")[1])
    scenes = {understood(caption) for caption in trained}
    for caption in CAPTIONS:
        assert (caption.text in trained) == (caption.kind == SEEN)
        assert (understood(caption.text) in scenes) == (caption.kind != NEW_COMBINATION)
    assert set(shown(data, "test")[1]) == {caption.text for caption in CAPTIONS}


def test_every_digit_is_held_out_in_every_place_alike() -> None:
    assert Counter(caption.kind for caption in CAPTIONS) == {SEEN: 320, NEW_WORDING: 40, NEW_COMBINATION: 40}
    assert len({caption.text for caption in CAPTIONS}) == 400
    for kind in (NEW_WORDING, NEW_COMBINATION):
        for place in ("first", "second"):
            where = Counter((c.layout, getattr(c, place), c.wording) for c in CAPTIONS if c.kind == kind)
            assert set(where.values()) == {1} and len(where) == 40
    held_out = captions_of(NEW_WORDING, NEW_COMBINATION)
    assert [caption.kind for caption in held_out[:4]] == [NEW_WORDING, NEW_COMBINATION] * 2
    assert len(set(held_out)) == 80 and set(KINDS) == {caption.kind for caption in CAPTIONS}


def test_captions_read_as_people_say_them() -> None:
    texts = {caption.text: caption for caption in CAPTIONS}
    assert texts["a three left of a seven"].kind == texts["a two above a nine"].kind == SEEN
    caption = texts["an eight below a one"]
    assert (caption.first, caption.layout, caption.second) == (1, LAYOUTS[1], 8)
    assert texts["a zero right of an eight"].layout is BESIDE


def test_an_image_is_a_function_of_its_number(make_datamodule: Make, data: ImageDataModule) -> None:
    more = make_datamodule({"name": "captioned_digits", "count": 1800, "test_count": 500}, seed=9)
    for split in ("train", "test"):
        (images, captions), (again, same) = shown(data, split), shown(more, split)
        assert torch.equal(again[: len(images)], images) and same[: len(captions)] == captions
    images, captions = shown(more, "train")
    assert len(torch.unique(images.flatten(1), dim=0)) > 1700, "another pair of digits each time"


def test_samples_have_the_captions_of_training_images(data: ImageDataModule) -> None:
    numbers = torch.tensor([640, 3, 321, 0])
    conditions = data.conditions("train")
    assert conditions is not None and torch.equal(data.condition_of(numbers), conditions[numbers])
    assert data.meaning == {"words": list(WORDS), "caption_length": 8}
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(batch["condition"], conditions[batch["index"]])


def test_the_images_are_pinned(make_datamodule: Make) -> None:
    data = make_datamodule({"name": "captioned_digits"})
    assert data.provenance("train")["fingerprint"] == "9758f0ba3f299c94"
    assert data.provenance("test")["fingerprint"] == "9137956a8d661035"


def test_words_become_tokens_and_back() -> None:
    vocabulary = Vocabulary(["a", "seven", "of"], 4)
    tokens = vocabulary.encode(["A  seven of a", "seven", ""])
    assert tokens.tolist() == [[1, 2, 3, 1], [2, 0, 0, 0], [0, 0, 0, 0]] and tokens.dtype == torch.int64
    assert vocabulary.decode(tokens) == ["a seven of a", "seven", ""]


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("a dog", 'The word "dog" is not known; known are: a, of, seven.'),
        ("a a a a a", 'The caption "a a a a a" has 5 words; at most 4 can be read.'),
    ],
)
def test_what_cannot_be_read_is_named(caption: str, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        Vocabulary(["a", "seven", "of"], 4).encode(["a seven", caption])
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    ("words", "length"), [([], 4), (["a", "a"], 4), (["A"], 4), (["a b"], 4), (["a"], 0), ([1], 4)]
)
def test_a_vocabulary_of_no_words_is_refused(words: list[Any], length: int) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary(words, length)


@pytest.mark.parametrize("key", ["count", "test_count"])
def test_there_must_be_images(make_datamodule: Make, key: str) -> None:
    with pytest.raises(UserError, match=f"dataset.{key}=0 must be a whole number of at least 1"):
        make_datamodule({"name": "captioned_digits", key: 0})
