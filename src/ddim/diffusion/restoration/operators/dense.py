"""Operators without structure: the identity, any matrix, and whatever can be asked for A x."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddim.diffusion.restoration.operators.base import Operator, digest
from ddim.diffusion.samplers.options import check_number

# A float64 matrix of as many rows and columns takes 128 MB, its SVD a minute.
MOST_COLUMNS = 4096
# Relative error up to which a foreign operator counts as linear, and its A_adjoint as the adjoint.
TOLERANCE = 1e-3


class Foreign(Protocol):
    """An operator of other software. `A_adjoint` and `A_dagger` are not needed, as the SVD gives both."""

    def A(self, x: Tensor) -> Tensor:
        """(N, *shape) -> (N, ...)."""


@dataclass(frozen=True)
class Function:
    """An operator that is a function and no more."""

    A: Callable[[Tensor], Tensor]


class Denoising(Operator):
    """y = x: noise is all there is to remove."""

    def __init__(self, shape: Sequence[int]) -> None:
        size = math.prod(shape)
        super().__init__(shape, size, torch.ones(size), {"operator": "denoising"})

    def to_spectrum(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        return spectrum.reshape(-1, *self.shape)


class Dense(Operator):
    """y = M x of the flattened x, for any matrix M (m, n).

    Singular values below the share `cut` of the largest are 0 in A itself.

    Raises ValueError for a matrix of another width, one that is not finite, and one of zeros alone.
    """

    def __init__(
        self, shape: Sequence[int], matrix: Tensor, cut: float = 1e-3, identity: dict[str, Any] | None = None
    ) -> None:
        size = math.prod(shape)
        check_number("cut", cut, 0.0, 1.0)
        if matrix.ndim != 2 or matrix.shape[1] != size:
            raise ValueError(f"a matrix for samples of {size} values must be (m, {size}), got {tuple(matrix.shape)}")
        if size > MOST_COLUMNS:
            raise ValueError(f"a matrix may have {MOST_COLUMNS} columns, and samples have {size} values")
        matrix = matrix.detach().cpu().to(torch.float64)
        if not bool(torch.isfinite(matrix).all()) or not bool(matrix.any()):
            raise ValueError("a matrix must hold finite numbers, not all of them 0")
        rows = len(matrix)
        # V is needed whole; of U not more than the columns that go with it.
        self._left, values, right = torch.linalg.svd(matrix, full_matrices=rows < size)
        self._right = right.T.contiguous()
        values = torch.where(values < cut * values[0], torch.zeros_like(values), values)
        padded = torch.cat([values, torch.zeros(size - len(values), dtype=torch.float64)])
        about = identity or {"operator": "matrix", "cut": cut}
        super().__init__(shape, rows, padded, {**about, "matrix_sha256": digest(matrix)})

    def to_spectrum(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._right.to(x)

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        return (spectrum @ self._right.T.to(spectrum)).reshape(-1, *self.shape)

    def measured_spectrum(self, y: Tensor) -> Tensor:
        spectrum = y @ self._left.to(y)
        return torch.nn.functional.pad(spectrum, (0, self.size - spectrum.shape[1]))

    def from_measured_spectrum(self, spectrum: Tensor) -> Tensor:
        return spectrum[:, : self._left.shape[1]] @ self._left.T.to(spectrum)


def of_foreign(name: str, operator: Foreign, shape: Sequence[int]) -> Dense:
    """The matrix of an operator that has A(x), by asking it for every unit vector; so that all methods work with it.

    Raises ValueError where it cannot be asked, gives no real finite numbers (N, ...), is not linear, where its
    `A_adjoint` (if it has one) is not the adjoint, or where x is too large.
    """
    size = math.prod(shape)
    if size > MOST_COLUMNS:
        raise ValueError(f"an operator of one's own may have {MOST_COLUMNS} columns, and samples have {size} values")
    matrix = _asked(name, operator.A, torch.eye(size).reshape(size, *shape)).flatten(1).T.to(torch.float64)
    x = torch.linspace(-1, 1, 2 * size, dtype=torch.float64).sin().reshape(2, *shape).float()
    y = _asked(name, operator.A, x)
    expected = x.flatten(1).double() @ matrix.T
    if y.flatten(1).shape != expected.shape:
        raise ValueError(f"{name} must measure as much of each sample, whatever their number")
    if not torch.allclose(y.flatten(1).double(), expected, atol=TOLERANCE * float(expected.abs().max()), rtol=0):
        raise ValueError(f"{name} is not linear: A of a sum is not the sum of A")
    adjoint = getattr(operator, "A_adjoint", None)
    if adjoint is not None:
        there, back = y.flatten(1).double(), _asked(f"A_adjoint of {name}", adjoint, y).flatten(1).double()
        if back.shape != (2, size) or not torch.allclose(
            back, there @ matrix, atol=TOLERANCE * float(back.abs().max() + 1e-30), rtol=0
        ):
            raise ValueError(f"A_adjoint of {name} is not the adjoint of its A")
    return Dense(shape, matrix, identity={"operator": name})


def _asked(name: str, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a foreign function gives of x (N, ...), on the CPU. Raises ValueError for all but real numbers (N, ...)."""
    asked = f"{name} of float32 samples {tuple(x.shape)}"
    try:
        with torch.no_grad():
            # A copy, as it may be changed in place.
            given: Any = function(x.clone())
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise ValueError(f"{asked} raises {type(error).__name__}{said and ': '}{said}") from error
    wanted = f"must be a tensor of real floating-point numbers ({len(x)}, ...)"
    if not isinstance(given, Tensor):
        raise ValueError(f"{asked} {wanted}, got {type(given).__name__}")
    if not given.is_floating_point() or given.ndim < 2 or len(given) != len(x) or not given.numel():
        raise ValueError(f"{asked} {wanted}, got {given.dtype} {tuple(given.shape)}")
    if not bool(torch.isfinite(given).all()):
        raise ValueError(f"{asked} must be finite, and is not")
    return given.cpu()
