"""Operators that keep the mean of each group of values: of blocks of pixels, or of the channels of a pixel."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.restoration.operators.base import Operator, image_shape
from ddim.diffusion.samplers.options import check_integer


class GroupMean(Operator):
    """y = the mean of each of m groups of k values: one row of k entries 1/k, whose singular value is 1/sqrt(k).

    The first right singular vector of a group is constant, the others are any that complete it to an orthonormal
    basis; here a Householder reflection, which is its own inverse.
    """

    def __init__(self, shape: Sequence[int], groups: int, members: int, identity: dict[str, Any]) -> None:
        values = torch.zeros(groups * members, dtype=torch.float64)
        values[:groups] = 1 / math.sqrt(members)
        self._members = members
        self._reflection = _to_constant(members)
        super().__init__(shape, groups, values, identity)

    @abstractmethod
    def _grouped(self, x: Tensor) -> Tensor:
        """(N, *shape) -> (N, groups, members)."""

    @abstractmethod
    def _ungrouped(self, groups: Tensor) -> Tensor:
        """The inverse."""

    def to_spectrum(self, x: Tensor) -> Tensor:
        # First the first component of every group: those that are measured.
        return (self._grouped(x) @ self._reflection.to(x)).transpose(1, 2).flatten(1)

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        groups = spectrum.reshape(len(spectrum), self._members, -1).transpose(1, 2)
        return self._ungrouped(groups @ self._reflection.to(spectrum))


class SuperResolution(GroupMean):
    """y = means of blocks of factor x factor pixels, (N, C H/factor W/factor); A^+ repeats each of them.

    Raises ValueError for a factor that is none, or that does not divide height and width.
    """

    def __init__(self, shape: Sequence[int], factor: int) -> None:
        channels, height, width = image_shape("superresolution", shape)
        check_integer("factor", factor, 2)
        if height % factor or width % factor:
            raise ValueError(f"factor={factor} must divide the {height}x{width} pixels of an image")
        self.factor = factor
        # (C, H, W) of the measurement, as an image.
        self.small = (channels, height // factor, width // factor)
        super().__init__(shape, math.prod(self.small), factor**2, {"operator": "superresolution", "factor": factor})

    def _grouped(self, x: Tensor) -> Tensor:
        channels, rows, columns = self.small
        blocks = x.reshape(len(x), channels, rows, self.factor, columns, self.factor)
        return blocks.permute(0, 1, 2, 4, 3, 5).reshape(len(x), self.measured, self.factor**2)

    def _ungrouped(self, groups: Tensor) -> Tensor:
        channels, rows, columns = self.small
        blocks = groups.reshape(len(groups), channels, rows, columns, self.factor, self.factor)
        return blocks.permute(0, 1, 2, 4, 3, 5).reshape(len(groups), *self.shape)


class Colourisation(GroupMean):
    """y = the mean of the channels of each pixel, (N, H W); A^+ gives it to every channel.

    Raises ValueError for images of one channel, which have no colour.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        channels, height, width = image_shape("colourisation", shape)
        if channels < 2:
            raise ValueError("colourisation needs images of several channels, and these have one")
        super().__init__(shape, height * width, channels, {"operator": "colourisation"})

    def _grouped(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    def _ungrouped(self, groups: Tensor) -> Tensor:
        return groups.transpose(1, 2).reshape(len(groups), *self.shape)


def _to_constant(size: int) -> Tensor:
    """A symmetric orthonormal matrix, float64 (size, size), whose first column is 1/sqrt(size) throughout."""
    reflection = torch.eye(size, dtype=torch.float64)
    axis = torch.full((size,), -1 / math.sqrt(size), dtype=torch.float64)
    axis[0] += 1
    return reflection - 2 * torch.outer(axis, axis) / axis.square().sum()
