"""Features of what is no image: the values themselves, in standard deviations of the training data."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from ddim.metrics.features import FeatureExtractor, Features

VALUES = "values"


class ValueSpace(Protocol):
    """What the features have to know of a space."""

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def to_model(self, stored: Tensor) -> Tensor: ...

    def to_stored(self, x: Tensor) -> Tensor: ...

    def stated(self) -> dict[str, Any] | None: ...


class ValueFeatures(FeatureExtractor):
    """float32 (N, *shape) as stored -> the standardised values (N, D), one after the other."""

    def __init__(self, space: ValueSpace) -> None:
        # Not a setting of images, but tables have a column of it.
        super().__init__(VALUES, math.prod(space.shape), {"resize": "none", "standardised": space.stated()})
        self.space = space

    def check(self, images: Tensor) -> None:
        if images.dtype != torch.float32 or images.shape[1:] != self.space.shape:
            raise ValueError(
                f"expected float32 {self.space.kind} of {self.space.shape}, got {images.dtype} {images.shape}"
            )

    def extract(self, images: Tensor) -> Features:
        return Features(self.space.to_model(images).flatten(1))
