"""Kernel Inception distance (Binkowski et al., 2018), with what depends on the reference alone kept.

torch-fidelity's numbers to the last bit: the same subsets, arithmetic and order of sums. Its function allocates every
matrix anew and repeats the reference's own kernel at each call, which is half of the time at 64 dimensions.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

DEGREE, OFFSET = 3, 1
# The sum of the reference's kernel off the diagonal, by subset; the key says which subsets these are.
KernelSums = MutableMapping[tuple[int, int, int, int], list[np.float32]]


def kernel_distance(
    generated: Tensor, reference: Tensor, subsets: int, size: int, seed: int, kept: KernelSums
) -> tuple[float, float]:
    """Mean and standard deviation, over pairs of random subsets of `size` rows each, of the unbiased squared MMD.

    generated (N, D) and reference (M, D): float32. The kernel is (x y / D + 1)^3. kept: of this reference; what is not
    in it yet is added.
    """
    first, second = generated.cpu().numpy(), reference.cpu().numpy()
    rng = np.random.RandomState(seed)
    buffer = np.empty((size, size), first.dtype)
    known, sums, distances = kept.get((len(first), subsets, size, seed)), [], np.zeros(subsets)
    for number in range(subsets):
        x = first[rng.choice(len(first), size, replace=False)]
        y = second[rng.choice(len(second), size, replace=False)]
        within = _off_diagonal(_kernel(x, x, buffer))
        sums.append(_off_diagonal(_kernel(y, y, buffer)) if known is None else known[number])
        between = _kernel(x, y, buffer).sum(axis=0).sum()
        distances[number] = (within + sums[-1]) / (size * (size - 1)) - 2 * between / (size * size)
    kept[len(first), subsets, size, seed] = sums
    return float(distances.mean()), float(distances.std())


def _kernel(x: NDArray[np.float32], y: NDArray[np.float32], out: NDArray[np.float32]) -> NDArray[np.float32]:
    np.matmul(x, y.T, out=out)
    out *= 1.0 / x.shape[1]
    out += OFFSET
    return np.power(out, DEGREE, out=out)


def _off_diagonal(kernel: NDArray[np.float32]) -> np.float32:
    total: np.float32 = (kernel.sum(axis=1) - np.diagonal(kernel)).sum()
    return total
