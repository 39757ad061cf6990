"""Deblurring: a separable kernel, whose SVD is that of two small matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.diffusion.restoration.operators.base import Operator, image_shape
from ddim.diffusion.samplers.options import check_choice, check_integer, check_number

KERNELS = ("gaussian", "uniform")


class Deblurring(Operator):
    """y = K_H x K_W^T of each channel, rows and columns blurred by one kernel; beyond the edge its pixels go on.

    The singular values are the products of those of K_H and K_W. Products below `cut` are 0 in A itself, so that y
    lacks what could not be recovered from it anyway (Kawar et al. 2022, whose cut is 0.03).

    Args:
        shape: (C, H, W).
        kernel: float64 (k,), k odd; its centre is k // 2.
        cut: least singular value that is kept.

    Raises ValueError for a kernel of even length.
    """

    def __init__(self, shape: Sequence[int], kernel: Tensor, cut: float = 0.03) -> None:
        _, height, width = image_shape("deblurring", shape)
        check_number("cut", cut, 0.0)
        self._left, rows, self._right = _decomposed(_matrix(kernel, height))
        self._left_w, columns, self._right_w = _decomposed(_matrix(kernel, width))
        products = torch.outer(rows, columns)
        values = torch.where(products < cut, torch.zeros_like(products), products).expand(*shape).flatten()
        about = {"operator": "deblurring", "kernel": [float(weight) for weight in kernel], "cut": cut}
        super().__init__(shape, len(values), values, about)

    def to_spectrum(self, x: Tensor) -> Tensor:
        return _both(x, self._right.T, self._right_w.T).flatten(1)

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        return _both(spectrum.reshape(-1, *self.shape), self._right, self._right_w)

    def measured_spectrum(self, y: Tensor) -> Tensor:
        return _both(y.reshape(-1, *self.shape), self._left.T, self._left_w.T).flatten(1)

    def from_measured_spectrum(self, spectrum: Tensor) -> Tensor:
        return _both(spectrum.reshape(-1, *self.shape), self._left, self._left_w).flatten(1)


def kernel_of(name: str, radius: int, sigma: float = 1.0) -> Tensor:
    """Weights float64 (2 radius + 1,) that add up to 1, of a Gaussian of standard deviation `sigma` pixels, or equal.

    Raises ValueError for another name or a value out of range.
    """
    check_choice("kernel", name, KERNELS)
    check_integer("radius", radius, 1)
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    if name == "uniform":
        return torch.full_like(places, 1 / len(places))
    check_number("sigma", sigma, 1e-3)
    weights = torch.exp(-0.5 * (places / sigma).square())
    return weights / weights.sum()


def _matrix(kernel: Tensor, size: int) -> Tensor:
    """The blur of one line of `size` pixels, (size, size); what reaches over an end falls on the last pixel."""
    if kernel.ndim != 1 or len(kernel) % 2 == 0:
        raise ValueError(f"a kernel must have an odd number of weights, got shape {tuple(kernel.shape)}")
    matrix = torch.zeros(size, size, dtype=torch.float64)
    line = torch.arange(size)
    for offset, weight in enumerate(kernel.to(torch.float64), start=-(len(kernel) // 2)):
        matrix.index_put_((line, (line + offset).clamp(0, size - 1)), weight.expand(size), accumulate=True)
    return matrix


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s, V of U diag(s) V^T."""
    left, values, right = torch.linalg.svd(matrix)
    return left, values, right.T


def _both(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows x columns^T of every channel of (N, C, H, W)."""
    return rows.to(x) @ x @ columns.T.to(x)
