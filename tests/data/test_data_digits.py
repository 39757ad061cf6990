"""The digits: real values, rounded, and a split that never moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ddim.data import ImageDataModule, digits


def all_images(data: ImageDataModule, split: str) -> torch.Tensor:
    return torch.cat(list(data.images(split, 500)))


def test_splits_divide_the_1797_images_by_class(make_datamodule: Callable[..., ImageDataModule]) -> None:
    data = make_datamodule({"name": "digits"})
    data.prepare_data()
    train, test = all_images(data, "train"), all_images(data, "test")
    assert train.shape == (1437, 1, 8, 8) and test.shape == (360, 1, 8, 8)
    assert train.dtype == torch.uint8
    assert (data.name, data.space.shape) == ("digits", (1, 8, 8))

    table = load_digits()
    label_of: dict[bytes, int] = {}
    expected = np.array([[int(v * 255 / 16 + 0.5) for v in image.ravel()] for image in table.images], dtype=np.uint8)
    for image, label in zip(expected, table.target, strict=True):
        label_of[image.tobytes()] = int(label)
    assert len(label_of) == 1797
    found = [bytes(image.numpy().tobytes()) for image in torch.cat([train, test])]
    assert sorted(found) == sorted(label_of)

    counts = np.bincount([label_of[key] for key in found[1437:]], minlength=10)
    share = np.bincount(table.target) * 360 / 1797
    assert (np.abs(counts - share) < 1).all()


def test_the_split_is_pinned(make_datamodule: Callable[..., ImageDataModule]) -> None:
    first, other_seed = make_datamodule({"name": "digits"}), make_datamodule({"name": "digits"}, seed=5)
    assert first.provenance("train") == other_seed.provenance("train")
    assert first.provenance("train")["fingerprint"] == "bbc38a77dc4d0739"
    assert first.provenance("test")["fingerprint"] == "40a68871a5133e25"


def test_the_table_is_scikit_learns_wherever_it_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    values, labels = digits.scikit_learns_table()
    expected = load_digits(return_X_y=True)
    assert np.array_equal(values, expected[0]) and np.array_equal(labels, expected[1])
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    values, labels = digits.scikit_learns_table()
    assert np.array_equal(values, expected[0]) and np.array_equal(labels, expected[1])
