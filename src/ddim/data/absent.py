"""A data set known by its description alone: samples are made and measured as its images are; none is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from ddim.data.datamodule import ImageDataModule
from ddim.errors import UserError


class _Nowhere:
    """A source without images."""

    def __init__(self, channels: int, resolution: int, missing: str) -> None:
        self.channels = channels
        self.resolution = resolution
        self.missing = missing

    def prepare(self) -> None:
        """There is nothing to prepare."""

    def open(self, split: str) -> NoReturn:
        raise UserError(self.missing)

    def details(self) -> dict[str, Any]:
        return {}


class _OneBatchOfNone:
    """A single batch, with no images of this shape in it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield {"image": torch.empty(0, *self.shape, dtype=torch.uint8), "index": torch.empty(0, dtype=torch.int64)}


class AbsentImages(ImageDataModule):
    """What an evaluation asks of a data set besides its images.

    Args:
        described: provenance of a split, as `ImageDataModule.provenance` gives it.
        eval_batch_size: of samples.
        missing: the sentence with which images are refused, to whoever asks for one.
    """

    def __init__(self, described: Mapping[str, Any], *, eval_batch_size: int, missing: str) -> None:
        super().__init__(
            _Nowhere(described["channels"], described["resolution"], missing),
            name=described["dataset"],
            batch_size=1,
            eval_batch_size=eval_batch_size,
            num_workers=0,
            seed=0,
            random_flip=False,
            in_memory="auto",
        )

    def setup(self, stage: str | None = None) -> None:
        """Nothing is read."""

    def test_dataloader(self) -> _OneBatchOfNone:  # type: ignore[override]
        """Lightning leaves out a test without batches, and what is done at its end."""
        return _OneBatchOfNone(self.space.shape)
