"""The LightningDataModule that serves every dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytorch_lightning as pl
from torch import Tensor

from ddim.data.conditions import ConditionOf, in_turn
from ddim.data.loaders import Batches, InMemoryLoader, OnDiskImages, WorkerLoader
from ddim.data.memory import available_memory
from ddim.data.order import EvaluationBatches, TrainingBatches, TrainingOrder
from ddim.data.space import IMAGES, Pixels, Space, Standardised
from ddim.data.splits import ArraySplit, FileSplit, spread
from ddim.errors import UserError

SPLITS = ("train", "test")
# Activations, gradients and the evaluation's features need the rest.
MEMORY_SHARE = 4


class Source(Protocol):
    """A dataset that knows where its samples are.

    One whose images are of classes, or have other conditions, says what they mean in `meaning`, see
    `ImageDataModule.meaning`, and its splits have `conditions`. `condition_of` says which ones samples are drawn with,
    where these are no classes.


    Images have `channels` and `resolution`. What is no image has `kind`, one of `ddim.data.space.DIMENSIONS`, and
    float32 arrays of that many dimensions; where its exact density is known, `log_density` of stored values.
    """

    def prepare(self) -> None: ...

    def open(self, split: str) -> ArraySplit | FileSplit: ...

    def details(self) -> dict[str, Any]: ...


def kind_of(source: Source) -> str:
    """What a sample of it is called."""
    return getattr(source, "kind", IMAGES)


class ImageDataModule(pl.LightningDataModule):
    """Training batches in an order that survives interruption, evaluation batches that hold each image once.

    Batches are {"image": as stored (B, ...), uint8 (B, C, H, W) of images, "index": int64 (B,)}, with "condition",
    int64 (B, ...), where the data set has conditions: (B,) for classes, (B, L) for the tokens of captions. The Trainer
    must be made with `use_distributed_sampler=False`: images are divided among ranks here, without the repeats of
    `DistributedSampler`.
    """

    # with fewer test images than ranks some ranks have none, and that is right
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int,
        random_flip: bool,
        in_memory: bool | str,
        test_limit: int | None = None,
        space: Space | None = None,
    ) -> None:
        super().__init__()
        self.name: str = name
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.random_flip = random_flip
        self.test_limit = test_limit
        self._source = source
        self._in_memory = in_memory
        self._space = space
        self._splits: dict[str, ArraySplit | FileSplit] = {}

    @property
    def space(self) -> Space:
        """What a sample is: pixels, or numbers that are standardised as a checkpoint states or as the training split
        is. Raises `UserError` where that split has another shape than the checkpoint states."""
        if self._space is None:
            self._space = self._learnt()
        return self._space

    def _learnt(self) -> Space:
        kind = kind_of(self._source)
        if kind == IMAGES:
            source: Any = self._source
            return Pixels((source.channels, source.resolution, source.resolution))
        stored = self._split("train").images
        assert stored is not None
        return Standardised.learnt(kind, stored)

    @property
    def log_density(self) -> Callable[[Tensor], Tensor] | None:
        """The exact log-density of stored values (N, *shape), in nats; None where nobody knows it."""
        return getattr(self._source, "log_density", None)

    def prepare_data(self) -> None:
        """Download what is missing and check that both splits have images.

        Raises:
            UserError: the data are not there and cannot be got.
        """
        self._source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the splits that the stage needs: both for "fit" and None, else only "test".

        Raises:
            UserError: an image cannot be used, or the training split is smaller than one batch.
        """
        self._check_shape()
        if stage in (None, "fit"):
            self._training_order()
            self._make_ready("train")
        self._make_ready("test")

    def train_dataloader(self) -> InMemoryLoader | WorkerLoader:
        """Shuffled training batches, from where the attached trainer stands in its training."""
        batches = TrainingBatches(self._training_order(), self._next_batch)
        return self._loader("train", batches)

    def val_dataloader(self) -> InMemoryLoader | WorkerLoader:
        """The test split in order, this rank's share of it."""
        return self._evaluation_loader(self.num_images("test"))

    def test_dataloader(self) -> InMemoryLoader | WorkerLoader:
        """`test_limit` images evenly over the test split, all where that is None; this rank's share of them."""
        count = self.num_images("test")
        return self._evaluation_loader(count if self.test_limit is None else min(self.test_limit, count))

    def _evaluation_loader(self, count: int) -> InMemoryLoader | WorkerLoader:
        rank, world_size = self._rank_and_world_size()
        chosen = spread(self.num_images("test"), count)
        return self._loader("test", EvaluationBatches(chosen, self.eval_batch_size, rank, world_size))

    def num_images(self, split: str) -> int:
        """Number of images in "train" or "test"."""
        return len(self._split(split))

    @property
    def meaning(self) -> dict[str, Any] | None:
        """What conditions mean, plain data that checkpoints keep: {"classes": [names]}; None where there are none."""
        return getattr(self._source, "meaning", None)

    def conditions(self, split: str) -> Tensor | None:
        """The conditions of a split's images in its order, int64 (N, ...); None where there are none."""
        return None if self.meaning is None else self._split(split).conditions

    @property
    def condition_of(self) -> ConditionOf | None:
        """Sample numbers (N,) -> the conditions (N, ...) that they are drawn with: classes in turn, or the source's.

        None where there are none.
        """
        if self.meaning is None:
            return None
        of_source: ConditionOf | None = getattr(self._source, "condition_of", None)
        if of_source is None:
            return in_turn(len(self.meaning["classes"]))
        # A function and not a method: whoever holds it may be copied, and the source with its images should not be.
        return lambda numbers: of_source(numbers)

    def images(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Tensor]:
        """Batches (B, ...) as stored, uint8 (B, C, H, W) of images, of a split in its fixed order, never mirrored.

        limit: how many at most, evenly over the split.
        """
        if batch_size < 1 or (limit is not None and limit < 0):
            raise ValueError(f"batch_size={batch_size} must be at least 1 and limit={limit} at least 0")
        count = self.num_images(split)
        return self._split(split).stream(batch_size, count if limit is None else min(limit, count))

    def provenance(self, split: str) -> dict[str, Any]:
        """What identifies the pixels of a split; JSON-able, free of paths.

        `fingerprint` is a sha256 (16 hex digits) over the pixels, or over the files' bytes and the decoder's settings.
        """
        images = self._split(split)
        return {
            "dataset": self.name,
            "split": split,
            "count": len(images),
            **self._shape(),
            **self._source.details(),
            **images.provenance(),
        }

    def _check_shape(self) -> None:
        stored = self._split("test").images if self.space.kind != IMAGES else None
        if stored is not None and tuple(stored.shape[1:]) != self.space.shape:
            then, now = ("x".join(map(str, shape)) for shape in (self.space.shape, stored.shape[1:]))
            raise UserError(
                f"dataset {self.name} has {self.space.kind} of {now}, the checkpoint was trained on {then}; "
                "give the data that it was trained on"
            )

    def _shape(self) -> dict[str, Any]:
        shape = self.space.shape
        if self.space.kind == IMAGES:
            return {"channels": shape[0], "resolution": shape[-1]}
        return {"kind": self.space.kind, "shape": list(shape)}

    def _split(self, split: str) -> ArraySplit | FileSplit:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not one of {', '.join(SPLITS)}")
        if split not in self._splits:
            self._splits[split] = self._source.open(split)
        return self._splits[split]

    def _make_ready(self, split: str) -> None:
        """Images in memory, or, where they do not fit, every file known to be usable."""
        images = self._split(split)
        if isinstance(images, FileSplit):
            if self._fits_in_memory():
                images.load()
            else:
                images.inspect()

    def _fits_in_memory(self) -> bool:
        if self._in_memory == "auto":
            processes = self.trainer.num_devices if self.trainer is not None else 1
            return self._num_bytes() * processes < available_memory() / MEMORY_SHARE
        return bool(self._in_memory)

    def _num_bytes(self) -> int:
        splits = [self._split(split) for split in SPLITS]
        return sum(split.num_bytes for split in splits if isinstance(split, FileSplit))

    def _loader(self, split: str, batches: Batches) -> InMemoryLoader | WorkerLoader:
        self._make_ready(split)
        images = self._split(split)
        conditions = self.conditions(split)
        if images.images is not None:
            return InMemoryLoader(images.images, batches, conditions)
        assert isinstance(images, FileSplit)
        return WorkerLoader(OnDiskImages(images.files(), images.decoder, conditions), batches, self.num_workers)

    def _training_order(self) -> TrainingOrder:
        rank, world_size = self._rank_and_world_size()
        count = self.num_images("train")
        if count < self.batch_size * world_size:
            processes = f" on each of {world_size} processes" if world_size > 1 else ""
            raise UserError(
                f"loader.batch_size={self.batch_size}{processes} is larger than the training split of "
                f"{self.name}, which has {count} images: lower it to at most {count // world_size}"
            )
        return TrainingOrder(count, self.batch_size, self.seed, rank, world_size, self.random_flip)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _next_batch(self) -> int:
        """Number of training batches that have reached the weights, over all epochs and resumptions.

        `total.processed` is the one counter of Lightning that is right wherever a checkpoint was written: `completed`
        lags by one in those of `on_train_batch_end`, and the epoch counter runs ahead after a stop in mid epoch.
        """
        if self.trainer is None:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        processed: int = total.processed
        overfit: int | float = getattr(self.trainer, "overfit_batches", 0)
        if overfit:
            length = self._training_order().batches_per_epoch
            processed %= min(length, overfit) if isinstance(overfit, int) else max(1, int(length * overfit))
        return processed
