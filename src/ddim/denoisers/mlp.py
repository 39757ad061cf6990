"""A residual multilayer perceptron, for samples that have no neighbourhood: points, rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddim.denoisers.layers import Dropout, TimeEmbedding, linear

NORM_EPS = 1e-6


class ResidualMLP(nn.Module):
    """eps of vectors: residual blocks of two linear layers, each told the time as the UNet's are.

    Args:
        shape: of one x, usually (D,); longer ones are flattened. None only in a configuration: that of the data.
        width: features of each block, even and at least 4, which the time embedding also has.
        depth: number of blocks.
        dropout: probability in [0, 1) inside each block.

    Raises:
        ValueError: an argument is out of range; the message names it.

    A new network returns exactly zero (zero-initialised last layers, as in Ho et al.).
    """

    def __init__(
        self, *, shape: Sequence[int] | None = None, width: int = 128, depth: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        listed = check_shape_of("shape", shape, (1, 2, 3))
        for name, value in (("width", width), ("depth", depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if width % 2 or width < 4:
            raise ValueError(f"width must be even and at least 4 for the time embedding, got {width}")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}")
        self.config: dict[str, Any] = {"shape": listed, "width": width, "depth": depth, "dropout": dropout}
        """Plain values that rebuild this architecture: ``ResidualMLP(**mlp.config)``."""
        features = math.prod(listed)
        # As wide as the blocks: four times that, as in the UNet, would be most of the work.
        self.time_embedding = TimeEmbedding(width, width)
        self.linear_in = linear(features, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, width, dropout) for _ in range(depth))
        self.linear_out = linear(width, features, zero=True)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one x."""
        return tuple(self.config["shape"])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in x_t.

        Args:
            x: (N, *shape), floating. It is converted to the precision of the weights.
            t: (N,) timesteps, LongTensor.

        Returns:
            (N, *shape) in the precision of the weights; as in the UNet, autocast applies between the first and the last
            layer alone.

        Raises:
            ValueError: x or t has another shape or kind than this.
        """
        check_inputs(x, t, self.sample_shape)
        time = self.time_embedding(t)
        with torch.autocast(x.device.type, enabled=False):
            h = self.linear_in(x.to(self.linear_in.weight.dtype).flatten(1))
        for block in self.blocks:
            h = block(h, time)
        with torch.autocast(x.device.type, enabled=False):
            # Not normalised: far from the data eps grows with x, which a bounded answer would leave in the samples.
            return self.linear_out(nn.functional.silu(h.to(self.linear_out.weight.dtype))).view(x.shape)


class ResidualBlock(nn.Module):
    """(N, width) and the time vector (N, time_features) to (N, width): norm, SiLU, linear, twice, the time in between.

    Starts as the identity (zero-initialised last layer).
    """

    def __init__(self, width: int, time_features: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.linear1 = linear(width, width)
        self.time = linear(time_features, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.dropout = Dropout(dropout)
        self.linear2 = linear(width, width, zero=True)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.linear1(nn.functional.silu(self.norm1(x))) + self.time(time)
        return x + self.linear2(self.dropout(nn.functional.silu(self.norm2(h))))


def check_shape_of(name: str, shape: Sequence[int] | None, dimensions: Sequence[int]) -> list[int]:
    """A shape as a list. Raises ValueError for anything but positive integers, as many as one of `dimensions`."""
    listed = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str | bytes) else []
    if len(listed) not in dimensions or any(type(size) is not int or size < 1 for size in listed):
        wanted = " or ".join(map(str, dimensions))
        raise ValueError(f"{name} must be a list of {wanted} positive integers, got {shape!r}")
    return listed


def check_inputs(x: Tensor, t: Tensor, sample_shape: tuple[int, ...]) -> None:
    """Raises ValueError where x is not floating (N, *sample_shape) or t not (N,)."""
    if x.shape[1:] != sample_shape or not x.is_floating_point():
        wanted = ", ".join(map(str, sample_shape))
        raise ValueError(f"x must be floating with shape (N, {wanted}), got {x.dtype} {tuple(x.shape)}")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape ({x.shape[0]},) like the batch of x, got {tuple(t.shape)}")
