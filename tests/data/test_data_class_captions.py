"""`dataset.captions=classes`: images called by the names of their classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddim.data import ImageDataModule, build_datamodule
from ddim.data.captions import Vocabulary
from ddim.data.class_captions import captions_of_classes
from ddim.errors import UserError

Make = Callable[..., ImageDataModule]


def test_the_caption_is_that_of_the_folder(image_tree: Callable[..., Path], make_datamodule: Make) -> None:
    root = image_tree({"train/Old_car": 2, "train/zebra": 3, "test/zebra": 1, "test/Old_car": 1})
    config = {"name": "image_folder", "root": str(root), "resolution": 8}
    labelled, data = make_datamodule(config), make_datamodule({**config, "captions": "classes"})
    for made in (labelled, data):
        made.prepare_data()
        made.setup("fit")
    assert data.meaning is not None
    vocabulary = Vocabulary(data.meaning["words"], data.meaning["caption_length"])
    assert set(vocabulary.words) == {"a", "an", "photograph", "of", "old", "car", "zebra"} and vocabulary.length == 6
    texts = ["a photograph of an old car", "a photograph of a zebra"]
    tokens = vocabulary.encode(texts)
    for split in ("train", "test"):
        classes, conditions = labelled.conditions(split), data.conditions(split)
        assert classes is not None and conditions is not None
        assert vocabulary.decode(conditions) == [texts[number] for number in classes]
    assert torch.equal(data.condition_of(torch.tensor([0, 3, 4])), tokens[[0, 1, 0]])
    batch = next(iter(data.train_dataloader()))
    trained = data.conditions("train")
    assert trained is not None and torch.equal(batch["condition"], trained[batch["index"]])
    assert data.provenance("train") == labelled.provenance("train"), "what an image is called is not in its pixels"


@pytest.mark.parametrize("in_memory", [True, False])
def test_images_may_stay_on_disk(image_tree: Callable[..., Path], make_datamodule: Make, in_memory: bool) -> None:
    root = image_tree({"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1})
    data = make_datamodule(
        {"name": "image_folder", "root": str(root), "resolution": 8, "captions": "classes", "in_memory": in_memory}
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["condition"].shape == (4, 5) and batch["condition"].dtype == torch.int64


def test_arrays_have_captions_as_well(make_datamodule: Make) -> None:
    data = make_datamodule({"name": "digits", "captions": "classes"})
    data.setup("test")
    assert data.meaning is not None and data.conditions("test") is not None
    vocabulary = Vocabulary(data.meaning["words"], data.meaning["caption_length"])
    labels = make_datamodule({"name": "digits"}).conditions("test")
    assert labels is not None
    assert vocabulary.decode(data.conditions("test")) == [f"a photograph of a {label}" for label in labels]


def test_words_of_a_class() -> None:
    assert captions_of_classes(["n01440764", "Great White-Shark", "Male, not Smiling", "ÉCOLE"]) == [
        "a photograph of a n01440764",
        "a photograph of a great white shark",
        "a photograph of a male not smiling",
        "a photograph of a école",
    ]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"captions": "yes"}, "dataset.captions=yes must be classes, of images, or null, which takes labels"),
        ({"captions": "classes"}, "dataset.captions=classes calls images by their classes, and dataset mine has none;"),
    ],
)
def test_what_has_no_classes_is_one_sentence(
    image_tree: Callable[..., Path], make_datamodule: Make, config: dict[str, Any], sentence: str
) -> None:
    root = image_tree({"train": 2, "test": 1})
    with pytest.raises(UserError) as refusal:
        make_datamodule(
            {"name": "image_folder", "label": "mine", "root": str(root), "resolution": 8, **config}
        ).prepare_data()
    assert str(refusal.value).startswith(sentence)


def test_a_class_needs_a_word() -> None:
    with pytest.raises(UserError, match='finds no word in the class "---"'):
        captions_of_classes(["cat", "---"])
    with pytest.raises(UserError, match=r"dataset\.captions=classes must be classes, of images"):
        build_datamodule(
            {"name": "points2d", "captions": "classes"},
            **{"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "seed": 0, "cache_dir": Path("cache")},
        )
