"""Sample quality: features of images, statistics of a reference set, and the distances between them."""

from ddim.metrics.blocks import BLOCKS, BlockMoments, block_of
from ddim.metrics.classifiers import ClassifierFeatures
from ddim.metrics.compute import (
    IMAGE_METRICS,
    MEASURES,
    METRICS,
    NEIGHBOURS,
    VALUE_METRICS,
    Measurement,
    Metric,
    compute_floor,
    compute_metrics,
    measure_metrics,
    needs_features,
)
from ddim.metrics.extractors import EXTRACTORS, FEATURES, build_classifier, build_extractor
from ddim.metrics.features import FeatureExtractor, Features, extract_features, full_float32
from ddim.metrics.frechet import distance_jackknife, frechet_distance, reference_bias
from ddim.metrics.moments import RunningMoments
from ddim.metrics.neighbours import nearest_neighbours
from ddim.metrics.published import load_published_statistics
from ddim.metrics.reference import ReferenceStatistics, preprocessing_hash, reference_statistics
from ddim.metrics.uncertainty import (
    Comparison,
    Jackknife,
    Measured,
    compare,
    difference,
    over_seeds,
    simultaneous_multiple,
)

__all__ = [
    "BLOCKS",
    "EXTRACTORS",
    "FEATURES",
    "IMAGE_METRICS",
    "MEASURES",
    "METRICS",
    "NEIGHBOURS",
    "VALUE_METRICS",
    "BlockMoments",
    "ClassifierFeatures",
    "Comparison",
    "FeatureExtractor",
    "Features",
    "Jackknife",
    "Measured",
    "Measurement",
    "Metric",
    "ReferenceStatistics",
    "RunningMoments",
    "block_of",
    "build_classifier",
    "build_extractor",
    "compare",
    "compute_floor",
    "compute_metrics",
    "difference",
    "distance_jackknife",
    "extract_features",
    "frechet_distance",
    "full_float32",
    "load_published_statistics",
    "measure_metrics",
    "nearest_neighbours",
    "needs_features",
    "over_seeds",
    "preprocessing_hash",
    "reference_bias",
    "reference_statistics",
    "simultaneous_multiple",
]
