"""The feature extractors by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ddim.errors import UserError
from ddim.metrics.classifiers import ClassifierFeatures
from ddim.metrics.digits_cnn import DigitsFeatures
from ddim.metrics.features import FeatureExtractor, PixelFeatures
from ddim.metrics.inception import InceptionFeatures
from ddim.metrics.values import VALUES

# Further extractors by name: (channels, resolution) -> FeatureExtractor.
EXTRACTORS: dict[str, Callable[[int, int], FeatureExtractor] | None] = dict.fromkeys(
    ("inception-v3-compat", "digits-cnn", "pixels", VALUES)
)
FEATURES = EXTRACTORS.keys()
# Those that also say what an image shows.
CLASSIFIERS: tuple[Callable[[], ClassifierFeatures], ...] = (DigitsFeatures,)


def build_extractor(
    name: str, *, channels: int, resolution: int, weights_dir: Path, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """The extractor `name` for uint8 images (N, channels, resolution, resolution).

    weights_dir: folder with the Inception weights; they are downloaded into it when they are not there.
    Raises ValueError for an unknown name, UserError where the images do not suit the features or weights are missing.
    """
    if name not in FEATURES:
        raise ValueError(f"unknown features {name!r}; known are {', '.join(FEATURES)}")
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
    else:
        extractor = PixelFeatures(channels, resolution)
    return extractor.requires_grad_(False).eval().to(device)


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
