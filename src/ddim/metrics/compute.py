"""The metrics, as torch-fidelity defines them, on features that are extracted once.

What it offers in parts is called; what it would do again for every set, though it depends on the reference alone, is
kept with the reference: the root of its covariance, the radii of its manifold, the sums of its kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from ddim.metrics.cache import derived
from ddim.metrics.features import Features
from ddim.metrics.kid import kernel_distance
from ddim.metrics.manifold import precision_recall
from ddim.metrics.moments import RunningMoments, symmetric_root
from ddim.metrics.reference import ReferenceStatistics, short_hash


@dataclass(frozen=True)
class Metric:
    """A metric of a user's own: `function(generated, reference)` is one number. `version` changes when it does."""

    function: Callable[[Features, ReferenceStatistics], float]
    version: str


MEASURES: dict[str, Metric | None] = dict.fromkeys(("frechet_distance", "kid", "precision_recall", "inception_score"))
METRICS = MEASURES.keys()
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
NEIGHBOURS = 3
INCEPTION_SCORE_SPLITS = 10


def needs_features(metrics: Collection[str], reference: ReferenceStatistics) -> bool:
    """Whether a metric looks at single features; else their moments say all."""
    pairwise = reference.features is not None and not {"kid", "precision_recall"}.isdisjoint(metrics)
    return pairwise or "inception_score" in metrics or any(MEASURES[name] is not None for name in metrics)


def compute_metrics(
    generated: Features | RunningMoments,
    reference: ReferenceStatistics,
    metrics: Collection[str] = METRICS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Distances between generated images and a reference; every generated image enters once.

    metrics: names out of METRICS. Returned keys: `frechet_distance` (Heusel et al., 2017), `kid_mean` and `kid_std`
    (Binkowski et al., 2018; unbiased, over 100 subsets of min(1000, N) images drawn by `seed`), `precision` and
    `recall` (Kynkaanniemi et al., 2019; 3 neighbours; precision is the part of the generated images inside the
    reference manifold), `inception_score_mean` and `inception_score_std` (Salimans et al., 2016; 10 splits shuffled
    by `seed`), and the name of each metric of a user's own.

    What cannot be computed is absent: KID, precision and recall without reference features (published statistics) or
    with fewer than 2 or 4 images on a side, the Inception score without logits or with fewer than 10 images, the
    Frechet distance of fewer than 2 images, and all but that where of the generated images only the moments are
    known. `device` is where pairwise distances are computed.

    Raises ValueError for an unknown metric and for features of another dimension than the reference.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known are {', '.join(METRICS)}")
    dim = generated.dim if isinstance(generated, RunningMoments) else generated.features.shape[1]
    if dim != len(reference.mu):
        raise ValueError(f"generated features have {dim} dimensions, the reference has {len(reference.mu)}")
    values: dict[str, float] = {}
    if "frechet_distance" in metrics and len(generated) >= 2:
        moments = generated if isinstance(generated, RunningMoments) else _moments(generated)
        values["frechet_distance"] = _frechet_distance(
            moments.mean, moments.covariance(), reference.mu, reference.sigma_root
        )
    if isinstance(generated, RunningMoments):
        return values
    smaller = min(len(generated), 0 if reference.features is None else len(reference.features))
    if reference.features is not None and "kid" in metrics and smaller >= 2:
        values["kid_mean"], values["kid_std"] = kernel_distance(
            generated.features,
            reference.features,
            KID_SUBSETS,
            min(KID_SUBSET_SIZE, smaller),
            seed,
            reference.kernel_sums,
        )
    if reference.features is not None and "precision_recall" in metrics and smaller > NEIGHBOURS:
        radii = reference.radii(NEIGHBOURS, device)
        values["precision"], values["recall"] = precision_recall(
            generated.features, reference.features, radii, NEIGHBOURS, device
        )
    if "inception_score" in metrics and generated.logits is not None and len(generated) >= INCEPTION_SCORE_SPLITS:
        isc = isc_features_to_metric(generated.logits.cpu(), splits=INCEPTION_SCORE_SPLITS, rng_seed=seed)
        values |= {
            "inception_score_mean": isc[KEY_METRIC_ISC_MEAN],
            "inception_score_std": isc[KEY_METRIC_ISC_STD],
        }
    for name in metrics:
        own = MEASURES[name]
        if own is not None:
            values[name] = float(own.function(generated, reference))
    return values


def compute_floor(
    real: ReferenceStatistics,
    reference: ReferenceStatistics,
    metrics: Collection[str] = METRICS,
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


def _moments(features: Features) -> RunningMoments:
    moments = RunningMoments(features.features.shape[1])
    moments.update(features.features)
    return moments


def _are_metrics(arrays: dict[str, NDArray[np.float64]]) -> bool:
    return all(value.shape == () and value.dtype == np.float64 and np.isfinite(value) for value in arrays.values())


def frechet_distance(
    mu_1: NDArray[np.float64], sigma_1: NDArray[np.float64], mu_2: NDArray[np.float64], sigma_2: NDArray[np.float64]
) -> float:
    """|mu_1 - mu_2|^2 + tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2)); mu (D,), sigma (D, D), all float64."""
    return _frechet_distance(mu_1, sigma_1, mu_2, symmetric_root(sigma_2))


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
