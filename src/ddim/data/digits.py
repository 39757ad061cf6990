"""scikit-learn's 1,797 real handwritten digits, 8x8, with a fixed train/test split."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ddim.data.options import Options
from ddim.data.splits import ArraySplit

NUM_TEST = 360
SPLIT_SEED = 0


class Digits:
    """1,437 training and 360 test images, stratified by digit; values 0..16 scaled to 0..255 and rounded."""

    meaning: ClassVar[dict[str, Any]] = {"classes": [str(digit) for digit in range(10)]}

    def __init__(self, options: Options, cache_dir: Path) -> None:
        self.channels = options.choice("channels", 1, (1,))
        self.resolution = options.choice("resolution", 8, (8,))

    def prepare(self) -> None:
        """Nothing to do: the images come with scikit-learn."""

    def open(self, split: str) -> ArraySplit:
        """uint8 (N, 1, 8, 8), "train" or "test" in the order of scikit-learn's table, and which digit each is."""
        images, digits, is_test = self._table
        chosen = is_test if split == "test" else ~is_test
        return ArraySplit(images[chosen], digits[chosen])

    def details(self) -> dict[str, Any]:
        return {"split_rule": f"stratified by digit, seed {SPLIT_SEED}"}

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, which digit each is, and whether it is of the test split."""
        values, digits = scikit_learns_table()
        images = np.floor(values.reshape(-1, 1, 8, 8) * (255 / 16) + 0.5).astype(np.uint8)
        return torch.from_numpy(images), torch.from_numpy(digits), torch.from_numpy(_test_mask(digits))


def scikit_learns_table() -> tuple[np.ndarray, np.ndarray]:
    """Its images, 0 to 16, (1797, 64) float64, and which digit each is, (1797,) int64."""
    package = find_spec("sklearn")
    # Read as scikit-learn would, whose import takes thirty times as long.
    for folder in (package and package.submodule_search_locations) or []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    values, digits = load_digits(return_X_y=True)
    return values, digits.astype(np.int64)


def _test_mask(labels: np.ndarray) -> np.ndarray:
    """True for the NUM_TEST test images: each class gets its share, the remainders go to the largest fractions."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = NUM_TEST * counts / counts.sum()
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: NUM_TEST - quota.sum()]] += 1
    # RandomState rather than Generator: NumPy guarantees that its stream never changes.
    random = np.random.RandomState(SPLIT_SEED)
    mask = np.zeros(len(labels), dtype=bool)
    for label, size in zip(classes, quota, strict=True):
        mask[random.permutation(np.flatnonzero(labels == label))[:size]] = True
    return mask
