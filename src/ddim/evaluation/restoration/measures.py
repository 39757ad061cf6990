"""How good restorations are: image by image with standard errors, as a set, and against the measurement."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddim.data import Space
from ddim.diffusion.restoration.measurement import Measurement
from ddim.metrics import BLOCKS, BlockMoments, FeatureExtractor, ReferenceStatistics, distance_jackknife
from ddim.metrics.similarity import peak_ratios, similarities, ssim_window


def measured_row(
    restored: Tensor,
    measurement: Measurement,
    truth: Tensor | None,
    space: Space,
    extractor: FeatureExtractor | None,
    reference: ReferenceStatistics | None,
) -> dict[str, Any]:
    """Columns of a row from restorations (draws, N, *shape), model space and float, of N measurements.

    consistency: root mean square of A x - y on [0, 1], of the floats as they are; perfect samples have sigma_y.
    spread: root of the mean variance of a pixel over the draws, on [0, 1].
    truth: uint8 (N, *shape); None where nobody knows it, and then the other columns are not there. They compare
        stored images with it: one draw on average, and the mean of all draws (`psnr_of_mean`).
    """
    draws, count = restored.shape[:2]
    flat = restored.flatten(0, 1)
    every = torch.arange(count).repeat(draws)
    errors = measurement.of_samples(every).error(flat)
    row: dict[str, Any] = {
        # Half the difference in [-1, 1] is the difference in [0, 1].
        "consistency": errors.double().square().mean().sqrt().item() / 2,
        "spread": restored.double().var(dim=0).mean().sqrt().item() / 2 if draws > 1 else None,
    }
    if truth is None:
        return row
    images, truths = space.to_stored(flat), truth[every]
    of_mean = peak_ratios(space.to_stored(restored.double().mean(dim=0)), truth)
    side, sigma = ssim_window(*images.shape[-2:])
    row |= _with_error("psnr", peak_ratios(images, truths), draws)
    row |= _with_error("psnr_of_mean", of_mean, 1)
    row |= _with_error("ssim", similarities(images, truths), draws)
    row["ssim_window"] = f"gaussian {side}x{side}, sigma {sigma:.4g}"
    if extractor is not None and reference is not None:
        row |= _of_features(images, truth, draws, extractor, reference)
    return row


def _of_features(
    images: Tensor, truth: Tensor, draws: int, extractor: FeatureExtractor, reference: ReferenceStatistics
) -> dict[str, Any]:
    """Distance to the truth's features, and the Frechet distance of the set of first draws to the reference."""
    features, of_truth = _features(images, extractor), _features(truth, extractor)
    gaps = (features - of_truth.repeat(draws, 1)).norm(dim=1)
    row: dict[str, Any] = {**_with_error("feature_distance", gaps, draws)}
    row["features"] = extractor.name
    if len(truth) >= 2 * BLOCKS:
        jackknife = distance_jackknife(BlockMoments.of(features[: len(truth)]), reference)
        row |= {"frechet_distance": jackknife.value, "frechet_distance_sd": jackknife.sd}
    return row


def _features(images: Tensor, extractor: FeatureExtractor) -> Tensor:
    parts = [extractor(part).cpu().features.double() for part in images.split(500)]
    return torch.cat(parts)


def _with_error(name: str, values: Tensor, draws: int) -> dict[str, float]:
    """The mean of (draws x N,) and its standard error over the N images, whose draws are no further images."""
    per_image = values.reshape(draws, -1).mean(dim=0)
    return {
        name: per_image.mean().item(),
        f"{name}_standard_error": per_image.std().item() / math.sqrt(len(per_image)),
    }


def first_draws(restored: Tensor, space: Space, shown: int) -> Tensor:
    """uint8 (n, *shape): the first draw of the first images."""
    return space.to_stored(restored[0, :shown])
