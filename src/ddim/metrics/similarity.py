"""How alike two sets of images are, image by image: pixel error, structural similarity, distance of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# The Gaussian window of Wang et al. (2004), "Image quality assessment: from error visibility to structural similarity".
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
# Decibels of an image whose pixels are all the same: more than 8 bits can say of any other.
LARGEST_PSNR = 60.0
# Images, or rows of a distance matrix, at a time.
BLOCK = 500


def distances(samples: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """How far samples are from the reference's, image by image, as columns of a row.

    samples, reference: images, uint8 (N, C, H, W), and their features (N, D). Distances between two different samples
    of the reference give the others a scale; `feature_distance_relative` is on it: 0 is the same image, 1 as far away
    as any other sample. It is None where all samples of the reference are alike.
    """
    (images, features), (others, other_features) = samples, reference
    distance, spread = feature_distance(features, other_features), feature_spread(other_features)
    side, sigma = ssim_window(*images.shape[-2:])
    return {
        "mse": pixel_error(images, others),
        "mse_between_samples": pixel_spread(others),
        "ssim": structural_similarity(images, others),
        "ssim_window": f"gaussian {side}x{side}, sigma {sigma:.4g}",
        "feature_distance": distance,
        "feature_distance_between_samples": spread,
        "feature_distance_relative": distance / spread if spread > 0 else None,
    }


def value_distances(samples: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The same columns of what is no image: values, float64 (N, D) in the unit that errors are told in, and features.

    There is no structural similarity.
    """
    (values, features), (others, other_features) = samples, reference
    distance, spread = feature_distance(features, other_features), feature_spread(other_features)
    return {
        "mse": (values - others).square().mean().item(),
        # Over all pairs, twice the variance of each dimension.
        "mse_between_samples": 2 * others.var(dim=0).mean().item(),
        "ssim": None,
        "ssim_window": None,
        "feature_distance": distance,
        "feature_distance_between_samples": spread,
        "feature_distance_relative": distance / spread if spread > 0 else None,
    }


def pixel_error(images: Tensor, others: Tensor) -> float:
    """Mean squared error per dimension, on [0, 1], between image i and other i: both uint8 (N, C, H, W)."""
    total = sum(
        (a.double() - b.double()).square().sum().item()
        for a, b in zip(images.split(BLOCK), others.split(BLOCK), strict=True)
    )
    return total / images.numel() / 255**2


def pixel_spread(images: Tensor) -> float:
    """Mean squared error per dimension, on [0, 1], between two different images of uint8 (N, C, H, W).

    Over all pairs, as twice the variance of each dimension. Raises ValueError for fewer than two images.
    """
    count = _at_least_two(images)
    flat = images.flatten(1)
    # Sums of integers: exact in float64.
    sums = torch.stack([part.double().sum(dim=0) for part in flat.split(BLOCK)]).sum(dim=0)
    squares = sum(part.double().square().sum().item() for part in flat.split(BLOCK))
    return 2 * (squares - sums.square().sum().item() / count) / (count - 1) / flat.shape[1] / 255**2


def ssim_window(height: int, width: int) -> tuple[int, float]:
    """(side, sigma) of the Gaussian window of SSIM: 11 and 1.5 where it fits, else the largest odd side that does.

    The window of a small image is the standard one scaled down, so that it never hangs over more than half an image:
    7 and 0.95 for 8x8.
    """
    side = min(SSIM_WINDOW, height, width)
    side -= 1 - side % 2
    return side, SSIM_SIGMA * side / SSIM_WINDOW


def structural_similarity(images: Tensor, others: Tensor) -> float:
    """Mean SSIM (Wang et al. 2004) between image i and other i, uint8 (N, C, H, W), on [0, 1] with `ssim_window`.

    torchmetrics' definition: edges are continued by reflection, channels are averaged.
    """
    return similarities(images, others).mean().item()


def similarities(images: Tensor, others: Tensor) -> Tensor:
    """SSIM of each pair, float64 (N,), see `structural_similarity`."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    side, sigma = ssim_window(*images.shape[-2:])
    found = []
    for a, b in zip(images.split(BLOCK), others.split(BLOCK), strict=True):
        values = structural_similarity_index_measure(
            a.double() / 255, b.double() / 255, sigma=sigma, kernel_size=side, data_range=1.0, reduction="none"
        )
        assert isinstance(values, Tensor)
        found.append(values.reshape(len(a)))
    return torch.cat(found)


def peak_ratios(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of uint8 (N, C, H, W) in decibels, float64 (N,), for a range of [0, 1].

    At most LARGEST_PSNR: equal images have an infinite one, of which there is no mean.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = [
        peak_signal_noise_ratio(
            a.double() / 255, b.double() / 255, data_range=1.0, reduction="none", dim=tuple(range(1, images.ndim))
        )
        for a, b in zip(images.split(BLOCK), others.split(BLOCK), strict=True)
    ]
    return torch.cat(found).clamp(max=LARGEST_PSNR)


def feature_distance(features: Tensor, others: Tensor) -> float:
    """Mean Euclidean distance between row i of one and row i of the other: both (N, D)."""
    return (features.double() - others.double()).norm(dim=1).mean().item()


def feature_spread(features: Tensor) -> float:
    """Mean Euclidean distance between two different rows of (N, D). Raises ValueError for fewer than two rows."""
    count = _at_least_two(features)
    # Distances do not change with the origin, but the rounding of a matrix product does.
    centred = features.double() - features.double().mean(dim=0)
    total = 0.0
    for start in range(0, count, BLOCK):
        distances = torch.cdist(centred[start : start + BLOCK], centred)
        distances.diagonal(start).fill_(0)
        total += distances.sum().item()
    return total / (count * (count - 1))


def _at_least_two(samples: Tensor) -> int:
    if len(samples) < 2:
        raise ValueError(f"a distance between different samples needs at least two of them, got {len(samples)}")
    return len(samples)
