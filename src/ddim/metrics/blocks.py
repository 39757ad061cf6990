"""Samples in blocks by their number, and the moments of every block: what a block jackknife needs of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.metrics.moments import RunningMoments

# The relative error of a jackknife's standard deviation is (2 (B - 1))^(-1/2): 24 % with 10 blocks, 16 % with 20. Time
# and memory grow with B; 10 blocks of 2048 dimensions are 336 MB and 10 eigenvalue problems.
BLOCKS = 10
# Joining moments touches whole matrices: 10 blocks that join every batch of 50 rows of 2048 dimensions take 25 times
# as long as one that does.
PENDING_ROWS = 2048


def block_of(numbers: NDArray[np.int64], blocks: int = BLOCKS) -> NDArray[np.int64]:
    """The block, 0 to blocks - 1, of each sample by its number alone: int64 (N,) -> int64 (N,).

    Every run of `blocks` numbers has one sample in each block, in the order of a hash of the number. Labels and
    measurements are functions of the number as well, and may be periodic in it: with i mod B, labels i mod 10 would
    fill each of 10 blocks with a class of its own, and what classes differ by would be taken for a deviation.

    Raises ValueError for fewer than 2 blocks.
    """
    if blocks < 2:
        raise ValueError(f"blocks={blocks} must be at least 2")
    numbers = np.asarray(numbers, np.int64)
    run = (numbers // blocks * blocks)[:, None] + np.arange(blocks)
    # The hash is one to one: there are no ties.
    return (_hash(run) < _hash(numbers)[:, None]).sum(axis=1)


def block_sizes(count: int, blocks: int = BLOCKS) -> NDArray[np.int64]:
    """How many of the samples 0 ... count - 1 are in each block: int64 (blocks,); they differ by at most one."""
    whole, rest = divmod(count, blocks)
    last = block_of(np.arange(count - rest, count), blocks)
    return whole + np.bincount(last, minlength=blocks)


def _hash(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea, Flood, 2014)."""
    mixed = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass
class BlockMoments:
    """`RunningMoments` of each of B blocks of samples. Memory does not depend on N: B D^2 float64, and a few rows.

    Batches, their order and the division among processes change the result by rounding of float64 only. That the
    samples are 0 ... N - 1, each once, is the caller's to see to; leaving a block out counts on it.
    """

    dim: int
    blocks: int = BLOCKS
    _moments: list[RunningMoments] = field(init=False, repr=False)
    _pending: list[tuple[Tensor, NDArray[np.int64]]] = field(init=False, repr=False, default_factory=list)
    _count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise ValueError(f"blocks={self.blocks} must be at least 2")
        self._moments = [RunningMoments(self.dim) for _ in range(self.blocks)]

    @classmethod
    def of(cls, features: Tensor, blocks: int = BLOCKS) -> BlockMoments:
        """Of samples 0 ... N - 1 in their order: features (N, D), any float type."""
        found = cls(features.shape[1], blocks)
        found.update(features, torch.arange(len(features)))
        return found

    def update(self, features: Tensor, numbers: Tensor) -> None:
        """Adds rows. features: (N, D), any float type; numbers: int (N,), which samples they are of."""
        if features.ndim != 2 or features.shape[1] != self.dim or numbers.shape != (len(features),):
            raise ValueError(
                f"expected features of shape (N, {self.dim}) and N numbers, got {tuple(features.shape)} and "
                f"{tuple(numbers.shape)}"
            )
        # A caller may use its memory again before the rows are needed.
        self._pending.append((features.detach().cpu().clone(), block_of(numbers.cpu().numpy(), self.blocks)))
        self._count += len(features)
        if sum(len(rows) for rows, _ in self._pending) >= PENDING_ROWS:
            self._join_pending()

    def merge(self, other: BlockMoments) -> None:
        """Adds the samples that `other` has seen."""
        if (other.dim, other.blocks) != (self.dim, self.blocks):
            raise ValueError(
                f"{other.blocks} blocks of {other.dim} dimensions cannot join {self.blocks} of {self.dim} dimensions"
            )
        for mine, theirs in zip(self.moments, other.moments, strict=True):
            mine.merge(theirs)
        self._count += len(other)

    def __len__(self) -> int:
        return self._count

    @property
    def moments(self) -> list[RunningMoments]:
        """Those of each block."""
        self._join_pending()
        return self._moments

    def total(self) -> RunningMoments:
        """Those of all samples."""
        whole = RunningMoments(self.dim)
        for part in self.moments:
            whole.merge(part)
        return whole

    def leave_one_out(self) -> Iterator[RunningMoments]:
        """Those of all samples but the ones of block j, for each j: one set of matrices at a time."""
        whole = self.total()
        for part in self.moments:
            yield _without(whole, part)

    def _join_pending(self) -> None:
        if not self._pending:
            return
        rows = torch.cat([rows for rows, _ in self._pending])
        belongs = torch.from_numpy(np.concatenate([block for _, block in self._pending]))
        self._pending.clear()
        for number, moments in enumerate(self._moments):
            moments.update(rows[belongs == number])


def _without(whole: RunningMoments, part: RunningMoments) -> RunningMoments:
    """The inverse of `RunningMoments.merge`. A tenth is taken away: no digit is lost to speak of."""
    rest = RunningMoments(whole.dim)
    rest.count = whole.count - part.count
    if rest.count:
        rest.mean = whole.mean + (whole.mean - part.mean) * (part.count / rest.count)
        shift = rest.mean - part.mean
        rest.scatter = whole.scatter - part.scatter
        rest.scatter -= np.outer(shift, shift * (part.count * rest.count / whole.count))
    return rest
