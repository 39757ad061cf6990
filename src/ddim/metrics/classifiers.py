"""Features that are the last hidden layer of a classifier which lies in this package, and what it takes images for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import cast

import safetensors.torch
import torch
from torch import Tensor, nn

from ddim.metrics.features import FeatureExtractor, Features, full_float32


class ClassifierFeatures(FeatureExtractor):
    """Features (N, D) of a network whose class logits (N, K) are a linear function of them.

    They carry no logits of their own accord: those of `Features` are for the Inception score, which is one of
    ImageNet classes.

    Args:
        network: makes one; called with images it returns (features, logits), and its `classifier` is what lies between.
        image_shape: (C, H, W) of the uint8 images that it takes.
        weights_file: its weights, beside this file; of any float type, computed with in float32.
        classes: names of the K classes, in the order of the logits.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[], nn.Module],
        *,
        dim: int,
        image_shape: tuple[int, int, int],
        weights_file: str,
        classes: Sequence[str],
    ) -> None:
        weights = resources.files(__package__).joinpath(weights_file).read_bytes()
        super().__init__(name, dim, {"resize": "none", "weights_sha256": hashlib.sha256(weights).hexdigest()})
        # The initial weights are replaced at once: the caller's random numbers stay untouched.
        with torch.random.fork_rng(devices=[]):
            self.network = network()
        self.network.load_state_dict(safetensors.torch.load(weights))
        self.image_shape = image_shape
        self.classes = tuple(classes)

    def extract(self, images: Tensor) -> Features:
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"expected images of shape {self.image_shape}, got {tuple(images.shape[1:])}")
        return Features(self.network(images)[0])

    def logits_of(self, features: Tensor) -> Tensor:
        """Class logits, float32 (N, K), on the extractor's device, of features (N, D) that this extractor gave."""
        device = self._device.device
        with torch.no_grad(), full_float32(device.type):
            return cast(nn.Linear, self.network.classifier)(features.to(device))

    def classify(self, images: Tensor) -> Tensor:
        """The most probable class of each image: uint8 (N, C, H, W) -> int64 (N,), positions in `classes`.

        Raises ValueError for anything but uint8 images of `image_shape`.
        """
        return self.logits_of(self(images).features).argmax(dim=1)
