"""Compressed sensing: some rows of the Walsh-Hadamard transform."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.diffusion.restoration.operators.base import Operator, digest, image_shape
from ddim.diffusion.restoration.operators.inpainting import chosen
from ddim.diffusion.samplers.options import check_number


class CompressedSensing(Operator):
    """y = the share `keep` of the orthonormal Walsh-Hadamard coefficients of each channel, the same rows for all.

    Rows are chosen by `seed` alone, as the pixels of a random mask are. A^+ = A^T.

    Raises ValueError unless the number of pixels is a power of two, and for a share that leaves no row.
    """

    def __init__(self, shape: Sequence[int], keep: float = 0.5, seed: int = 0) -> None:
        channels, height, width = image_shape("compressed_sensing", shape)
        pixels = height * width
        if pixels & (pixels - 1):
            raise ValueError(
                f"compressed_sensing needs a power of two of pixels, and images have {height}x{width} = {pixels}"
            )
        check_number("keep", keep, 0.0, 1.0)
        rows = chosen(pixels, round(keep * pixels), seed)
        if not rows.any():
            raise ValueError(f"keep={keep} leaves no row of {pixels}")
        flat = rows.repeat(channels)
        self._order = torch.cat([flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]])
        self._back = self._order.argsort()
        values = torch.zeros(len(flat))
        values[: int(flat.sum())] = 1
        about = {"operator": "compressed_sensing", "keep": keep, "seed": seed, "rows_sha256": digest(rows)}
        super().__init__(shape, int(flat.sum()), values, about)

    def to_spectrum(self, x: Tensor) -> Tensor:
        return walsh_hadamard(x.flatten(2)).flatten(1)[:, self._order.to(x.device)]

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        coefficients = spectrum[:, self._back.to(spectrum.device)].reshape(len(spectrum), self.shape[0], -1)
        # The transform is symmetric and its own inverse.
        return walsh_hadamard(coefficients).reshape(len(spectrum), *self.shape)


def walsh_hadamard(x: Tensor) -> Tensor:
    """The orthonormal transform along the last dimension, of length 2^k, in its natural (Hadamard) order."""
    size = x.shape[-1]
    width = 1
    while width < size:
        pairs = x.reshape(*x.shape[:-1], size // (2 * width), 2, width)
        upper, lower = pairs.unbind(dim=-2)
        x = torch.stack([upper + lower, upper - lower], dim=-2).reshape(x.shape)
        width *= 2
    return x / math.sqrt(size)
