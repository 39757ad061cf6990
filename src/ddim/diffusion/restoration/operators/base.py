"""What all measurements have in common: a linear operator known by its singular value decomposition."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Operator(ABC):
    """A: R^n -> R^m with A = U diag(s) V^T, the SVD in closed form wherever there is one.

    V is orthonormal, n x n, so that x and its spectrum V^T x say the same. Spectra have n components also of
    measurements, 0 where A has no row for one; what of y lies outside the range of U says nothing of x.

    Args:
        shape: of one x.
        measured: m, of one y.
        singular_values: s >= 0, (n,), in the order of the spectrum's components; 0 where x leaves no trace in y.
        identity: what names this operator and all that it depends on; JSON-able.
    """

    def __init__(
        self, shape: Sequence[int], measured: int, singular_values: Tensor, identity: Mapping[str, Any]
    ) -> None:
        self.shape = tuple(shape)
        self.size = math.prod(self.shape)
        self.measured = measured
        self.singular_values = singular_values.to(torch.float64)
        self.identity = dict(identity)
        if self.singular_values.shape != (self.size,):
            raise ValueError(f"singular_values must have shape ({self.size},), got {tuple(singular_values.shape)}")

    @abstractmethod
    def to_spectrum(self, x: Tensor) -> Tensor:
        """V^T x: (N, *shape) -> (N, n)."""

    @abstractmethod
    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        """V c: (N, n) -> (N, *shape)."""

    def measured_spectrum(self, y: Tensor) -> Tensor:
        """U^T y: (N, m) -> (N, n). Where U is the identity, y is its own spectrum, followed by zeros."""
        return torch.nn.functional.pad(y, (0, self.size - self.measured))

    def from_measured_spectrum(self, spectrum: Tensor) -> Tensor:
        """U c: (N, n) -> (N, m)."""
        return spectrum[:, : self.measured]

    def A(self, x: Tensor) -> Tensor:
        """A x: (N, *shape) -> (N, m)."""
        return self.from_measured_spectrum(self.values_like(x) * self.to_spectrum(x))

    def A_adjoint(self, y: Tensor) -> Tensor:
        """A^T y: (N, m) -> (N, *shape)."""
        return self.from_spectrum(self.values_like(y) * self.measured_spectrum(y))

    def A_dagger(self, y: Tensor) -> Tensor:
        """A^+ y, the pseudo-inverse: of all x that explain y best the smallest. (N, m) -> (N, *shape)."""
        return self.from_spectrum(divided(self.measured_spectrum(y), self.values_like(y)))

    def values_like(self, tensor: Tensor) -> Tensor:
        """The singular values (n,) in the tensor's dtype and on its device."""
        return self.singular_values.to(tensor)


def divided(spectrum: Tensor, values: Tensor) -> Tensor:
    """spectrum / values where values are not 0, and 0 where they are."""
    seen = values > 0
    return torch.where(seen, spectrum / torch.where(seen, values, torch.ones_like(values)), torch.zeros_like(spectrum))


def digest(tensor: Tensor) -> str:
    """16 hex digits of a tensor's values, for what identifies an operator."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W). Raises ValueError for samples that are no images."""
    if len(shape) != 3:
        raise ValueError(f"{name} is of images (C, H, W), and samples have shape {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width
