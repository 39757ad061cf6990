"""The space that samples live in: how stored values become the model's and back.

For images this is the one place where they cross between uint8 pixels and [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddim.errors import UserError

IMAGES = "images"
# Of what is no image: how many dimensions one sample has.
DIMENSIONS = {"vectors": 1, "series": 2}


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
        """What people call them: "images", "vectors" or "series"."""

    @property
    def unit(self) -> str:
        """What errors are told in: "on [0, 1]"."""

    @property
    def log_volume(self) -> float:
        """log |det of d stored / d model|: what the log-density of a sample loses from the model's space to its own."""

    def to_model(self, stored: Tensor) -> Tensor:
        """(N, *shape) as stored -> floating point, for the network."""

    def to_stored(self, x: Tensor) -> Tensor:
        """(N, *shape) from the network -> as they are kept, shown and measured."""

    def empty(self) -> Tensor:
        """(0, *shape): none of them, as stored."""

    def told(self, stored: Tensor) -> Tensor:
        """(N, *shape) as stored -> float64 (N, D), the values in the unit that errors are told in."""

    def errors(self, x: Tensor, others: Tensor) -> Tensor:
        """Mean squared difference per dimension, in that unit, of x and others (N, *shape) of the model's space:
        float64 (N,)."""

    def stated(self) -> dict[str, Any] | None:
        """Plain values that a checkpoint keeps, for :func:`space_from`; None where the data set's name says it all."""


@dataclass(frozen=True)
class Pixels:
    """Images of uint8 pixels; shape is (C, H, W)."""

    shape: tuple[int, ...]

    @property
    def kind(self) -> str:
        return IMAGES

    @property
    def unit(self) -> str:
        return "on [0, 1]"

    @property
    def log_volume(self) -> float:
        return math.prod(self.shape) * math.log(127.5)

    def to_model(self, stored: Tensor) -> Tensor:
        return to_model_space(stored)

    def to_stored(self, x: Tensor) -> Tensor:
        return to_uint8(x)

    def empty(self) -> Tensor:
        return torch.empty(0, *self.shape, dtype=torch.uint8)

    def told(self, stored: Tensor) -> Tensor:
        return stored.flatten(1).double() / 255

    def errors(self, x: Tensor, others: Tensor) -> Tensor:
        # Half the difference in [-1, 1] is the difference in [0, 1].
        return ((x.double() - others.double()) / 2).square().flatten(1).mean(dim=1)

    def stated(self) -> None:
        return None


@dataclass(frozen=True)
class Standardised:
    """Numbers of any range, float32 as stored, which the network sees with mean 0 and standard deviation 1.

    Attributes:
        shape: (D,) of vectors, (C, L) of series.
        kind: "vectors" or "series".
        mean, scale: one for each of the D columns, or for each of the C channels at all times; scale is positive.
    """

    shape: tuple[int, ...]
    kind: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def learnt(cls, kind: str, stored: Tensor) -> Standardised:
        """From the training split, (N, D) or (N, C, L) with N >= 1: means and standard deviations (N in the
        denominator). What never changes keeps the scale 1."""
        values = stored.double()
        over = (0,) if values.ndim == 2 else (0, 2)
        mean, scale = values.mean(over), values.std(over, correction=0)
        # A constant's deviation is rounding, which must not become the unit.
        constant = scale <= 1e-12 * values.abs().amax(over)
        scale = torch.where(constant, torch.ones_like(scale), scale)
        return cls(tuple(stored.shape[1:]), kind, tuple(mean.tolist()), tuple(scale.tolist()))

    @property
    def unit(self) -> str:
        return "in standard deviations"

    @property
    def log_volume(self) -> float:
        # Of a series the scale of a channel is that of all its times.
        return math.prod(self.shape[1:]) * sum(map(math.log, self.scale))

    def to_model(self, stored: Tensor) -> Tensor:
        mean, scale = self._like(stored)
        return (stored - mean) / scale

    def to_stored(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, scale = self._like(x)
        return (x * scale + mean).to(torch.float32)

    def empty(self) -> Tensor:
        return torch.empty(0, *self.shape)

    def told(self, stored: Tensor) -> Tensor:
        return self.to_model(stored.double()).flatten(1)

    def errors(self, x: Tensor, others: Tensor) -> Tensor:
        return (x.double() - others.double()).square().flatten(1).mean(dim=1)

    def stated(self) -> dict[str, Any]:
        return {"kind": self.kind, "shape": list(self.shape), "mean": list(self.mean), "scale": list(self.scale)}

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        places = (-1, *[1] * (len(self.shape) - 1))
        mean, scale = (torch.tensor(v, dtype=x.dtype, device=x.device).view(places) for v in (self.mean, self.scale))
        return mean, scale


def space_from(stated: Mapping[str, Any], origin: str) -> Standardised:
    """The inverse of `Standardised.stated`. Raises `UserError` naming `origin` for anything else."""
    try:
        shape = tuple(int(size) for size in stated["shape"])
        mean, scale = (tuple(float(value) for value in stated[key]) for key in ("mean", "scale"))
        kind = str(stated["kind"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{origin} does not say how its data were standardised; give one saved by train.py") from error
    fits = kind in DIMENSIONS and len(shape) == DIMENSIONS[kind] and len(mean) == len(scale) == shape[0]
    if not fits or not all(map(math.isfinite, (*mean, *scale))) or min(scale) <= 0:
        raise UserError(f"{origin} is damaged: its standardisation is not one of {kind} of shape {shape}")
    return Standardised(shape, kind, mean, scale)
