"""Mean and covariance of a stream, in float64, without keeping it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class RunningMoments:
    """Mean and unbiased covariance of the rows seen so far (Chan, Golub, LeVeque, 1979: pairwise update).

    Splitting the same rows into other batches changes the result by rounding of float64 only.
    """

    dim: int
    count: int = 0
    mean: NDArray[np.float64] = field(init=False)
    scatter: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.dim)
        self.scatter = np.zeros((self.dim, self.dim))

    def update(self, features: Tensor) -> None:
        """Adds rows. features: (N, D), any float type."""
        rows = features.detach().cpu().double().numpy()
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"expected features of shape (N, {self.dim}), got {rows.shape}")
        if len(rows) == 0:
            return
        mean = rows.mean(axis=0)
        centred = rows - mean
        self._join(len(rows), mean, centred.T @ centred)

    def merge(self, other: RunningMoments) -> None:
        """Adds the rows that `other` has seen."""
        if other.dim != self.dim:
            raise ValueError(f"moments of {other.dim} dimensions cannot join those of {self.dim}")
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        shift, total = mean - self.mean, self.count + count
        self.scatter += scatter
        self.scatter += np.outer(shift, shift * (self.count * count / total))
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def __len__(self) -> int:
        return self.count

    def covariance(self) -> NDArray[np.float64]:
        """(D, D), divided by N - 1. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}")
        return self.scatter / (self.count - 1)


def symmetric_root(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric root of a covariance (D, D). Eigenvalues that rounding has made negative count as 0."""
    values, vectors = torch.linalg.eigh(torch.from_numpy((sigma + sigma.T) / 2))
    return ((vectors * values.clamp(min=0).sqrt()) @ vectors.T).numpy()
