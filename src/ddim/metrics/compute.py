"""The metrics. torch-fidelity defines and computes them; here its functions meet features that are extracted once."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ddim.metrics.features import Features, full_float32
from ddim.metrics.moments import RunningMoments
from ddim.metrics.reference import ReferenceStatistics


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
# torch-fidelity's fast path keeps four N x N matrices, 40 GB for 50,000 images; blocks of this many rows need 200 MB.
DISTANCE_ROWS = 1000
INCEPTION_SCORE_SPLITS = 10


def compute_metrics(
    generated: Features,
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
    Frechet distance of fewer than 2 images. `device` is where pairwise distances are computed.

    Raises ValueError for an unknown metric and for features of another dimension than the reference.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known are {', '.join(METRICS)}")
    dim = generated.features.shape[1]
    if dim != len(reference.mu):
        raise ValueError(f"generated features have {dim} dimensions, the reference has {len(reference.mu)}")
    values: dict[str, float] = {}
    if "frechet_distance" in metrics and len(generated) >= 2:
        moments = RunningMoments(dim)
        moments.update(generated.features)
        values["frechet_distance"] = frechet_distance(moments.mean, moments.covariance(), reference.mu, reference.sigma)
    smaller = min(len(generated), 0 if reference.features is None else len(reference.features))
    if reference.features is not None and "kid" in metrics and smaller >= 2:
        kid = kid_features_to_metric(
            generated.features,
            reference.features,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=min(KID_SUBSET_SIZE, smaller),
            rng_seed=seed,
            verbose=False,
        )
        values |= {"kid_mean": kid[KEY_METRIC_KID_MEAN], "kid_std": kid[KEY_METRIC_KID_STD]}
    if reference.features is not None and "precision_recall" in metrics and smaller > NEIGHBOURS:
        # The order carries the meaning: the first argument is the generated set.
        with full_float32(torch.device(device).type):
            prc = prc_features_to_metric(
                generated.features.to(device),
                reference.features.to(device),
                prc_neighborhood=NEIGHBOURS,
                prc_batch_size=DISTANCE_ROWS,
                save_cpu_ram=True,
                verbose=False,
            )
        values |= {"precision": prc[KEY_METRIC_PRECISION], "recall": prc[KEY_METRIC_RECALL]}
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


def frechet_distance(
    mu_1: NDArray[np.float64], sigma_1: NDArray[np.float64], mu_2: NDArray[np.float64], sigma_2: NDArray[np.float64]
) -> float:
    """|mu_1 - mu_2|^2 + tr(sigma_1 + sigma_2 - 2 (sigma_1 sigma_2)^(1/2)); mu (D,), sigma (D, D), all float64."""
    first, second = {"mu": mu_1, "sigma": sigma_1}, {"mu": mu_2, "sigma": sigma_2}
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]
