"""The Frechet distance of two Gaussians, and of a set of samples without each of its blocks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ddim.metrics.blocks import BlockMoments
from ddim.metrics.moments import RunningMoments, symmetric_root
from ddim.metrics.reference import ReferenceStatistics
from ddim.metrics.uncertainty import Jackknife


def frechet_distance(
    mu_1: NDArray[np.float64], sigma_1: NDArray[np.float64], mu_2: NDArray[np.float64], sigma_2: NDArray[np.float64]
) -> float:
    """|mu_1 - mu_2|^2 + tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2)); mu (D,), sigma (D, D), all float64."""
    return _frechet_distance(mu_1, sigma_1, mu_2, symmetric_root(sigma_2))


def distance_to(generated: RunningMoments, reference: ReferenceStatistics) -> float:
    """`frechet_distance` of at least 2 samples to a reference, whose root is computed once."""
    return _frechet_distance(generated.mean, generated.covariance(), reference.mu, reference.sigma_root)


def distance_jackknife(
    generated: BlockMoments, reference: ReferenceStatistics, value: float | None = None
) -> Jackknife:
    """The Frechet distance with those of all but one block: B symmetric eigenvalue problems, and one for the whole.

    value: the distance of all samples, where it is known.

    `unbiased` supposes independent draws, and more samples than dimensions: with fewer the covariance is singular and
    the bias not of the form c/N. It comes out too small for samples whose shares of something are not left to chance
    (a stratified split, labels dealt out equally), as they scatter less than their blocks tell. It still contains
    `reference_bias`, the same for all that is measured against one reference.

    Raises ValueError as `Jackknife` does, and where leaving a block out leaves fewer than 2 samples.
    """
    if value is None:
        value = distance_to(generated.total(), reference)
    left = tuple(distance_to(moments, reference) for moments in generated.leave_one_out())
    return Jackknife(value, left, len(generated))


def reference_bias(reference: ReferenceStatistics) -> float:
    """By how much every distance to a reference of M images is too large, since these are not all there are: c/M.

    It is what endless samples of a perfect sampler have, the floor of `Jackknife.unbiased`. The reference's features
    without a block of them are at a distance of c/(M - m) - c/M from all of them, on average, of which B - 1 are c/M.
    Where only some features were kept, c is taken from them. Costs as much as `distance_jackknife`.

    Raises ValueError without features, and as `distance_jackknife` does.
    """
    if reference.features is None:
        raise ValueError("the bias of a reference needs its features, which are not known")
    # Images may come in the order of their classes, which would be shared out equally among blocks.
    order = np.random.default_rng(0).permutation(len(reference.features))
    blocks = BlockMoments.of(reference.features[torch.from_numpy(order)])
    whole = blocks.total()
    root = symmetric_root(whole.covariance())
    left = tuple(_frechet_distance(part.mean, part.covariance(), whole.mean, root) for part in blocks.leave_one_out())
    bias = -Jackknife(0.0, left, len(order)).unbiased
    return bias * len(order) / (reference.num_images or len(order))


def _frechet_distance(
    mu_1: NDArray[np.float64], sigma_1: NDArray[np.float64], mu_2: NDArray[np.float64], root_2: NDArray[np.float64]
) -> float:
    """With sigma_2 = root_2^2. The eigenvalues of sigma_1 sigma_2 are those of root_2 sigma_1 root_2, which is
    symmetric: a tenth of the time, and none of them is complex."""
    root = torch.from_numpy(root_2)
    product = torch.linalg.eigvalsh(root @ torch.from_numpy(sigma_1) @ root)
    difference = mu_1 - mu_2
    trace = np.trace(sigma_1) + root.square().sum().item() - 2 * product.clamp(min=0).sqrt().sum().item()
    return float(difference @ difference + trace)
