"""Exact nearest neighbours in feature space: which real image is a sample closest to?"""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.metrics.features import full_float32

# Distances from a matrix product are off by rounding of the squared norms, so somewhat more than k neighbours are
# found that way and then measured from their differences.
SPARE_CANDIDATES = 8


def nearest_neighbours(
    features: Tensor,
    reference: Tensor,
    k: int = 1,
    rows: int = 1000,
    device: torch.device | str = "cpu",
    *,
    exclude_self: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k rows of `reference` that are nearest to each row of `features`, nearest first, by Euclidean distance.

    Args:
        features: (N, D), reference: (M, D); any float type, computed in float32.
        rows: of `features` at a time; what is needed at once is a few float32 matrices of (rows, M).
        device: where distances are computed.
        exclude_self: both are the same set and no row may be its own neighbour; a duplicate of it may.

    Returns distances (N, k), float32, and indices into `reference` (N, k), int64, both on the CPU. Distances of equal
    rows are exactly 0; among equally near rows the first comes first.

    Raises ValueError for shapes that do not fit, more neighbours than there are, and rows below 1.
    """
    if features.dim() != 2 or reference.dim() != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(
            f"features (N, D) and reference (M, D) must have one D, got {tuple(features.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if exclude_self and len(features) != len(reference):
        raise ValueError(f"exclude_self needs one set given twice, got {len(features)} and {len(reference)} rows")
    available = len(reference) - exclude_self
    if not 1 <= k <= available:
        raise ValueError(f"k={k} must be between 1 and the {available} rows that can be neighbours")
    if rows < 1:
        raise ValueError(f"rows={rows} must be at least 1")
    reference = reference.detach().to(device, torch.float32)
    # Distances do not change with the origin, but the rounding of a matrix product does.
    centre = reference.mean(dim=0)
    centred = reference - centre
    distances = torch.empty(len(features), k)
    indices = torch.empty(len(features), k, dtype=torch.long)
    with torch.no_grad(), full_float32(torch.device(device).type):
        for start in range(0, len(features), rows):
            block = features[start : start + rows].to(device, torch.float32)
            approximate = torch.cdist(block - centre, centred)
            if exclude_self:
                approximate.diagonal(start).fill_(torch.inf)
            candidates = approximate.topk(min(k + SPARE_CANDIDATES, available), largest=False).indices.sort().values
            exact = torch.stack(
                [torch.linalg.vector_norm(block - reference[column], dim=1) for column in candidates.T], dim=1
            )
            nearest, order = exact.sort(dim=1, stable=True)
            distances[start : start + rows] = nearest[:, :k].cpu()
            indices[start : start + rows] = candidates.gather(1, order[:, :k]).cpu()
    return distances, indices
