"""A small convolutional classifier of 32x32 photographs whose pooled last layer serves as features.

Its weights lie beside this file; `python tools/train_cifar_cnn.py DIR` made them from the training split alone. They
classify 8,863 of the 10,000 test images correctly (88.6%), stored as JPEG as those trained on were.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddim.metrics.classifiers import ClassifierFeatures

WEIGHTS_FILE = "cifar_cnn.safetensors"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1), nn.SiLU())


class Residual(nn.Sequential):
    """x -> x + layers(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class CifarCNN(nn.Module):
    """uint8 images (N, 3, 32, 32) -> features (N, 88) and class logits (N, 10).

    The features are averages over the 8x8 positions of the last layer, so that each is a smooth function of the whole
    image; outside training also averages over the image and its mirror image, which is of the same class. Normalisation
    takes place only in training; it is folded into these convolutions afterwards.
    """

    feature_dim = 88

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            convolution(3, 32),
            convolution(32, 64, stride=2),
            Residual(convolution(64, 64), convolution(64, 64)),
            nn.MaxPool2d(2),
            convolution(64, 88),
            Residual(convolution(88, 88), convolution(88, 88)),
        )
        self.classifier = nn.Linear(self.feature_dim, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        features = self._pooled(x)
        if not self.training:
            features = (features + self._pooled(x.flip(-1))) / 2
        return features, self.classifier(features)

    def _pooled(self, x: Tensor) -> Tensor:
        return self.convolutions(x).mean(dim=(2, 3))


class CifarFeatures(ClassifierFeatures):
    """The 88 features of the shipped CifarCNN, and the class of CIFAR-10 that it takes an image for."""

    def __init__(self) -> None:
        super().__init__(
            "cifar-cnn",
            CifarCNN,
            dim=CifarCNN.feature_dim,
            image_shape=(3, 32, 32),
            weights_file=WEIGHTS_FILE,
            classes=CLASSES,
        )
