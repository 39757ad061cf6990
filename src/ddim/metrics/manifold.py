"""Precision and recall of generated features (Kynkaanniemi et al., 2019), with what they need of a reference kept.

The numbers are torch-fidelity's. Its function measures the radii of both sets at every call and both directions of the
distances between them; here the radii of the reference are the caller's, each distance is computed once, and nothing
of size N x M is kept.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ddim.metrics.blocks import BLOCKS, block_of
from ddim.metrics.features import full_float32
from ddim.metrics.uncertainty import Jackknife

# Rows of a block of distances: 4 MB, which stays in the cache while it is searched.
ROWS = 1000


def neighbour_radii(features: Tensor, k: int, device: torch.device | str = "cpu", rows: int = ROWS) -> Tensor:
    """The distance of each row of features (N, D) to its k-th nearest other: float32 (N,), on the CPU.

    Each pair is measured once. Raises ValueError for k below 1 and for fewer than k + 1 rows.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"k={k} must be at least 1 and below the {len(features)} rows")
    with torch.no_grad(), full_float32(torch.device(device).type):
        blocks = features.to(device, torch.float32).split(rows)
        # A row is its own nearest neighbour.
        nearest = [torch.full((len(block), k + 1), torch.inf, device=block.device) for block in blocks]
        for i, block in enumerate(blocks):
            for j in range(i, len(blocks)):
                distances = torch.cdist(block, blocks[j])
                nearest[i] = _smallest(nearest[i], distances)
                if j > i:
                    nearest[j] = _smallest(nearest[j], distances.T)
        return torch.cat(nearest)[:, -1].cpu()


def _smallest(nearest: Tensor, distances: Tensor) -> Tensor:
    """The smallest of each row of both, as many as `nearest` has, in increasing order."""
    count = nearest.shape[1]
    fresh = distances.topk(min(count, distances.shape[1]), largest=False).values
    return torch.cat([nearest, fresh], dim=1).topk(count, largest=False).values


def precision_recall(
    generated: Tensor,
    reference: Tensor,
    reference_radii: Tensor,
    k: int,
    device: torch.device | str = "cpu",
    rows: int = ROWS,
) -> tuple[float, float]:
    """The share of generated rows (N, D) inside the reference's manifold, and of reference rows (M, D) inside theirs.

    A manifold is the union of closed balls around its rows that reach to their k-th neighbour. reference_radii:
    `neighbour_radii` of the reference with the same k. Raises ValueError as that does.
    """
    radii = neighbour_radii(generated, k, device, rows)
    with torch.no_grad(), full_float32(torch.device(device).type):
        theirs, their_radii = _in_blocks(generated, radii, device, rows)
        inside = [torch.zeros(len(block), dtype=torch.bool, device=block.device) for block in theirs]
        covered = 0
        for block, block_radii in zip(*_in_blocks(reference, reference_radii, device, rows), strict=True):
            found = torch.zeros(len(block), dtype=torch.bool, device=block.device)
            for number, (other, other_radii) in enumerate(zip(theirs, their_radii, strict=True)):
                distances = torch.cdist(block, other)
                found |= (distances <= other_radii).any(dim=1)
                inside[number] |= (distances <= block_radii[:, None]).any(dim=0)
            covered += int(found.sum())
        return int(torch.cat(inside).sum()) / len(generated), covered / len(reference)


def _in_blocks(
    features: Tensor, radii: Tensor, device: torch.device | str, rows: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return features.to(device, torch.float32).split(rows), radii.to(device).split(rows)


def precision_recall_jackknife(
    generated: Tensor,
    reference: Tensor,
    reference_radii: Tensor,
    k: int,
    device: torch.device | str = "cpu",
    blocks: int = BLOCKS,
    rows: int = ROWS,
) -> tuple[Jackknife, Jackknife]:
    """`precision_recall`, the very numbers, and both without each block of generated rows, samples 0 ... N - 1.

    Without a block the balls around the others grow, which is why recall changes; precision is a mean over rows. Each
    distance is still computed once: a reference row matters only where it lies inside the largest ball that leaving out
    some block gives a generated row, which is a small part of all pairs. Recall does not approach a limit as c/N: its
    `unbiased` means nothing, and its `sd` is too large rather than too small, twice as large where recall is near 1.

    Raises ValueError as `precision_recall` and `Jackknife` do, and where k rows or fewer are left without a block.
    """
    belongs = torch.from_numpy(block_of(np.arange(len(generated)), blocks)).to(device)
    sizes = torch.bincount(belongs, minlength=blocks)
    if len(generated) - int(sizes.max()) <= k:
        raise ValueError(f"{len(generated)} samples in {blocks} blocks: without a block there must be more than k={k}")
    with torch.no_grad(), full_float32(torch.device(device).type):
        radii = _radii_without_blocks(generated.to(device, torch.float32), belongs, blocks, k, rows)
        largest = radii.max(dim=0).values
        theirs, largest_balls = _in_blocks(generated, largest, device, rows)
        inside = [torch.zeros(len(block), dtype=torch.bool, device=block.device) for block in theirs]
        covered = torch.zeros(blocks + 1, dtype=torch.long)
        for block, block_radii in zip(*_in_blocks(reference, reference_radii, device, rows), strict=True):
            found = torch.zeros(blocks + 1, len(block), dtype=torch.bool, device=block.device)
            for number, (other, balls) in enumerate(zip(theirs, largest_balls, strict=True)):
                distances = torch.cdist(block, other)
                inside[number] |= (distances <= block_radii[:, None]).any(dim=0)
                row, column = (distances <= balls).nonzero(as_tuple=True)
                within = distances[row, column] <= radii[:, number * rows + column]
                for left_out in range(blocks + 1):
                    found[left_out, row[within[left_out]]] = True
            covered += found.sum(dim=1).cpu()
        per_block = torch.zeros(blocks, dtype=torch.long, device=belongs.device)
        hits = per_block.index_add(0, belongs, torch.cat(inside).long()).cpu()
    count, total = len(generated), int(hits.sum())
    kept = zip((total - hits).tolist(), (count - sizes.cpu()).tolist(), strict=True)
    precision = Jackknife(total / count, tuple(inside_left / left for inside_left, left in kept), count)
    shares = [number / len(reference) for number in covered.tolist()]
    return precision, Jackknife(shares[0], tuple(shares[1:]), count)


def _radii_without_blocks(features: Tensor, belongs: Tensor, blocks: int, k: int, rows: int) -> Tensor:
    """(1 + blocks, N): `neighbour_radii` of all rows, then without each block; -1 for the rows of that block."""
    parts, members = features.split(rows), belongs.split(rows)
    # Of each row the nearest of every block, itself among them: (blocks, n, k + 1).
    nearest = [features.new_full((blocks, len(part), k + 1), torch.inf) for part in parts]
    for i, part in enumerate(parts):
        for j in range(i, len(parts)):
            distances = torch.cdist(part, parts[j])
            for block in range(blocks):
                nearest[i][block] = _smallest(nearest[i][block], distances[:, members[j] == block])
                if j > i:
                    nearest[j][block] = _smallest(nearest[j][block], distances[members[i] == block].T)
    by_block = torch.cat(nearest, dim=1)

    def radii(kept: Tensor) -> Tensor:
        return kept.transpose(0, 1).flatten(1).topk(k + 1, largest=False).values.max(dim=1).values

    others = [radii(by_block[torch.arange(blocks, device=features.device) != block]) for block in range(blocks)]
    # No distance is below: a row that is left out covers nothing.
    without = [other.where(belongs != block, -1.0) for block, other in enumerate(others)]
    return torch.stack([radii(by_block), *without])
