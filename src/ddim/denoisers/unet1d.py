"""The UNet of DDPM in one dimension, for series: the same levels, blocks and attention, with kernels along time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.denoisers.layers import Attention, Dropout, GroupNormSiLU, TimeEmbedding, initialised, linear
from ddim.denoisers.mlp import check_shape_of


class UNet1d(nn.Module):
    """eps of series (C, L) of any length that is divisible by ``2 ** (len(channel_mult) - 1)``.

    Args:
        shape: (C, L) of the series trained on. None only in a configuration: that of the data.
        base_channels: channels after the first convolution, even and at least 4.
        channel_mult: channels of each level as multiples of ``base_channels``; one level per entry, each at half the
            length of the one before.
        num_res_blocks: residual blocks per level on the way down; the way up has one more.
        attention_levels: numbers of the levels, 0 is the full length, whose blocks attention follows. The middle always
            has attention.
        dropout: probability in [0, 1) inside each residual block.
        norm_groups: groups of every normalisation; divides ``base_channels * m`` for every m in ``channel_mult``.

    Raises:
        ValueError: an argument is out of range or does not fit the others; the message names it.

    A new network returns exactly zero (zero-initialised last layers, as in Ho et al.).
    """

    def __init__(
        self,
        *,
        shape: Sequence[int] | None = None,
        base_channels: int = 32,
        channel_mult: Sequence[int] = (1, 2),
        num_res_blocks: int = 1,
        attention_levels: Sequence[int] = (1,),
        dropout: float = 0.0,
        norm_groups: int = 16,
    ) -> None:
        super().__init__()
        listed = check_shape_of("shape", shape, (2,))
        levels = _levels("attention_levels", attention_levels)
        config = _checked(base_channels, channel_mult, num_res_blocks, dropout, norm_groups)
        self.config: dict[str, Any] = {"shape": listed, **config, "attention_levels": levels}
        """Plain values that rebuild this architecture: ``UNet1d(**unet.config)``."""
        widths = [base_channels * m for m in config["channel_mult"]]
        self.downsampling = 2 ** (len(widths) - 1)
        self._check_length(listed[1])
        options: dict[str, Any] = {"time_features": 4 * base_channels, "dropout": dropout, "norm_groups": norm_groups}
        last = len(widths) - 1

        self.time_embedding = TimeEmbedding(base_channels, 4 * base_channels)
        self.conv_in = conv(listed[0], base_channels)
        self.down, skips, incoming = nn.ModuleList(), [base_channels], base_channels
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.down.append(Stage(incoming, width, attention=level in levels, **options))
                incoming = width
                skips.append(width)
            if level < last:
                self.down.append(Downsample(width))
                skips.append(width)
        self.middle = nn.ModuleList(Stage(incoming, incoming, attention=number == 0, **options) for number in range(2))
        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(num_res_blocks + 1):
                self.up.append(Stage(incoming + skips.pop(), width, attention=level in levels, **options))
                incoming = width
            if level > 0:
                self.up.append(Upsample(width))
        self.norm_out = GroupNormSiLU(norm_groups, widths[0])
        self.conv_out = conv(widths[0], listed[0], zero=True)

    @property
    def sample_shape(self) -> tuple[int, int]:
        """(channels, length) of the series that it is trained on."""
        channels, length = self.config["shape"]
        return channels, length

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in x_t.

        Args:
            x: (N, C, L), floating; L divisible by ``2 ** (levels - 1)``, not necessarily that of ``shape``. It is
                converted to the precision of the weights.
            t: (N,) timesteps, LongTensor.

        Returns:
            (N, C, L) in the precision of the weights. Autocast applies between the first and the last convolution.

        Raises:
            ValueError: x or t has another shape or kind than this.
        """
        channels = self.config["shape"][0]
        if x.ndim != 3 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(f"x must be floating with shape (N, {channels}, L), got {x.dtype} {tuple(x.shape)}")
        self._check_length(x.shape[2])
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape ({x.shape[0]},) like the batch of x, got {tuple(t.shape)}")
        time = self.time_embedding(t)
        with torch.autocast(x.device.type, enabled=False):
            # Normalisation and attention are those of images, one row high.
            h = self.conv_in(x.to(self.conv_in.weight.dtype)[:, :, None])
        skips = [h]
        for layer in self.down:
            h = layer(h, time)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, time)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, skips.pop()], dim=1), time)
        with torch.autocast(x.device.type, enabled=False):
            return self.conv_out(self.norm_out(h.to(self.conv_out.weight.dtype)))[:, :, 0]

    def _check_length(self, length: int) -> None:
        if length % self.downsampling:
            raise ValueError(
                f"a length of {length} is not divisible by {self.downsampling}, which the "
                f"{len(self.config['channel_mult'])} levels of denoiser.channel_mult need; take another length "
                "(dataset.length) or fewer levels"
            )


class Stage(nn.Module):
    """A residual block of (N, C, 1, L) with the time in it, and attention after it if asked for."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        attention: bool,
        time_features: int,
        dropout: float,
        norm_groups: int,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(norm_groups, in_channels)
        self.conv1 = conv(in_channels, out_channels)
        self.time = linear(time_features, out_channels)
        self.norm2 = GroupNormSiLU(norm_groups, out_channels)
        self.dropout = Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels, zero=True)
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else conv(in_channels, out_channels, width=1)
        self.attention: nn.Module = Attention(out_channels, norm_groups=norm_groups) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x)) + self.time(time)[:, :, None, None]
        return self.attention(self.shortcut(x) + self.conv2(self.dropout(self.norm2(h))))


class Downsample(nn.Module):
    """(N, C, 1, L) to (N, C, 1, L/2), L even, by a strided convolution; a zero is added on the right, as in images."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels, stride=2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1)))


class Upsample(nn.Module):
    """(N, C, 1, L) to (N, C, 1, 2L): nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=3))


def conv(in_channels: int, out_channels: int, *, width: int = 3, stride: int = 1, zero: bool = False) -> nn.Conv2d:
    """A convolution along time with DDPM initialisation, which keeps the length; with a stride nothing is padded."""
    padding = width // 2 if stride == 1 else 0
    layer = nn.Conv2d(in_channels, out_channels, (1, width), stride=(1, stride), padding=(0, padding))
    return initialised(layer, zero=zero)


def _levels(name: str, values: Sequence[int]) -> list[int]:
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str | bytes) else None
    if listed is None or any(type(value) is not int or value < 0 for value in listed):
        raise ValueError(f"{name} must be a list of numbers of levels, 0 is the full length; got {values!r}")
    return listed


def _checked(base: int, mult: Sequence[int], blocks: int, dropout: float, groups: int) -> dict[str, Any]:
    """The arguments that the UNet of images has as well, as plain values."""
    listed = list(mult) if isinstance(mult, Sequence) and not isinstance(mult, str | bytes) else []
    if not listed or any(type(value) is not int or value < 1 for value in listed):
        raise ValueError(f"channel_mult must be a list of positive integers, got {mult!r}")
    for name, value in (("base_channels", base), ("num_res_blocks", blocks), ("norm_groups", groups)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}")
    if base % 2 or base < 4:
        raise ValueError(f"base_channels must be even and at least 4 for the time embedding, got {base}")
    for width in [base, *(base * m for m in listed)]:
        if width % groups:
            raise ValueError(f"norm_groups {groups} must divide every level's channels, got {width} channels")
    return {
        "base_channels": base,
        "channel_mult": listed,
        "num_res_blocks": blocks,
        "dropout": dropout,
        "norm_groups": groups,
    }
