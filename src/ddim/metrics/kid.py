"""Kernel Inception distance (Binkowski et al., 2018), with what depends on the reference alone kept.

torch-fidelity's numbers to the last bit: the same subsets, arithmetic and order of sums. Its function allocates every
matrix anew and repeats the reference's own kernel at each call, which is half of the time at 64 dimensions.
"""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from ddim.metrics.blocks import BLOCKS, block_of
from ddim.metrics.features import full_float32
from ddim.metrics.uncertainty import Jackknife

DEGREE, OFFSET = 3, 1
# Rows of a tile of the kernel over all pairs.
ROWS = 1000

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


def kernel_jackknife(
    generated: Tensor,
    reference: Tensor,
    reference_sum: float,
    device: torch.device | str = "cpu",
    blocks: int = BLOCKS,
    rows: int = ROWS,
) -> Jackknife:
    """The unbiased squared MMD over all pairs of rows, and without each block: the sums of the kernel over pairs of
    blocks say all of it. `kernel_distance` is the same number over some of the pairs.

    generated: (N, D), samples 0 ... N - 1, and reference: (M, D); computed in float32, summed in float64.
    reference_sum: `off_diagonal_sum` of the reference. Costs N (N + 2 M) D / 2 multiplications.

    Raises ValueError as `Jackknife` does, and where leaving a block out leaves fewer than 2 rows.
    """
    count, others, belongs = len(generated), len(reference), block_of(np.arange(len(generated)), blocks)
    sizes = np.bincount(belongs, minlength=blocks)
    if count - sizes.max() < 2:
        raise ValueError(f"{count} samples in {blocks} blocks: without a block there must be at least 2")
    within, between = np.zeros((blocks, blocks)), np.zeros(blocks)
    with torch.no_grad(), full_float32(torch.device(device).type):
        parts = generated.to(device, torch.float32).split(rows)
        members = one_hot(torch.from_numpy(belongs), blocks).double().to(device).split(rows)
        for i, part in enumerate(parts):
            for j in range(i, len(parts)):
                kernel = _tile(part, parts[j])
                if i == j:
                    kernel.fill_diagonal_(0)
                sums = (members[i].T @ kernel @ members[j]).cpu().numpy()
                within += sums if i == j else sums + sums.T
            for other in reference.to(device, torch.float32).split(rows):
                between += (members[i].T @ _tile(part, other).sum(dim=1)).cpu().numpy()

    def distance(inside: float, across: float, kept: int) -> float:
        real = reference_sum / (others * (others - 1))
        return float(inside / (kept * (kept - 1)) + real - 2 * across / (kept * others))

    whole = within.sum()
    left = tuple(
        distance(whole - 2 * within[j].sum() + within[j, j], between.sum() - between[j], count - int(sizes[j]))
        for j in range(blocks)
    )
    return Jackknife(distance(whole, between.sum(), count), left, count)


def off_diagonal_sum(features: Tensor, device: torch.device | str = "cpu", rows: int = ROWS) -> float:
    """The kernel summed over all ordered pairs of different rows of features (N, D)."""
    total = 0.0
    with torch.no_grad(), full_float32(torch.device(device).type):
        parts = features.to(device, torch.float32).split(rows)
        for i, part in enumerate(parts):
            total += (_tile(part, part).fill_diagonal_(0)).sum().item()
            total += 2 * sum(_tile(part, other).sum().item() for other in parts[i + 1 :])
    return total


def _tile(x: Tensor, y: Tensor) -> Tensor:
    """float32 products, as `kernel_distance` takes them; float64 from there, as sums almost cancel."""
    return (x @ y.T).double().div_(x.shape[1]).add_(OFFSET).pow_(DEGREE)
