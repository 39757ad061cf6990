"""The metrics, as torch-fidelity defines them, on features that are extracted once.

What it offers in parts is called; what it would do again for every set, though it depends on the reference alone, is
kept with the reference: the root of its covariance, the radii of its manifold, the sums of its kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.metrics.blocks import BLOCKS, BlockMoments
from ddim.metrics.cache import derived
from ddim.metrics.features import Features
from ddim.metrics.frechet import distance_jackknife, distance_to
from ddim.metrics.inception_score import inception_jackknife
from ddim.metrics.kid import kernel_distance, kernel_jackknife
from ddim.metrics.manifold import precision_recall, precision_recall_jackknife
from ddim.metrics.moments import RunningMoments
from ddim.metrics.reference import ReferenceStatistics, short_hash
from ddim.metrics.two_sample import (
    FOLDS,
    classifier_two_sample,
    energy_distance,
    energy_jackknife,
    mean_jackknife,
    sliced_jackknife,
    sliced_wasserstein,
)
from ddim.metrics.uncertainty import Jackknife, Measured


@dataclass(frozen=True)
class Metric:
    """A metric of a user's own: `function(generated, reference)` is one number, or a `Measured` with its deviation.

    `version` changes when it does.
    """

    function: Callable[[Features, ReferenceStatistics], float | Measured]
    version: str


# Of images by their features, and of anything whose features are its values.
IMAGE_METRICS = ("frechet_distance", "kid", "precision_recall", "inception_score")
VALUE_METRICS = ("energy_distance", "sliced_wasserstein", "c2st", "log_density")
MEASURES: dict[str, Metric | None] = dict.fromkeys((*IMAGE_METRICS, *VALUE_METRICS))
METRICS = MEASURES.keys()
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURS = 3
INCEPTION_SCORE_SPLITS = 10


def needs_features(metrics: Collection[str], reference: ReferenceStatistics) -> bool:
    """Whether a metric looks at single features; else their moments say all."""
    pairwise = reference.features is not None and not {"kid", "precision_recall", *VALUE_METRICS}.isdisjoint(metrics)
    return pairwise or "inception_score" in metrics or any(MEASURES[name] is not None for name in metrics)


@dataclass(frozen=True)
class Measurement:
    """values: numbers by column, as `compute_metrics` returns them. jackknives: by column, of those that have one."""

    values: dict[str, float]
    jackknives: dict[str, Jackknife]


def compute_metrics(
    generated: Features | RunningMoments | BlockMoments,
    reference: ReferenceStatistics,
    metrics: Collection[str] = IMAGE_METRICS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Distances between generated images and a reference; every generated image enters once.

    metrics: names out of METRICS, by default IMAGE_METRICS. Returned keys: `frechet_distance` (Heusel et al., 2017),
    `kid_mean` and `kid_std` (Binkowski et al., 2018; unbiased, over 100 subsets of min(1000, N) images by `seed`),
    `precision` and `recall` (Kynkaanniemi et al., 2019; 3 neighbours; precision is the part of the generated images
    inside the reference manifold), `inception_score_mean` and `inception_score_std` (Salimans et al., 2016; 10 splits
    shuffled by `seed`), `energy_distance`, `sliced_wasserstein` and `c2st` (see `ddim.metrics.two_sample`),
    `log_density` (mean of the exact log-density, where the reference knows one), and the name of each metric of a
    user's own, with `<name>_sd` where it returns a `Measured`.

    What cannot be computed is absent: all but the Frechet distance, the Inception score and the log-density without
    reference features (published statistics); KID, precision and recall with fewer than 2 or 4 images on a side, the
    energy distance with fewer than 2 and the classifier's with fewer than 10; the Inception score without logits or
    with fewer than 10 images, the Frechet distance of fewer than 2 images, and all but that where of the generated
    images only the moments are known. `device` is where pairwise distances are computed.

    Raises ValueError for an unknown metric and for features of another dimension than the reference.
    """
    return measure_metrics(generated, reference, metrics, seed, device, uncertainty=False).values


def measure_metrics(
    generated: Features | RunningMoments | BlockMoments,
    reference: ReferenceStatistics,
    metrics: Collection[str] = IMAGE_METRICS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    uncertainty: bool = True,
) -> Measurement:
    """`compute_metrics`, the very numbers, and with `uncertainty` the standard deviation of each but a user's own.

    generated: image i of them is sample i, which decides its block. Further keys: `<column>_sd` of
    `frechet_distance`, `kid_mean`, `precision`, `recall`, `inception_score_mean`, `energy_distance`,
    `sliced_wasserstein` and `log_density`, by the jackknife over the blocks,
    and `frechet_distance_unbiased`, without the bias of order 1/N. The jackknife of KID is over all pairs of images and
    that of the Inception score over one split, where the column's own number takes subsets and 10 splits of the same.

    Absent, besides what `compute_metrics` says: deviations of fewer images than blocks, or so few that one block less
    leaves too few for the metric; and of `RunningMoments`, which know no blocks.

    Raises ValueError as `compute_metrics` does.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known are {', '.join(METRICS)}")
    dim = generated.features.shape[1] if isinstance(generated, Features) else generated.dim
    if dim != len(reference.mu):
        raise ValueError(f"generated features have {dim} dimensions, the reference has {len(reference.mu)}")
    values: dict[str, float] = {}
    jackknives: dict[str, Jackknife] = {}
    # How many images the smallest set has that the jackknife measures.
    left = len(generated) - math.ceil(len(generated) / BLOCKS) if uncertainty and len(generated) >= BLOCKS else 0
    if "frechet_distance" in metrics and len(generated) >= 2:
        values["frechet_distance"] = distance_to(_moments(generated), reference)
        if left >= 2 and not isinstance(generated, RunningMoments):
            blocks = BlockMoments.of(generated.features) if isinstance(generated, Features) else generated
            jackknives["frechet_distance"] = distance_jackknife(blocks, reference, values["frechet_distance"])
            values["frechet_distance_unbiased"] = jackknives["frechet_distance"].unbiased
    if isinstance(generated, Features):
        for found in (
            _pairwise(generated.features, reference, metrics, seed, device, left),
            _inception_score(generated.logits, metrics, seed, left),
            _values(generated.features, reference, metrics, left),
        ):
            values |= found.values
            jackknives |= found.jackknives
        for name in metrics:
            own = MEASURES[name]
            if own is not None:
                values |= _own(name, own.function(generated, reference))
    return Measurement(values | {f"{column}_sd": found.sd for column, found in jackknives.items()}, jackknives)


def _pairwise(
    features: Tensor,
    reference: ReferenceStatistics,
    metrics: Collection[str],
    seed: int,
    device: torch.device | str,
    left: int,
) -> Measurement:
    """KID, precision and recall. left: images without a block, 0 where no deviations are wanted."""
    values: dict[str, float] = {}
    jackknives: dict[str, Jackknife] = {}
    if reference.features is None:
        return Measurement(values, jackknives)
    smaller = min(len(features), len(reference.features))
    if "kid" in metrics and smaller >= 2:
        size = min(KID_SUBSET_SIZE, smaller)
        values["kid_mean"], values["kid_std"] = kernel_distance(
            features, reference.features, KID_SUBSETS, size, seed, reference.kernel_sums
        )
        if left >= 2:
            jackknives["kid_mean"] = kernel_jackknife(
                features, reference.features, reference.kernel_sum(device), device
            )
    if "precision_recall" in metrics and smaller > NEIGHBOURS:
        arguments = (features, reference.features, reference.radii(NEIGHBOURS, device), NEIGHBOURS, device)
        if left > NEIGHBOURS:
            both = precision_recall_jackknife(*arguments)
            jackknives |= zip(("precision", "recall"), both, strict=True)
            values["precision"], values["recall"] = (found.value for found in both)
        else:
            values["precision"], values["recall"] = precision_recall(*arguments)
    return Measurement(values, jackknives)


def _values(features: Tensor, reference: ReferenceStatistics, metrics: Collection[str], left: int) -> Measurement:
    """What is measured of vectors, on the CPU. left: as in `_pairwise`."""
    values: dict[str, float] = {}
    found: dict[str, Jackknife] = {}
    features, others = features.cpu(), reference.features
    smaller = 0 if others is None else min(len(features), len(others))
    if others is not None and "energy_distance" in metrics and smaller >= 2:
        within = reference.mean_distance()
        if left >= 2:
            found["energy_distance"] = energy_jackknife(features, others, within)
        else:
            values["energy_distance"] = energy_distance(features, others, within)
    if others is not None and "sliced_wasserstein" in metrics and smaller >= 1:
        if left:
            found["sliced_wasserstein"] = sliced_jackknife(features, others)
        else:
            values["sliced_wasserstein"] = sliced_wasserstein(features, others)
    if others is not None and "c2st" in metrics and smaller >= 2 * FOLDS:
        values["c2st"] = classifier_two_sample(features, others)
    if reference.log_density is not None and "log_density" in metrics and len(features):
        density = reference.log_density(features)
        values["log_density"] = density.mean().item()
        if left:
            found["log_density"] = mean_jackknife(density)
    return Measurement({**values, **{column: one.value for column, one in found.items()}}, found)


def _inception_score(logits: Tensor | None, metrics: Collection[str], seed: int, left: int) -> Measurement:
    if "inception_score" not in metrics or logits is None or len(logits) < INCEPTION_SCORE_SPLITS:
        return Measurement({}, {})
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    score = isc_features_to_metric(logits.cpu(), splits=INCEPTION_SCORE_SPLITS, rng_seed=seed)
    values = {
        "inception_score_mean": score[KEY_METRIC_ISC_MEAN],
        "inception_score_std": score[KEY_METRIC_ISC_STD],
    }
    return Measurement(values, {"inception_score_mean": inception_jackknife(logits)} if left else {})


def _own(name: str, found: float | Measured) -> dict[str, float]:
    if isinstance(found, Measured):
        return {name: float(found.value), f"{name}_sd": float(found.sd)}
    return {name: float(found)}


def compute_floor(
    real: ReferenceStatistics,
    reference: ReferenceStatistics,
    metrics: Collection[str] = IMAGE_METRICS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """`compute_metrics` of one set of real images against another; kept beside the cached statistics of the first.

    Raises as that does, and ValueError where the features of `real` are not known.
    """
    if real.features is None:
        raise ValueError("a floor needs the features of the real images")
    generated = Features(real.features)

    def compute() -> dict[str, NDArray[np.float64]]:
        return {
            key: np.asarray(value, np.float64)
            for key, value in compute_metrics(generated, reference, metrics, seed, device).items()
        }

    if real.path is None:
        return {key: float(value) for key, value in compute().items()}
    own = {name: measure.version for name in metrics if (measure := MEASURES[name]) is not None}
    question = {"reference": reference.digest, "metrics": sorted(metrics), "seed": seed, "subsets": KID_SUBSETS}
    question |= {"own": own} if own else {}
    values = derived(real.path, f"floor-{short_hash(question)}", compute, _are_metrics)
    return {key: float(value) for key, value in values.items()}


def _moments(generated: Features | RunningMoments | BlockMoments) -> RunningMoments:
    if isinstance(generated, RunningMoments):
        return generated
    if isinstance(generated, BlockMoments):
        return generated.total()
    moments = RunningMoments(generated.features.shape[1])
    moments.update(generated.features)
    return moments


def _are_metrics(arrays: dict[str, NDArray[np.float64]]) -> bool:
    return all(value.shape == () and value.dtype == np.float64 and np.isfinite(value) for value in arrays.values())
