"""Numbers that tell a generator that copies, or says the same thing always, from one that does neither."""

from __future__ import annotations

from torch import Tensor

# Real images that a model has not seen are this often nearer to the training images than the threshold.
COPY_RATE = 0.01


def spread(features: Tensor) -> float:
    """Root mean square distance between two different ones of features (N, D): √(2 tr Σ), so without N² distances."""
    if len(features) < 2:
        return 0.0
    return (2 * features.double().var(dim=0).sum()).sqrt().item()


def copy_threshold(held_out: Tensor) -> float:
    """The distance (1st percentile) that 1% of held-out images are from their nearest reference image, or nearer."""
    return held_out.double().quantile(COPY_RATE).item()


def summarise(nearest: Tensor, threshold: float) -> dict[str, float]:
    """Distances to the nearest reference image (N,) in numbers.

    `copy_ratio` is the share of distances up to `threshold`, that of `copy_threshold`. About 0.01 is what images have
    that come from the same distribution and copy nothing; near 1 everything is a copy. It is evidence and no proof:
    images that are smoother or more typical than real ones are nearer to them as well, which is why the nearest pairs
    are shown. The threshold rests on a hundredth of the held-out images: of a few hundred it is known to about a half.
    Duplicates between the splits lower it and thereby hide what is nearly a copy.
    """
    nearest = nearest.double()
    return {
        "nearest_median": nearest.quantile(0.5).item(),
        "nearest_percentile_1": nearest.quantile(0.01).item(),
        "nearest_smallest": nearest.min().item(),
        "copy_threshold": threshold,
        "copy_ratio": (nearest <= threshold).double().mean().item(),
    }
