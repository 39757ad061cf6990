"""What samples are measured with and against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ddim.errors import UserError
from ddim.metrics.compute import NEIGHBOURS, compute_floor, needs_features
from ddim.metrics.extractors import build_extractor
from ddim.metrics.features import FeatureExtractor
from ddim.metrics.published import load_published_statistics
from ddim.metrics.reference import ReferenceStatistics, reference_statistics
from ddim.metrics.values import VALUES, ValueFeatures, ValueSpace

# Passes batches through and shows how many of a total are done.
Track = Callable[[Iterable[Tensor], str, int], Iterable[Tensor]]


class RealImages(Protocol):
    """A data set, as far as statistics of it need to know."""

    @property
    def space(self) -> ValueSpace: ...

    @property
    def log_density(self) -> Callable[[Tensor], Tensor] | None: ...

    def num_images(self, split: str) -> int: ...

    def images(self, split: str, batch_size: int) -> Iterator[Tensor]: ...

    def provenance(self, split: str) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class FloorMetrics:
    """What real held-out images score against the reference."""

    num_images: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """Features, reference and metrics. Kept outside the LightningModule, whose weights are averaged.

    split: whose images the reference is of; None for published statistics that do not say.
    """

    extractor: FeatureExtractor
    reference: ReferenceStatistics
    metrics: tuple[str, ...]
    floor: FloorMetrics | None = None
    split: str | None = None

    @property
    def needs_features(self) -> bool:
        """Whether a metric looks at single images; else the moments of all features say enough."""
        return needs_features(self.metrics, self.reference)


def features_name(extractor: FeatureExtractor) -> str:
    """Only the published Inception weights make a FID; a distance on others must not carry its name."""
    if extractor.provenance.get("canonical_weights", True):
        return extractor.name
    return f"{extractor.name} (other weights {extractor.provenance['weights_sha256'][:8]})"


def other_split(split: str) -> str:
    """Whose images are held out where the reference is of `split`."""
    return "test" if split == "train" else "train"


def load_extractor(
    features: str, images: RealImages, *, cache_dir: str | Path, device: torch.device | str, key: str = "evaluation"
) -> FeatureExtractor:
    """The feature extractor for these images. Raises `UserError` where its weights are not to be had, or the features
    are of something else."""
    space = images.space
    if space.stated() is not None:
        if features != VALUES:
            raise UserError(
                f"{key}.features={features} are of images, the data set has {space.kind}; take {key}.features={VALUES}"
            )
        return ValueFeatures(space).to(device)
    return build_extractor(
        features,
        channels=space.shape[0],
        resolution=space.shape[-1],
        weights_dir=Path(cache_dir) / "weights",
        device=device,
    )


def statistics_of(
    split: str, extractor: FeatureExtractor, images: RealImages, cache_dir: str | Path, track: Track
) -> ReferenceStatistics:
    """Statistics of all images of a split, from the cache below `cache_dir` where they are there."""
    count = images.num_images(split)
    return reference_statistics(
        extractor,
        lambda: track(
            images.images(split, batch_size=500), f"{extractor.name} statistics of {count:,} {split} images", count
        ),
        images.provenance(split),
        Path(cache_dir) / "reference",
    )


def build_measure(
    extractor: FeatureExtractor,
    metrics: Sequence[str],
    images: RealImages,
    *,
    cache_dir: str | Path,
    device: torch.device | str,
    seed: int,
    track: Track,
    split: str = "train",
    published: str | None = None,
    with_floor: bool = False,
    key: str = "evaluation",
) -> Measure:
    """Reference statistics: of `split`, or of a `published` file; the floor is the other split's.

    key: whose settings these are.

    Raises:
        UserError: the published file is none, there are too few images, or a metric has no meaning for them.
    """
    check_metrics(metrics, images.space, density=images.log_density is not None, key=key)
    reference = (
        _published(Path(published), extractor)
        if published
        else statistics_of(split, extractor, images, cache_dir, track)
    )
    density = images.log_density
    if density is not None:
        reference = replace(reference, log_density=lambda features: _log_density(features, images, density))
    if "precision_recall" in metrics and reference.features is not None and len(reference.features) > NEIGHBOURS:
        # Here, while other processes wait: they find them in the cache.
        reference.radii(NEIGHBOURS, device)
    floor = None
    if with_floor:
        real = statistics_of(other_split(split), extractor, images, cache_dir, track)
        assert real.features is not None
        floor = FloorMetrics(len(real.features), compute_floor(real, reference, metrics, seed, device))
    known = reference.provenance.get("data", {}).get("split") if published else split
    return Measure(extractor, reference, tuple(metrics), floor, known)


def _log_density(features: Tensor, images: RealImages, density: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the data as they are stored, whose standardised values the features are."""
    return density(images.space.to_stored(features.unflatten(1, images.space.shape)))


def check_metrics(metrics: Sequence[str], space: ValueSpace, *, density: bool, key: str = "evaluation") -> None:
    """Raises `UserError`, naming `key`, for a metric that has no meaning here.

    density: whether the exact one is known.
    """
    of_images = {"frechet_distance", "kid", "inception_score"}
    for name in metrics:
        if name in of_images and space.stated() is not None:
            raise UserError(
                f"{key}.metrics={name} is of images, the data set has {space.kind}; take "
                "energy_distance, sliced_wasserstein, c2st or precision_recall"
            )
        if name == "log_density" and not density:
            raise UserError(
                f"{key}.metrics=log_density needs data whose density is known, as dataset=points2d "
                "dataset.shape=mixture; take other metrics"
            )


def _published(path: Path, extractor: FeatureExtractor) -> ReferenceStatistics:
    try:
        return load_published_statistics(path, extractor.dim, extractor.provenance)
    except UserError as error:
        raise UserError(f"evaluation.reference={path}: {error}") from error
