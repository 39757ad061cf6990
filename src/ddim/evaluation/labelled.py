"""What is measured of samples that have labels, besides what is measured of all."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from ddim.data import ImageDataModule
from ddim.metrics import ClassifierFeatures, Features
from ddim.metrics.labels import class_distances, label_accuracy
from ddim.metrics.measure import Measure


def reference_labels(images: ImageDataModule, measure: Measure) -> Tensor | None:
    """The classes (M,) of the images that the reference's features are of; None where they are not known."""
    if measure.split is None or measure.reference.indices is None or "classes" not in (images.meaning or {}):
        return None
    labels = images.conditions(measure.split)
    return None if labels is None else labels[measure.reference.indices]


def labelled_columns(
    features: Features, labels: Tensor, classes: Sequence[str], measure: Measure, real: Tensor | None
) -> dict[str, Any]:
    """The columns of a row: accuracy where the features are of a classifier of these classes, distance of each class.

    labels (N,): of the samples. real (M,): of the reference's features, or None.
    """
    found: dict[str, Any] = {}
    extractor, reference = measure.extractor, measure.reference.features
    if isinstance(extractor, ClassifierFeatures) and extractor.classes == tuple(classes):
        accuracy = label_accuracy(extractor.logits_of(features.features).argmax(dim=1), labels)
        found |= {"label_accuracy": accuracy.value, "label_accuracy_sd": accuracy.sd}
    if real is not None and reference is not None:
        distances = class_distances(features.features, labels, reference, real)
        if distances:
            found["class_distance"] = fmean(distances.values())
            found["class_distances"] = tuple((classes[number], value) for number, value in distances.items())
    return found
