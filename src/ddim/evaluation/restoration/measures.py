"""How good restorations are: image by image with standard errors, as a set, and against the measurement."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddim.data import Space
from ddim.diffusion.restoration.measurement import Measurement
from ddim.metrics import (
    BLOCKS,
    BlockMoments,
    FeatureExtractor,
    Features,
    ReferenceStatistics,
    distance_jackknife,
    measure_metrics,
)
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


def completed_row(
    restored: Tensor,
    measurement: Measurement,
    truth: Tensor,
    space: Space,
    extractor: FeatureExtractor | None,
    reference: ReferenceStatistics | None,
) -> dict[str, Any]:
    """As `measured_row`, of data that are no images: all in standard deviations.

    rmse: of one draw, over the values that the measurement says nothing of (all, where it says something of each), and
        rmse_of_mean of the mean of all draws. A draw of the exact posterior errs by sqrt(2) of what its mean does.
    missing: how many values of a sample the measurement says nothing of, 0 where there are none.
    spread: root of the mean variance over the draws, of these values.
    energy_distance: of the set of first draws, complete, to the reference.
    """
    draws, count = restored.shape[:2]
    operator = measurement.operator
    unseen = operator.singular_values == 0
    missing = int(unseen.sum())
    unseen = unseen if bool(unseen.any()) else torch.ones_like(unseen)

    def hidden(x: Tensor) -> Tensor:
        return operator.to_spectrum(x.double())[:, unseen]

    true = hidden(space.to_model(truth))
    filled = torch.stack([hidden(draw) for draw in restored])
    known = measurement.of_samples(torch.arange(count).repeat(draws)).error(restored.flatten(0, 1))
    row: dict[str, Any] = {
        "unit": space.unit,
        "missing": missing,
        "consistency": known.double().square().mean().sqrt().item(),
        "spread": filled.var(dim=0).mean().sqrt().item() if draws > 1 else None,
    }
    for name, errors in (("rmse", filled - true), ("rmse_of_mean", filled.mean(dim=0, keepdim=True) - true)):
        per_sample = errors.square().mean(dim=(0, 2))
        root = per_sample.mean().sqrt().item()
        # The deviation of a root is that of the mean below it, divided by twice the root.
        row[name] = root
        row[f"{name}_standard_error"] = per_sample.std().item() / math.sqrt(count) / (2 * root) if root else 0.0
    if extractor is not None and reference is not None:
        features = Features(_features(space.to_stored(restored[0]), extractor).float())
        found = measure_metrics(features, reference, ("energy_distance",), uncertainty=count >= 2 * BLOCKS).values
        row |= {name: found[name] for name in ("energy_distance", "energy_distance_sd") if name in found}
    return row


def first_draws(restored: Tensor, space: Space, shown: int) -> Tensor:
    """uint8 (n, *shape): the first draw of the first images."""
    return space.to_stored(restored[0, :shown])
