"""Sample quality: features of images, statistics of a reference set, and the distances between them."""

from ddim.metrics.compute import (
    MEASURES,
    METRICS,
    NEIGHBOURS,
    Metric,
    compute_floor,
    compute_metrics,
    frechet_distance,
    needs_features,
)
from ddim.metrics.extractors import EXTRACTORS, FEATURES, build_extractor
from ddim.metrics.features import FeatureExtractor, Features, extract_features, full_float32
from ddim.metrics.moments import RunningMoments
from ddim.metrics.neighbours import nearest_neighbours
from ddim.metrics.reference import (
    ReferenceStatistics,
    load_published_statistics,
    preprocessing_hash,
    reference_statistics,
)

__all__ = [
    "EXTRACTORS",
    "FEATURES",
    "MEASURES",
    "METRICS",
    "NEIGHBOURS",
    "FeatureExtractor",
    "Features",
    "Metric",
    "ReferenceStatistics",
    "RunningMoments",
    "build_extractor",
    "compute_floor",
    "compute_metrics",
    "extract_features",
    "frechet_distance",
    "full_float32",
    "load_published_statistics",
    "nearest_neighbours",
    "needs_features",
    "preprocessing_hash",
    "reference_statistics",
]
