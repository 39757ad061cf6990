"""Builds the datamodule of a dataset from its `dataset.*` settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddim.data.celeba import CelebA
from ddim.data.cifar10 import Cifar10
from ddim.data.datamodule import ImageDataModule, Source
from ddim.data.digits import Digits
from ddim.data.image_folder import ImageFolder
from ddim.data.options import Options
from ddim.errors import UserError

SOURCES: dict[str, Callable[[Options, Path], Source]] = {
    "digits": Digits,
    "cifar10": Cifar10,
    "celeba": CelebA,
    "image_folder": ImageFolder,
}
# A live view: what is registered later is in it.
DATASETS = SOURCES.keys()
_PHOTOGRAPHS = ("cifar10", "celeba")
_ARRAYS = ("digits", "cifar10")


def build_datamodule(
    config: Mapping[str, Any], *, batch_size: int, eval_batch_size: int, num_workers: int, seed: int, cache_dir: Path
) -> ImageDataModule:
    """Build the datamodule of `config["name"]`, one of DATASETS, from the `dataset.*` settings; reads no image.

    Args:
        batch_size, eval_batch_size: images per process and batch.
        num_workers: decoding processes, used only when the images do not live in memory.
        seed: decides the training order and the mirrored images.
        cache_dir: default place of downloads, and of what reading the image files has shown.

    Raises:
        UserError: a setting is unknown or wrong; the sentence names its key.
    """
    for key, value, minimum in (
        ("batch_size", batch_size, 1),
        ("eval_batch_size", eval_batch_size, 1),
        ("num_workers", num_workers, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UserError(f"{key}={value} must be a whole number of at least {minimum}")
    options = Options(config)
    name = options.choice("name", None, DATASETS)
    source = SOURCES[name](options, Path(cache_dir))
    # images that come as arrays are in memory anyway
    in_memory = options.choice("in_memory", "auto", ("auto", True) if name in _ARRAYS else ("auto", True, False))
    random_flip = options.boolean("random_flip", name in _PHOTOGRAPHS)
    label = options.text("label", None)
    options.finish()
    if label in DATASETS and label != name:
        raise UserError(
            f"dataset.label={label} is the name of another data set than dataset.name={name}; take one of its own"
        )
    return ImageDataModule(
        source,
        name=label or name,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        num_workers=num_workers,
        seed=seed,
        random_flip=random_flip,
        in_memory=in_memory,
    )
