"""Inpainting: some pixels, columns of a table or times of a series are known. Which ones belongs to the measurement, so
masks are functions of a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.noise import NoiseSource
from ddim.diffusion.restoration.operators.base import Operator, digest
from ddim.diffusion.samplers.options import check_choice, check_number

MASKS = ("random", "box", "half")


class Inpainting(Operator):
    """y = the known pixels of x in row-major order, channel by channel; V is a permutation, A^+ = A^T leaves 0.

    Args:
        shape: (C, H, W) of images, (C, L) of series, (D,) of vectors.
        known: bool (H, W), (L,) or (D,), true where all channels of a place are known.
        about: what the mask was made from, for `identity`, which also gets a digest of the mask itself.

    Raises ValueError for a mask of another size, or one that knows no pixel.
    """

    def __init__(self, shape: Sequence[int], known: Tensor, about: dict[str, Any] | None = None) -> None:
        places = places_of(shape)
        if known.dtype != torch.bool or tuple(known.shape) != places:
            raise ValueError(
                f"a mask must say true or false for each of {'x'.join(map(str, places))} "
                f"{'pixels' if len(places) == 2 else 'values'}, got {known.dtype} of {'x'.join(map(str, known.shape))}"
            )
        if not known.any():
            raise ValueError("the mask must leave at least one pixel")
        self.known = known.cpu()
        flat = self.known.flatten().repeat(math.prod(shape) // self.known.numel())
        self._order = torch.cat([flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]])
        self._back = self._order.argsort()
        values = torch.zeros(len(flat))
        values[: int(flat.sum())] = 1
        super().__init__(
            shape, int(flat.sum()), values, {"operator": "inpainting", **(about or {}), "mask_sha256": digest(known)}
        )

    def to_spectrum(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self._order.to(x.device)]

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        return spectrum[:, self._back.to(spectrum.device)].reshape(len(spectrum), *self.shape)


def places_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Of a sample (C, ...) without its channels; a vector (D,) has none."""
    return tuple(shape[1:] if len(shape) > 1 else shape)


def line_mask(name: str, shape: Sequence[int], *, keep: float = 0.5, box: float = 0.5, seed: int = 0) -> Tensor:
    """As `mask_of`, of series (C, L) or vectors (D,): "box" is a gap in the middle, "half" the first half is known.

    Raises ValueError as that does, and for vectors, whose values are in no order, unless the mask is "random".
    """
    check_choice("mask", name, MASKS)
    (size,) = places_of(shape)
    if len(shape) == 1 and name != "random":
        raise ValueError(f"the mask {name} needs an order, which columns have none of; take random or their names")
    check_number("box" if name == "box" else "keep", box if name == "box" else keep, 0.0, 1.0)
    known = torch.ones(size, dtype=torch.bool)
    gap = round(box * size)
    if name == "random":
        known = chosen(size, round(keep * size), seed)
    elif name == "half":
        known[size // 2 :] = False
    else:
        known[(size - gap) // 2 : (size - gap) // 2 + gap] = False
    if not known.any() or known.all():
        raise ValueError(f"the mask {name} leaves {'no' if not known.any() else 'every'} one of {size} values")
    return known


def mask_of(name: str, height: int, width: int, *, keep: float = 0.5, box: float = 0.5, seed: int = 0) -> Tensor:
    """Which pixels are known, bool (height, width).

    "random": the share `keep` of the pixels, rounded, chosen by `seed` and nothing else; "box": all but a rectangle in
    the middle whose sides are the share `box` of the image's, rounded; "half": the upper half.

    Raises ValueError for another name, or shares that leave nothing known or nothing to restore.
    """
    check_choice("mask", name, MASKS)
    known = torch.ones(height, width, dtype=torch.bool)
    if name == "half":
        known[height // 2 :] = False
    elif name == "box":
        check_number("box", box, 0.0, 1.0)
        tall, wide = round(box * height), round(box * width)
        top, left = (height - tall) // 2, (width - wide) // 2
        known[top : top + tall, left : left + wide] = False
    else:
        check_number("keep", keep, 0.0, 1.0)
        known = chosen(height * width, round(keep * height * width), seed).reshape(height, width)
    if not known.any() or known.all():
        share = f"keep={keep}" if name == "random" else f"box={box}"
        raise ValueError(
            f"the mask {name} with {share} leaves {'no' if not known.any() else 'every'} pixel of {height}x{width}"
        )
    return known


def chosen(count: int, how_many: int, seed: int) -> Tensor:
    """bool (count,), true at `how_many` places that depend on the seed alone, on every machine the same ones."""
    values = NoiseSource(seed).normal("validation", torch.zeros(1, dtype=torch.long), 0, (count,))[0]
    found = torch.zeros(count, dtype=torch.bool)
    found[values.argsort(stable=True)[:how_many]] = True
    return found
