"""Samples that have labels: whether a classifier sees what they are of, and how far each class is from real images."""

from __future__ import annotations

import math

from torch import Tensor

from ddim.metrics.frechet import frechet_distance
from ddim.metrics.moments import RunningMoments
from ddim.metrics.uncertainty import Measured


def label_accuracy(predicted: Tensor, labels: Tensor) -> Measured:
    """The part of the samples whose predicted class (N,) is their label (N,), and its binomial standard deviation.

    Raises ValueError for other shapes or no samples.
    """
    if predicted.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} must be of as many")
    right = (predicted.cpu() == labels.cpu()).double().mean().item()
    return Measured(right, math.sqrt(right * (1 - right) / len(labels)), "binomial")


def class_distances(features: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> dict[int, float]:
    """The Frechet distance of the samples of each class to the real images of that class, by its number.

    features (N, D) with labels (N,); reference (M, D) with reference_labels (M,). Classes with fewer than two images
    on a side are absent. Few images bias it upwards, all classes alike where they have as many.
    """
    found = {}
    for number in labels.unique().tolist():
        ours, theirs = features[labels == number], reference[reference_labels == number]
        if min(len(ours), len(theirs)) >= 2:
            one, other = _moments(ours), _moments(theirs)
            found[number] = frechet_distance(one.mean, one.covariance(), other.mean, other.covariance())
    return found


def _moments(features: Tensor) -> RunningMoments:
    moments = RunningMoments(features.shape[1])
    moments.update(features)
    return moments
