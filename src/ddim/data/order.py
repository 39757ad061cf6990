"""Which images form which batch: pure functions of (seed, batch number, rank, number of ranks)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Sampler

# one image to fetch: its index in the split, and whether to mirror it
Item = tuple[int, bool]


@dataclass(frozen=True)
class TrainingOrder:
    """The endless sequence of training batches.

    Batch number g is batch g % batches_per_epoch of epoch g // batches_per_epoch. Every epoch has its own permutation
    and its own mirrored half, both drawn from (seed, epoch). The global batch is `world_size` slices of `batch_size`;
    the last, incomplete one of an epoch is dropped.
    """

    num_images: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    random_flip: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.rank < self.world_size:
            raise ValueError(f"batch_size={self.batch_size}, rank={self.rank} of {self.world_size} is not possible")
        if self.batches_per_epoch < 1:
            raise ValueError(f"{self.num_images} images do not fill one batch of {self.batch_size * self.world_size}")

    @property
    def batches_per_epoch(self) -> int:
        return self.num_images // (self.batch_size * self.world_size)

    def batch(self, number: int) -> list[Item]:
        """This rank's items of batch `number` >= 0."""
        epoch, position = divmod(number, self.batches_per_epoch)
        permutation, flips = _epoch(self.seed, epoch, self.num_images)
        start = (position * self.world_size + self.rank) * self.batch_size
        indices = permutation[start : start + self.batch_size]
        flip = flips[indices] if self.random_flip else torch.zeros_like(indices, dtype=torch.bool)
        return list(zip(indices.tolist(), flip.tolist(), strict=True))


@lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, num_images: int) -> tuple[Tensor, Tensor]:
    """A permutation of the images, and for each image whether this epoch mirrors it."""
    key = hashlib.sha256(f"training order {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
    flips = torch.rand(num_images, generator=generator) < 0.5
    return torch.randperm(num_images, generator=generator), flips


class TrainingBatches(Sampler[list[Item]]):
    """Batch sampler over one epoch's worth of a :class:`TrainingOrder`, from where training stands.

    `next_batch` returns the number of the batch that comes next in training. It is asked at every `iter()`, so that
    the order follows the batches really trained on and not an epoch counter. An iteration that begins in mid epoch
    runs on into the next one; its consumer stops where its own epoch ends.
    """

    def __init__(self, order: TrainingOrder, next_batch: Callable[[], int]) -> None:
        self.order = order
        self._next_batch = next_batch

    def __len__(self) -> int:
        return self.order.batches_per_epoch

    def __iter__(self) -> Iterator[list[Item]]:
        # not a generator function: the position is read when the iterator is made, with and without workers
        start = self._next_batch()
        return (self.order.batch(number) for number in range(start, start + len(self)))


class EvaluationBatches(Sampler[list[Item]]):
    """Batch sampler over the images of these numbers: each image once over all ranks, in order, never mirrored."""

    def __init__(self, numbers: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self._indices = numbers[rank::world_size]
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(0, len(self._indices), self._batch_size):
            yield [(index, False) for index in self._indices[start : start + self._batch_size]]
