"""Precision and recall of generated features (Kynkaanniemi et al., 2019), with what they need of a reference kept.

The numbers are torch-fidelity's. Its function measures the radii of both sets at every call and both directions of the
distances between them; here the radii of the reference are the caller's, each distance is computed once, and nothing
of size N x M is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.metrics.features import full_float32

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
