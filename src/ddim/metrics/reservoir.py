"""A random subset of a stream of unknown length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Reservoir:
    """A uniform random subset of at most `size` rows of a stream (Waterman's algorithm R), without knowing its length.

    One random number per row: batching does not change the choice.
    """

    def __init__(self, size: int, dim: int) -> None:
        self.size = size
        self.seen = 0
        self.parts: list[NDArray[np.float32]] = []
        self.buffer = np.empty((0, dim), np.float32)
        # The first rows fill the slots in order; later ones replace.
        self.positions = np.arange(size)
        self.rng = np.random.default_rng(0)

    def add(self, rows: NDArray[np.float32]) -> None:
        indices = np.arange(self.seen, self.seen + len(rows))
        slots = np.floor(self.rng.random(len(rows)) * (indices + 1)).astype(np.int64)
        filling = indices < self.size
        if filling.any():
            self.parts.append(rows[filling])
        for row, slot, index in zip(rows[~filling], slots[~filling], indices[~filling], strict=True):
            if slot < self.size:
                self.rows()[slot] = row
                self.positions[slot] = index
        self.seen += len(rows)

    def rows(self) -> NDArray[np.float32]:
        if self.parts:
            self.buffer = np.concatenate([self.buffer, *self.parts])
            self.parts = []
        return self.buffer

    def indices(self) -> NDArray[np.int64]:
        """Position in the stream of each of `rows()`."""
        return self.positions[: self.seen]
