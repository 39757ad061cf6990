"""Small image files, and datamodules over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddim.data import ImageDataModule, build_datamodule


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make_datamodule(cache_dir: Path) -> Callable[..., ImageDataModule]:
    """build_datamodule with small defaults: dataset settings as a mapping, the rest by keyword."""

    def make(config: dict[str, Any], **arguments: Any) -> ImageDataModule:
        defaults: dict[str, Any] = {
            "batch_size": 4,
            "eval_batch_size": 3,
            "num_workers": 0,
            "seed": 0,
            "cache_dir": cache_dir,
        }
        return build_datamodule(config, **(defaults | arguments))

    return make


@pytest.fixture
def random_pixels() -> Callable[..., np.ndarray]:
    """uint8 noise (height, width[, channels]) that depends only on the seed and the shape."""

    def make(seed: int, *shape: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    return make


@pytest.fixture
def image_tree(tmp_path: Path, random_pixels: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """Write 8x8 RGB PNG files of noise, `counts` of them per folder, below tmp_path/images."""

    def make(counts: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
        root = tmp_path / "images"
        for number, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = random_pixels(1000 * number + index, size[1], size[0], 3)
                Image.fromarray(pixels).save(root / folder / f"{index:03d}.png")
        return root

    return make
