"""How far apart two sets of vectors are: energy distance, sliced Wasserstein distance, and whether a classifier can
tell them apart. They need no network, and fit whatever has a Euclidean distance."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.metrics.blocks import BLOCKS, block_of
from ddim.metrics.uncertainty import Jackknife

# Rows of a matrix of distances at a time.
ROWS = 1024
DIRECTIONS, DIRECTIONS_SEED = 128, 0
FOLDS, FOLDS_SEED = 5, 0


def mean_distance_within(features: Tensor) -> float:
    """Mean Euclidean distance between two different rows of (M, D), M >= 2."""
    count = len(features)
    return _block_sums(features, features, torch.zeros(count, dtype=torch.long), 1).sum().item() / (count * (count - 1))


def energy_distance(features: Tensor, reference: Tensor, within_reference: float) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo, 2013), unbiased: 0 for equal distributions on average.

    It is at least 0 in the limit of many samples; of few that are alike it may come out below.

    features: (N, D), of samples 0 ... N - 1. reference: (M, D). within_reference: its `mean_distance_within`.

    Raises ValueError for fewer than 2 rows on a side.
    """
    return _Pairs(features, reference, within_reference).distance()


def energy_jackknife(features: Tensor, reference: Tensor, within_reference: float) -> Jackknife:
    """`energy_distance` with each block of the samples left out, which costs no further distances."""
    pairs = _Pairs(features, reference, within_reference)
    left_out = tuple(pairs.distance(without=block) for block in range(BLOCKS))
    return Jackknife(pairs.distance(), left_out, len(features))


class _Pairs:
    """Sums of all distances, by the blocks of the samples."""

    def __init__(self, features: Tensor, reference: Tensor, within_reference: float) -> None:
        count = len(features)
        if min(count, len(reference)) < 2:
            raise ValueError(f"an energy distance needs two samples on each side, got {count} and {len(reference)}")
        belongs = torch.from_numpy(block_of(np.arange(count)))
        self.within_reference, self.others = within_reference, len(reference)
        self.sizes = torch.bincount(belongs, minlength=BLOCKS).double()
        self.across = _block_sums(reference, features, belongs, BLOCKS).sum(dim=0)
        self.among = torch.zeros(BLOCKS, BLOCKS, dtype=torch.float64)
        self.among.index_add_(0, belongs, _block_sums(features, features, belongs, BLOCKS))

    def distance(self, without: int | None = None) -> float:
        """Of all samples, or of those that are not in one block."""
        kept = torch.arange(BLOCKS) != (-1 if without is None else without)
        count = self.sizes[kept].sum()
        between = self.across[kept].sum() / (count * self.others)
        inside = self.among[kept][:, kept].sum() / (count * (count - 1))
        return (2 * between - inside).item() - self.within_reference


def _block_sums(rows: Tensor, columns: Tensor, belongs: Tensor, blocks: int) -> Tensor:
    """Sums of the distances of each of (R, D) to the members of each block of (C, D): float64 (R, blocks)."""
    members = torch.nn.functional.one_hot(belongs, blocks).double()
    # Distances do not change with the origin, but the rounding of a matrix product does.
    centre = columns.double().mean(dim=0)
    moved = columns.double() - centre
    same = rows is columns
    parts = []
    for start in range(0, len(rows), ROWS):
        distances = torch.cdist(rows[start : start + ROWS].double() - centre, moved)
        if same:
            distances.diagonal(start).fill_(0)
        parts.append(distances @ members)
    return torch.cat(parts)


def sliced_wasserstein(features: Tensor, reference: Tensor) -> float:
    """The root of the mean over directions of the squared Wasserstein-2 distance of the projections (Bonneel et al.,
    2015), over 128 directions that are always the same: float.

    In the unit of the values: of N(0, I) and N(m, s^2 I) in D dimensions it is (|m|^2 / D + (1 - s)^2)^(1/2).

    features: (N, D); reference: (M, D), of any sizes of at least 1.
    """
    directions = torch.from_numpy(
        np.random.default_rng(DIRECTIONS_SEED).standard_normal((features.shape[1], DIRECTIONS))
    )
    directions /= directions.norm(dim=0)
    mine, theirs = ((values.double() @ directions).sort(dim=0).values for values in (features, reference))
    return math.sqrt(_transport(mine, theirs).mean().item())


def sliced_jackknife(features: Tensor, reference: Tensor) -> Jackknife:
    """`sliced_wasserstein` with each block of the samples left out."""
    belongs = torch.from_numpy(block_of(np.arange(len(features))))
    left_out = tuple(sliced_wasserstein(features[belongs != block], reference) for block in range(BLOCKS))
    return Jackknife(sliced_wasserstein(features, reference), left_out, len(features))


def mean_jackknife(values: Tensor) -> Jackknife:
    """The mean of values (N,), of samples 0 ... N - 1, with each block of them left out."""
    belongs = torch.from_numpy(block_of(np.arange(len(values))))
    left_out = tuple(values[belongs != block].mean().item() for block in range(BLOCKS))
    return Jackknife(values.mean().item(), left_out, len(values))


def _transport(mine: Tensor, theirs: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance of each pair of sorted columns, (N, P) and (M, P): float64 (P,).

    The integral over (0, 1) of the squared difference of both quantile functions, which are steps: exact.
    """
    n, m = len(mine), len(theirs)
    if n == m:
        return (mine - theirs).square().mean(dim=0)
    # In units of 1 / (n m), where all steps are whole numbers.
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    widths = torch.diff(ends, prepend=torch.zeros(1, dtype=ends.dtype))
    gaps = mine[(ends - 1) // m] - theirs[(ends - 1) // n]
    return (gaps.square() * widths[:, None].double()).sum(dim=0) / (n * m)


def classifier_two_sample(features: Tensor, reference: Tensor) -> float:
    """How often a classifier tells samples from the reference, in [0, 1]: 0.5 is what nobody could tell apart.

    The test of Lopez-Paz and Oquab (2017) with their nearest neighbours, k the root of the size of the training part,
    and the accuracy over 5 folds that are always the same. Of the larger side as many are taken as the smaller has.

    Raises ValueError for fewer than 10 rows on a side.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    count = min(len(features), len(reference))
    if count < 2 * FOLDS:
        raise ValueError(f"a classifier test needs {2 * FOLDS} samples on each side, got {count}")
    sides = [_some(values.numpy(), count) for values in (features.cpu().double(), reference.cpu().double())]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=FOLDS_SEED)
    neighbours = KNeighborsClassifier(max(1, round(math.sqrt(2 * count * (FOLDS - 1) / FOLDS))))
    labels = np.repeat([0, 1], count)
    return float(cross_val_score(neighbours, np.concatenate(sides), labels, cv=folds).mean())


def _some(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    if count == len(values):
        return values
    return values[np.random.default_rng(FOLDS_SEED).permutation(len(values))[:count]]
