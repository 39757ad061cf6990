"""The building blocks of the DDPM UNet (Ho, Jain, Abbeel 2020): time embedding, residual block, attention,
resampling, and the levels made of them.

Every layer keeps the memory format it is given, so a channels-last model stays channels-last from end to end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.denoisers import cpu

NORM_EPS = 1e-6
MAX_PERIOD = 10_000.0
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def initialised(layer: Layer, *, zero: bool = False) -> Layer:
    """Give a convolution or linear layer its DDPM start and return it.

    Weights are uniform with variance 1 / fan_avg (variance scaling, as everywhere in Ho et al.), or exactly zero with
    ``zero`` for the last layer of a residual branch; biases are zero.
    """
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv3x3(in_channels: int, out_channels: int, *, stride: int = 1, padding: int = 1, zero: bool = False) -> nn.Conv2d:
    """A 3x3 convolution with DDPM initialisation; ``zero`` starts it at exactly zero."""
    return initialised(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=padding), zero=zero)


def linear(in_features: int, out_features: int, *, zero: bool = False) -> nn.Linear:
    """A linear layer with DDPM initialisation; ``zero`` starts it at exactly zero."""
    return initialised(nn.Linear(in_features, out_features), zero=zero)


def sinusoidal_embedding(t: Tensor, dim: int) -> Tensor:
    """Transformer position embedding of timesteps, in float32 whatever the precision of the network.

    Args:
        t: timesteps, shape (N,), integer or floating.
        dim: even size of the embedding, at least 4.

    Returns:
        (N, dim) float32: ``[sin(t f_0) .. sin(t f_last) | cos(t f_0) .. cos(t f_last)]`` with
        ``f_i = 10000 ** (-i / (dim / 2 - 1))``, so that the frequencies run from 1 to 1/10000, both included.
    """
    half = dim // 2
    # float32 even in a float64 network: pretrained weights and other implementations use these rounded frequencies,
    # and at t = 1000 the rounding moves the phase by 5e-5.
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) * -math.log(MAX_PERIOD) / (half - 1)
    phases = t.to(torch.float32)[:, None] * torch.exp(exponents)
    return torch.cat([torch.sin(phases), torch.cos(phases)], dim=1)


class TimeEmbedding(nn.Module):
    """Timesteps (N,) to the vector (N, out_features) that every residual block receives, its SiLU already applied.

    `condition` (N, out_features), an embedding of what a sample is of, is added before that SiLU.
    """

    def __init__(self, base_channels: int, out_features: int) -> None:
        super().__init__()
        self.base_channels = base_channels
        self.linear1 = linear(base_channels, out_features)
        self.linear2 = linear(out_features, out_features)

    def forward(self, t: Tensor, condition: Tensor | None = None) -> Tensor:
        embedding = sinusoidal_embedding(t, self.base_channels).to(self.linear1.weight.dtype)
        embedding = self.linear2(F.silu(self.linear1(embedding)))
        if condition is not None:
            embedding = embedding + condition
        # Each residual block applies SiLU before its own projection; the result is the same for all, so once is enough.
        return F.silu(embedding)


class GroupNorm(nn.GroupNorm):
    """Group normalisation of (N, C, H, W)."""

    silu = False

    def __init__(self, num_groups: int, num_channels: int) -> None:
        super().__init__(num_groups, num_channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype is torch.bfloat16 and torch.is_grad_enabled() and x.requires_grad:
            return cpu.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=self.silu)
        x = super().forward(x)
        # Where no gradient needs what lies between, its memory is warm.
        return F.silu(x, inplace=not torch.is_grad_enabled()) if self.silu else x


class GroupNormSiLU(GroupNorm):
    """Group normalisation followed by SiLU, one module so that the pair can be fused in one place."""

    silu = True


class Dropout(nn.Dropout):
    """Zeroes elements while training, each with probability p."""

    def forward(self, x: Tensor) -> Tensor:
        return cpu.dropout(x, self.p) if self.training and x.device.type == "cpu" else super().forward(x)


class ResidualBlock(nn.Module):
    """(N, in_channels, H, W) and the time vector (N, time_features) to (N, out_channels, H, W).

    The branch ends in a zero-initialised convolution, so a new block passes its input (or the 1x1 projection of it
    where the number of channels changes) unchanged.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, time_features: int, dropout: float, norm_groups: int
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(norm_groups, in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.time = linear(time_features, out_channels)
        self.norm2 = GroupNormSiLU(norm_groups, out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, zero=True)
        self.shortcut: nn.Module = (
            nn.Identity() if in_channels == out_channels else initialised(nn.Conv2d(in_channels, out_channels, 1))
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x)) + self.time(time)[:, :, None, None]
        return self.shortcut(x) + self.conv2(self.dropout(self.norm2(h)))


class Context(NamedTuple):
    """What an image may attend to beside itself, tokens of a text.

    features: (N, L, F). present: bool (N, L), False for those that nobody attends to; at least one is True.
    """

    features: Tensor
    present: Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, present: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(C)) v of q (N, positions, C) and k, v (N, keys, C), one head: shape and precision of q.

    present: bool (N, keys), False for keys without any influence.
    """
    if q.device.type == "cpu" and q.dtype is torch.bfloat16:
        # The fused kernel of CPUs does not multiply in bfloat16: two matrix products are 2.5 to 5 times faster.
        scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
        if present is not None:
            scores = scores.masked_fill(~present[:, None], -torch.inf)
        return torch.bmm(scores.softmax(dim=-1).to(q.dtype), v)
    mask = None if present is None else present[:, None, None]
    return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)[:, 0]


class Attention(nn.Module):
    """Self-attention over all positions of (N, C, H, W), one head of size C, added to its input.

    Starts as the identity (zero-initialised output projection).
    """

    def __init__(self, channels: int, *, norm_groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(norm_groups, channels)
        self.q = linear(channels, channels)
        self.k = linear(channels, channels)
        self.v = linear(channels, channels)
        self.out = linear(channels, channels, zero=True)

    def add_context(self, features: int) -> None:
        """Let it attend to a context of so many features as well: keys and values beside the image's own (GLIDE)."""
        channels = self.q.out_features
        self.context_k = linear(features, channels)
        self.context_v = linear(features, channels)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        # For a channels-last x neither this transposition nor the one back moves any memory.
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        k, v, present = self.k(tokens), self.v(tokens), None
        if context is not None:
            k = torch.cat([k, self.context_k(context.features)], dim=1)
            v = torch.cat([v, self.context_v(context.features)], dim=1)
            present = torch.cat([context.present.new_ones(tokens.shape[:2]), context.present], dim=1)
        attended = attention(self.q(tokens), k, v, present)
        return x + self.out(attended).transpose(1, 2).unflatten(2, x.shape[2:])


class Downsample(nn.Module):
    """(N, C, H, W) to (N, C, H/2, W/2), H and W even, by a strided convolution.

    Zeros are added on the right and at the bottom only (TensorFlow's "SAME" for stride 2), which a symmetric
    ``padding=1`` would not reproduce.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(N, C, H, W) to (N, C, 2H, 2W): nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class DownLevel(nn.Module):
    """Residual blocks of one resolution on the way down; returns its output and what the way up will need."""

    def __init__(
        self, channels: Sequence[int], out_channels: int, *, attention: bool, downsample: bool, **block_options: Any
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(c, out_channels, **block_options) for c in channels)
        self.attentions = _attentions(len(channels) if attention else 0, out_channels, block_options["norm_groups"])
        self.downsample = Downsample(out_channels) if downsample else None

    def forward(self, x: Tensor, time: Tensor, context: Context | None = None) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for j, block in enumerate(self.blocks):
            x = block(x, time)
            if self.attentions:
                x = self.attentions[j](x, context)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x, skips


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, **block_options: Any) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, **block_options)
        self.attention = Attention(channels, norm_groups=block_options["norm_groups"])
        self.block2 = ResidualBlock(channels, channels, **block_options)

    def forward(self, x: Tensor, time: Tensor, context: Context | None = None) -> Tensor:
        return self.block2(self.attention(self.block1(x, time), context), time)


class UpLevel(nn.Module):
    """Residual blocks of one resolution on the way up, each fed with one skip connection."""

    def __init__(
        self, channels: Sequence[int], out_channels: int, *, attention: bool, upsample: bool, **block_options: Any
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(c, out_channels, **block_options) for c in channels)
        self.attentions = _attentions(len(channels) if attention else 0, out_channels, block_options["norm_groups"])
        self.upsample = Upsample(out_channels) if upsample else None

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Context | None = None) -> Tensor:
        for j, block in enumerate(self.blocks):
            x = block(torch.cat([x, skips.pop()], dim=1), time)
            if self.attentions:
                x = self.attentions[j](x, context)
        return x if self.upsample is None else self.upsample(x)


def _attentions(number: int, channels: int, norm_groups: int) -> nn.ModuleList:
    return nn.ModuleList(Attention(channels, norm_groups=norm_groups) for _ in range(number))
