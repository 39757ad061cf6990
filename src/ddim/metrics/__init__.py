"""Sample quality: features of images, statistics of a reference set, and the distances between them."""

from ddim.metrics.compute import MEASURES, METRICS, Metric, compute_metrics, frechet_distance
from ddim.metrics.extractors import EXTRACTORS, FEATURES, build_extractor
from ddim.metrics.features import FeatureExtractor, Features, extract_features
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
    "FeatureExtractor",
    "Features",
    "Metric",
    "ReferenceStatistics",
    "RunningMoments",
    "build_extractor",
    "compute_metrics",
    "extract_features",
    "frechet_distance",
    "load_published_statistics",
    "nearest_neighbours",
    "preprocessing_hash",
    "reference_statistics",
]
