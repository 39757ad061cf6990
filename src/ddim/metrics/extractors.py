"""The feature extractors by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ddim.errors import UserError
from ddim.metrics.cifar_cnn import CifarFeatures
from ddim.metrics.classifiers import ClassifierFeatures
from ddim.metrics.digits_cnn import DigitsFeatures
from ddim.metrics.features import FeatureExtractor, PixelFeatures
from ddim.metrics.inception import InceptionFeatures, NoWeights, find_weights
from ddim.metrics.values import VALUES
from ddim.runs.processes import place

log = logging.getLogger(__name__)
# What `chosen_features` chooses.
AUTO = "auto"
# Further extractors by name: (channels, resolution) -> FeatureExtractor.
EXTRACTORS: dict[str, Callable[[int, int], FeatureExtractor] | None] = dict.fromkeys(
    (AUTO, "inception-v3-compat", "cifar-cnn", "digits-cnn", "pixels", VALUES)
)
FEATURES = EXTRACTORS.keys()
# Those that also say what an image shows.
CLASSIFIERS: tuple[Callable[[], ClassifierFeatures], ...] = (DigitsFeatures, CifarFeatures)


def build_extractor(
    name: str, *, channels: int, resolution: int, weights_dir: Path, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """The extractor `name` for uint8 images (N, channels, resolution, resolution).

    weights_dir: folder with the Inception weights; they are downloaded into it when they are not there.
    Raises ValueError for an unknown name, UserError where the images do not suit the features or weights are missing.
    """
    if name not in FEATURES:
        raise ValueError(f"unknown features {name!r}; known are {', '.join(FEATURES)}")
    if name == AUTO:
        name = chosen_features(channels, resolution, weights_dir)
    extractor: FeatureExtractor
    if name == VALUES:
        raise UserError("evaluation.features=values are of data that are no images; take evaluation.features=pixels")
    registered = EXTRACTORS[name]
    if registered is not None:
        extractor = registered(channels, resolution)
    elif name == "inception-v3-compat":
        if channels not in (1, 3):
            raise UserError(
                f"evaluation.features=inception-v3-compat takes images with 1 or 3 channels, not {channels}; "
                "take evaluation.features=pixels"
            )
        extractor = InceptionFeatures(Path(weights_dir))
    elif name == "digits-cnn":
        if (channels, resolution) != (1, 8):
            raise UserError(
                "evaluation.features=digits-cnn takes greyscale images of 8x8 pixels, "
                f"not {channels} channels of {resolution}x{resolution}; take evaluation.features=pixels"
            )
        extractor = DigitsFeatures()
    elif name == "cifar-cnn":
        if (channels, resolution) != (3, 32):
            raise UserError(
                "evaluation.features=cifar-cnn takes colour images of 32x32 pixels, "
                f"not {channels} channels of {resolution}x{resolution}; take evaluation.features=pixels"
            )
        extractor = CifarFeatures()
    else:
        extractor = PixelFeatures(channels, resolution)
    return extractor.requires_grad_(False).eval().to(device)


def chosen_features(channels: int, resolution: int, weights_dir: Path) -> str:
    """What `auto` stands for: Inception's for colour images of 32x32 pixels, `cifar-cnn` where its weights are neither
    in `weights_dir` nor to be downloaded, which is said; `pixels` for all other images.
    """
    if (channels, resolution) != (3, 32):
        return "pixels"
    here = place()
    try:
        # The first process of a machine has downloaded them, if they are to be had: all come to the same choice.
        find_weights(weights_dir, may_download=here.local_rank == 0)
    except NoWeights as error:
        if here.first:
            log.warning(
                "Distances are measured on cifar-cnn features and are no FID: the Inception weights could not be "
                "downloaded (%s).",
                error.reason,
            )
        return "cifar-cnn"
    return "inception-v3-compat"


def build_classifier(
    classes: Sequence[str], *, channels: int, resolution: int, device: torch.device | str = "cpu"
) -> ClassifierFeatures | None:
    """The shipped classifier that tells these classes apart on such images; None where there is none.

    classes: names in the order of the labels. Label k of the data set is then class k of `classify`.
    """
    for known in CLASSIFIERS:
        classifier = known()
        if (classifier.classes, classifier.image_shape) == (tuple(classes), (channels, resolution, resolution)):
            return classifier.requires_grad_(False).eval().to(device)
    return None
