"""Builds the datamodule of a dataset from its `dataset.*` settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddim.data.captioned_digits import CaptionedDigits
from ddim.data.celeba import CelebA
from ddim.data.cifar10 import Cifar10
from ddim.data.class_captions import CLASSES, ClassCaptions
from ddim.data.datamodule import ImageDataModule, Source, kind_of
from ddim.data.digits import Digits
from ddim.data.image_folder import ImageFolder
from ddim.data.options import Options
from ddim.data.points2d import Points2d
from ddim.data.signals import Signals
from ddim.data.space import IMAGES, space_from
from ddim.data.tabular import Tabular
from ddim.errors import UserError, at_least

# What a dataset's configuration says of the sampler and the evaluation, not of the images.
DATASET_DEFAULTS = ("features", "metrics", "grid_images", "tau", "table", "predicts", "parts", "likelihood_images")
SOURCES: dict[str, Callable[[Options, Path], Source]] = {
    "digits": Digits,
    "cifar10": Cifar10,
    "celeba": CelebA,
    "image_folder": ImageFolder,
    "points2d": Points2d,
    "tabular": Tabular,
    "signals": Signals,
    "captioned_digits": CaptionedDigits,
}
# A live view: what is registered later is in it.
DATASETS = SOURCES.keys()
_PHOTOGRAPHS = ("cifar10", "celeba")
_ARRAYS = ("digits", "cifar10", "captioned_digits")


def build_datamodule(
    config: Mapping[str, Any],
    *,
    batch_size: int,
    eval_batch_size: int | Callable[[tuple[int, ...]], int],
    num_workers: int,
    seed: int,
    cache_dir: Path,
    test_limit: int | None = None,
    stated: Mapping[str, Any] | None = None,
    origin: str = "",
) -> ImageDataModule:
    """Build the datamodule of `config["name"]`, one of DATASETS, from the `dataset.*` settings; reads no image.

    Args:
        batch_size, eval_batch_size: samples per process and batch; the latter may be a function of the shape of one.
        num_workers: decoding processes, used only when the images do not live in memory.
        seed: decides the training order and the mirrored images.
        cache_dir: default place of downloads, and of what reading the image files has shown.
        test_limit: how many images `test_dataloader` has, at most.
        stated: how a checkpoint, called `origin`, says that data were standardised (`Space.stated`); None learns it
            from the training split.

    Raises:
        UserError: a setting is unknown or wrong; the sentence names its key.
    """
    options = Options(config)
    name = options.choice("name", None, DATASETS)
    source = SOURCES[name](options, Path(cache_dir))
    are_images = kind_of(source) == IMAGES
    in_memory: Any = True
    random_flip = False
    if are_images:
        # images that come as arrays are in memory anyway
        in_memory = options.choice("in_memory", "auto", ("auto", True) if name in _ARRAYS else ("auto", True, False))
        random_flip = options.boolean("random_flip", name in _PHOTOGRAPHS)
    label, captions, encoder = (options.text(key, None) for key in ("label", "captions", "encoder"))
    options.finish()
    if label in DATASETS and label != name:
        raise UserError(
            f"dataset.label={label} is the name of another data set than dataset.name={name}; take one of its own"
        )
    # Of a checkpoint of other data than what was typed over it, nothing is known.
    same = stated is not None and stated.get("kind") == kind_of(source)
    datamodule = ImageDataModule(
        _called(source, captions, encoder, label or name),
        name=label or name,
        batch_size=batch_size,
        eval_batch_size=1,
        num_workers=num_workers,
        seed=seed,
        random_flip=random_flip,
        in_memory=in_memory,
        test_limit=test_limit,
        space=space_from(stated, origin) if stated is not None and same else None,
    )
    at_once = eval_batch_size(datamodule.space.shape) if callable(eval_batch_size) else eval_batch_size
    _check_sizes(batch_size, at_once, num_workers)
    datamodule.eval_batch_size = at_once
    return datamodule


def _called(source: Source, captions: str | None, encoder: str | None, name: str) -> Source:
    """The data set, with captions in place of labels where they are asked for.

    Raises `UserError` for any `captions` but CLASSES, and for an encoder of none.
    """
    if captions is None:
        if encoder is not None:
            raise UserError(
                f"denoiser.encoder={encoder} reads captions, and dataset {name} has none; add dataset.captions=classes"
            )
        return source
    if captions != CLASSES or kind_of(source) != IMAGES:
        raise UserError(f"dataset.captions={captions} must be {CLASSES}, of images, or null, which takes labels")
    return ClassCaptions(source, name, encoder)


def _check_sizes(batch_size: int, eval_batch_size: int, num_workers: int) -> None:
    for key, value, minimum in (
        ("batch_size", batch_size, 1),
        ("eval_batch_size", eval_batch_size, 1),
        ("num_workers", num_workers, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UserError(f"{key}={value} must be a whole number of at least {minimum}")


def load_data(
    dataset: Mapping[str, Any], *, stage: str, seed: int, cache_dir: str | Path, **loader: Any
) -> ImageDataModule:
    """The data set, downloaded and checked.

    Args:
        stage: "fit" reads both splits, "test" the held-out one.
        cache_dir: of all runs; downloads go to its folder `data`.
        loader: as `build_datamodule` takes it.

    Raises:
        UserError: it is not to be had.
    """
    settings = {key: value for key, value in dataset.items() if key not in DATASET_DEFAULTS}
    datamodule = build_datamodule(settings, seed=seed, cache_dir=Path(cache_dir) / "data", **loader)
    datamodule.prepare_data()
    datamodule.setup(stage)
    return datamodule


@dataclass
class LoaderConfig:
    """How images are put into batches.

    Attributes:
        batch_size: images per device and step.
        eval_batch_size: images per device in validation, and in the sampling that goes on while training.
        num_workers: decoding processes, used only when the images do not fit into memory.
    """

    batch_size: int = 128
    eval_batch_size: int = 500
    num_workers: int = 2

    def check(self) -> None:
        at_least("loader.batch_size", self.batch_size, 1)
        at_least("loader.eval_batch_size", self.eval_batch_size, 1)
        at_least("loader.num_workers", self.num_workers, 0)
