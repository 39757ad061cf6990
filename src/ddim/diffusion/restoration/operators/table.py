"""The operators by name, and whatever else is registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ddim.diffusion.restoration.operators.averaging import Colourisation, SuperResolution
from ddim.diffusion.restoration.operators.base import Operator, image_shape
from ddim.diffusion.restoration.operators.blur import Deblurring, kernel_of
from ddim.diffusion.restoration.operators.dense import Denoising, Dense
from ddim.diffusion.restoration.operators.hadamard import CompressedSensing
from ddim.diffusion.restoration.operators.inpainting import Inpainting, line_mask, mask_of


@dataclass(frozen=True)
class OperatorSettings:
    """What operators are made from; each reads its own.

    Attributes:
        mask: of inpainting, one of MASKS, or bool (H, W), (L,) or (D,), true where a pixel or a value is known.
        keep: share of the pixels, or of the Walsh-Hadamard coefficients, that is known.
        box: side of the box that is missing, as a share of the image's.
        factor: of super-resolution.
        kernel, radius, sigma: of the blur, see `kernel_of`.
        cut: singular values below are 0: of the blur as they are, of a matrix as a share of the largest.
        matrix: (m, n), of the operator "matrix".
        seed: of what is random about an operator.
    """

    mask: str | Tensor = "random"
    keep: float = 0.5
    box: float = 0.5
    factor: int = 2
    kernel: str = "gaussian"
    radius: int = 2
    sigma: float = 1.0
    cut: float = 0.03
    matrix: Tensor | None = None
    seed: int = 0


def _inpainting(shape: Sequence[int], given: OperatorSettings) -> Operator:
    if not isinstance(given.mask, str):
        return Inpainting(shape, given.mask, {"mask": "given"})
    own = {"random": {"keep": given.keep, "seed": given.seed}, "box": {"box": given.box}}.get(given.mask, {})
    shares: dict[str, Any] = {"keep": given.keep, "box": given.box, "seed": given.seed}
    if len(shape) < 3:
        known = line_mask(given.mask, shape, **shares)
    else:
        _, height, width = image_shape("inpainting", shape)
        known = mask_of(given.mask, height, width, **shares)
    return Inpainting(shape, known, {"mask": given.mask, **own})


def _matrix(shape: Sequence[int], given: OperatorSettings) -> Operator:
    if given.matrix is None:
        raise ValueError("the operator matrix needs a matrix (m, n)")
    return Dense(shape, given.matrix)


# (shape of x, settings) -> operator; ValueError for what does not fit.
OPERATORS: dict[str, Callable[[Sequence[int], OperatorSettings], Operator]] = {
    "inpainting": _inpainting,
    "superresolution": lambda shape, given: SuperResolution(shape, given.factor),
    "colourisation": lambda shape, given: Colourisation(shape),
    "deblurring": lambda shape, given: Deblurring(shape, kernel_of(given.kernel, given.radius, given.sigma), given.cut),
    "compressed_sensing": lambda shape, given: CompressedSensing(shape, given.keep, given.seed),
    "denoising": lambda shape, given: Denoising(shape),
    "matrix": _matrix,
}


def build_operator(name: str, shape: Sequence[int], settings: OperatorSettings) -> Operator:
    """The named operator for samples of this shape. Raises ValueError for an unknown name or what does not fit."""
    if name not in OPERATORS:
        raise ValueError(f"operator must be one of {', '.join(OPERATORS)}, got {name!r}")
    return OPERATORS[name](shape, settings)
