"""The space that samples live in: how stored values become the model's and back.

For images this is the one place where they cross between uint8 pixels and [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def to_model_space(images: Tensor) -> Tensor:
    """Map uint8 pixels, any shape, to float32 in [-1, 1]: 0 -> -1, 255 -> 1.

    Raises:
        ValueError: the tensor is not uint8 (a float image here means that it was converted before).
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"to_model_space takes uint8 images, got {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(x: Tensor) -> Tensor:
    """Map model space, any shape and floating dtype, to uint8: clamp to [-1, 1], then round to the nearest pixel value.

    The exact inverse of :func:`to_model_space` on all 256 values.

    Raises:
        ValueError: the tensor is not floating point, or holds NaN (which has no pixel value).
    """
    if not x.is_floating_point():
        raise ValueError(f"to_uint8 takes floating-point images in [-1, 1], got {x.dtype}")
    if torch.isnan(x).any():
        raise ValueError("to_uint8 got images that contain NaN")
    # bfloat16 cannot hold the integers above 256 halves apart, so the arithmetic is done in float32 or wider.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


class Space(Protocol):
    """What samples are, as far as those who generate them need to know."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample, in the model's space and stored alike."""

    @property
    def kind(self) -> str:
        """What people call one: "images"."""

    def to_model(self, stored: Tensor) -> Tensor:
        """(N, *shape) as stored -> floating point, for the network."""

    def to_stored(self, x: Tensor) -> Tensor:
        """(N, *shape) from the network -> as they are kept, shown and measured."""


@dataclass(frozen=True)
class Pixels:
    """Images of uint8 pixels; shape is (C, H, W)."""

    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        return "images"

    def to_model(self, stored: Tensor) -> Tensor:
        return to_model_space(stored)

    def to_stored(self, x: Tensor) -> Tensor:
        return to_uint8(x)
