"""Statistics of the real images: computed once, cached with their provenance."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddim.errors import UserError
from ddim.metrics.cache import UNREADABLE, cached_kernel_sum, cached_radii, forget_derived, save_arrays
from ddim.metrics.features import FeatureExtractor
from ddim.metrics.kid import KernelSums
from ddim.metrics.moments import RunningMoments, symmetric_root
from ddim.metrics.reservoir import Reservoir
from ddim.metrics.two_sample import mean_distance_within

logger = logging.getLogger(__name__)
FORMAT = 2
# What in a data set's provenance says which images these are. Everything else says how they were made from their
# files, whatever may be added to it: a setting that is not known here must not go unnoticed.
IMAGE_IDENTITY = frozenset({"dataset", "split", "split_rule", "count", "skipped", "fingerprint"})


@dataclass(frozen=True)
class ReferenceStatistics:
    """Mean and covariance of a reference set's features, and the features themselves where they are known.

    mu: float64 (D,). sigma: float64 (D, D), divided by N - 1. num_images: N behind mu and sigma, None if unknown.
    features: float32 (M, D), M = min(N, max_features), or None. indices: int64 (M,), which image each of the features
    is of, by its position in the stream of images; None without features. provenance: where all this comes from.
    digest: a short identifier of it. path: the cache file; None where there is none. log_density: the exact one in nats
    of what has features (N, D), where it is known.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    num_images: int | None
    features: Tensor | None
    provenance: dict[str, Any]
    digest: str
    indices: Tensor | None = None
    path: Path | None = None
    log_density: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    # What KID keeps here, see `ddim.metrics.kid`.
    kernel_sums: KernelSums = field(default_factory=dict, init=False, repr=False, compare=False)
    _kernel_sum: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)
    _radii: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)
    _mean_distance: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def sigma_root(self) -> NDArray[np.float64]:
        """The symmetric root of sigma, (D, D): computed once for all sets that are measured against this one."""
        return symmetric_root(self.sigma)

    def radii(self, k: int, device: torch.device | str = "cpu") -> Tensor:
        """The distance of each of the features to its k-th nearest other: float32 (M,), kept here and in the cache.

        device: where it is computed. Raises ValueError without features, or with no more than k of them.
        """
        if self.features is None:
            raise ValueError("radii need the features of the reference, which are not known")
        if k not in self._radii:
            self._radii[k] = cached_radii(self.path, k, self.features, device)
        return self._radii[k]

    def kernel_sum(self, device: torch.device | str = "cpu") -> float:
        """KID's kernel summed over all ordered pairs of different features, kept here and in the cache.

        device: where it is computed. Raises ValueError without features.
        """
        if self.features is None:
            raise ValueError("the sum of a kernel needs the features of the reference, which are not known")
        if "all" not in self._kernel_sum:
            self._kernel_sum["all"] = cached_kernel_sum(self.path, self.features, device)
        return self._kernel_sum["all"]

    def mean_distance(self) -> float:
        """Mean distance between two different ones of the features, kept here. Raises ValueError without features."""
        if self.features is None:
            raise ValueError("distances need the features of the reference, which are not known")
        if not self._mean_distance:
            self._mean_distance.append(mean_distance_within(self.features))
        return self._mean_distance[0]

    @property
    def preprocessing(self) -> str | None:
        """A short identifier of how files became features: decoder settings, resolution, extractor and its weights.

        Equal for two sets of images, say two splits, that were treated alike; statistics may be compared only if it
        is. None where the provenance does not tell, as that of published files.
        """
        if not {"data", "extractor"} <= self.provenance.keys():
            return None
        return preprocessing_hash(self.provenance["data"], self.provenance["extractor"])


def preprocessing_hash(data: Mapping[str, Any], extractor: Mapping[str, Any] | None = None) -> str:
    """A short hash of how images (by their data set's provenance), and features of them, were made from files."""
    treatment = {key: value for key, value in data.items() if key not in IMAGE_IDENTITY}
    return short_hash({"data": treatment} | ({} if extractor is None else {"extractor": extractor}))


def reference_statistics(
    extractor: FeatureExtractor,
    images: Callable[[], Iterable[Tensor]],
    provenance: Mapping[str, Any],
    cache_dir: Path,
    progress: Callable[[int], None] | None = None,
    max_features: int = 50_000,
) -> ReferenceStatistics:
    """Statistics of all images that `images()` yields in uint8 batches (N, C, H, W), from the cache where possible.

    images: called only when the cache has nothing. provenance: JSON-able and different for different pixels, as it
    decides, together with the extractor's, whether a cached file fits; a "count" in it must be the number of images.
    progress: called with the number of images done. max_features: how many features are kept for KID, precision and
    recall; beyond it a uniform random subset that depends on nothing but the order of the images, and `indices` tells
    which.

    A damaged cache file is computed anew; a cache that cannot be written costs a warning. Raises UserError for fewer
    than 2 images, ValueError where provenance is not JSON-able or disagrees with the number of images.
    """
    full_provenance = _json_round_trip(
        {"format": FORMAT, "data": dict(provenance), "extractor": extractor.provenance, "max_features": max_features}
    )
    digest = short_hash(full_provenance)
    path = Path(cache_dir) / f"reference-{digest}.npz"
    cached = _read_cache(path, extractor.dim, full_provenance, digest)
    if cached is not None:
        return cached

    moments, kept = RunningMoments(extractor.dim), Reservoir(max_features, extractor.dim)
    for batch in images():
        features = extractor(batch).features.cpu()
        moments.update(features)
        kept.add(features.numpy())
        if progress is not None:
            progress(moments.count)
    if moments.count < 2:
        raise UserError(f"reference statistics need at least 2 images, the data set has {moments.count}")
    if provenance.get("count", moments.count) != moments.count:
        raise ValueError(f"provenance says {provenance['count']} images, there were {moments.count}")
    statistics = ReferenceStatistics(
        moments.mean,
        moments.covariance(),
        moments.count,
        torch.from_numpy(kept.rows()),
        full_provenance,
        digest,
        torch.from_numpy(kept.indices()),
        path,
    )
    try:
        _write_cache(path, statistics)
    except OSError as error:
        logger.warning("reference statistics could not be cached in %s: %s", path, error)
    return statistics


def short_hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _json_round_trip(value: dict[str, Any]) -> dict[str, Any]:
    """Tuples become lists and so on, as they will be after a journey through the cache."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(f"provenance must be JSON-able: {error}") from error


def _read_cache(path: Path, dim: int, provenance: dict[str, Any], digest: str) -> ReferenceStatistics | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            mu, sigma, features, indices = (file[key] for key in ("mu", "sigma", "features", "indices"))
            num_images, stored = int(file["num_images"]), json.loads(file["provenance"].item())
    except UNREADABLE as error:
        logger.warning("the cached reference statistics %s cannot be read and are computed anew: %s", path, error)
        return None
    shapes = (mu.shape, sigma.shape, features.shape, indices.shape)
    kept = min(num_images, provenance["max_features"])
    if stored != provenance or shapes != ((dim,), (dim, dim), (kept, dim), (kept,)):
        logger.warning("the cached reference statistics %s are of something else and are computed anew", path)
        return None
    return ReferenceStatistics(
        mu, sigma, num_images, torch.from_numpy(features), stored, digest, torch.from_numpy(indices), path
    )


def _write_cache(path: Path, statistics: ReferenceStatistics) -> None:
    assert statistics.features is not None and statistics.indices is not None and statistics.num_images is not None
    forget_derived(path)
    save_arrays(
        path,
        mu=statistics.mu,
        sigma=statistics.sigma,
        features=statistics.features.numpy(),
        indices=statistics.indices.numpy(),
        num_images=np.int64(statistics.num_images),
        provenance=np.array(json.dumps(statistics.provenance, sort_keys=True)),
    )
