"""The noise-prediction UNet of DDPM (Ho, Jain, Abbeel 2020), the network of every experiment in the DDIM paper.

Parameter names follow the drawing: ``conv_in``, ``down.<level>.blocks.<j>``, ``down.<level>.attentions.<j>``,
``down.<level>.downsample``, ``middle``, ``up.<level>...``, ``norm_out``, ``conv_out``. Level 0 is the full resolution
on both sides, so ``up.<level>`` meets the skip connections of ``down.<level>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.denoisers.layers import (
    Attention,
    Context,
    DownLevel,
    GroupNormSiLU,
    Middle,
    TimeEmbedding,
    UpLevel,
    conv3x3,
)


class UNet(nn.Module):
    """The DDPM UNet.

    Args:
        in_channels: channels of x.
        out_channels: channels of the output; ``in_channels`` if None.
        resolution: height and width of the images trained on; divisible by ``patch * 2 ** (len(channel_mult) - 1)``.
        base_channels: channels after the first convolution, even and at least 4.
        channel_mult: channels of each level as multiples of ``base_channels``; one level per entry, each at half the
            resolution of the one before.
        num_res_blocks: residual blocks per level on the way down; the way up has one more.
        attention_resolutions: attention follows every residual block of the levels whose feature maps have one of these
            sides (those that no level has are without effect). The middle always has attention.
        dropout: probability in [0, 1) inside each residual block.
        norm_groups: groups of every normalisation; divides ``base_channels * m`` for every m in ``channel_mult``.
        num_classes: K, the number of classes that samples may be conditioned on; None makes an unconditional network.
            An embedding of the class is added to that of the timestep (Dhariwal & Nichol 2021).
        null_class: whether the embedding has one more row, the K-th, which stands for no class (Ho & Salimans 2022).
        patch: side of the squares of pixels that become channels before the first convolution and pixels again after
            the last one; divides ``resolution``, and ``resolution / patch`` is what the levels start from. 2 takes a
            quarter of the work.

    Raises:
        ValueError: an argument is out of range or does not fit the others; the message names it.

    A new network returns exactly zero (zero-initialised last layers, as in Ho et al.).
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        out_channels: int | None = None,
        resolution: int = 32,
        base_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        norm_groups: int = 32,
        num_classes: int | None = None,
        null_class: bool = True,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": in_channels if out_channels is None else out_channels,
            "resolution": resolution,
            "base_channels": base_channels,
            "channel_mult": _list_of_ints("channel_mult", channel_mult),
            "num_res_blocks": num_res_blocks,
            "attention_resolutions": _list_of_ints("attention_resolutions", attention_resolutions),
            "dropout": dropout,
            "norm_groups": norm_groups,
            "num_classes": num_classes,
            "null_class": null_class,
            "patch": patch,
        }
        """Plain values that rebuild this architecture: ``UNet(**unet.config)``."""
        _check_config(self.config)

        widths = [base_channels * m for m in self.config["channel_mult"]]
        size = resolution // patch
        attention = [size >> level in self.config["attention_resolutions"] for level in range(len(widths))]
        self.downsampling = patch * 2 ** (len(widths) - 1)
        options = {"time_features": 4 * base_channels, "dropout": dropout, "norm_groups": norm_groups}

        self.time_embedding = TimeEmbedding(base_channels, 4 * base_channels)
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + null_class, 4 * base_channels)
        self.conv_in = conv3x3(in_channels * patch**2, base_channels)

        self.down = nn.ModuleList()
        last = len(widths) - 1
        skips = [base_channels]
        for level, width in enumerate(widths):
            channels = [skips[-1]] + [width] * (num_res_blocks - 1)
            downsample = level < last
            self.down.append(DownLevel(channels, width, attention=attention[level], downsample=downsample, **options))
            skips += [width] * (num_res_blocks + downsample)

        self.middle = Middle(widths[-1], **options)

        self.up = nn.ModuleList(reversed(_way_up(widths, skips, num_res_blocks + 1, attention, options)))

        self.norm_out = GroupNormSiLU(norm_groups, widths[0])
        self.conv_out = conv3x3(widths[0], self.config["out_channels"] * patch**2, zero=True)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that it is trained on."""
        return self.config["in_channels"], self.config["resolution"], self.config["resolution"]

    @property
    def conditional(self) -> bool:
        """Whether `forward` takes a condition."""
        return self.config["num_classes"] is not None

    @property
    def null_condition(self) -> Tensor | None:
        """The class that stands for none, a LongTensor without dimensions; None where there is no such class."""
        if not self.conditional or not self.config["null_class"]:
            return None
        return torch.tensor(self.config["num_classes"])

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Predict the noise in x_t.

        Args:
            x: (N, in_channels, H, W), floating; H and W divisible by ``2 ** (levels - 1)``, not necessarily
                ``resolution``. It is converted to the precision of the weights.
            t: (N,) timesteps, LongTensor.
            condition: (N,) classes from 0 to ``num_classes`` - 1, or ``null_condition``, LongTensor; None is that class
                for all. Unconditional networks take None alone.

        Returns:
            (N, out_channels, H, W) in the precision of the weights. Autocast applies between the first and the last
            convolution, which keep that precision.

        Raises:
            ValueError: x, t or condition has another shape or kind than this, or the network needs a condition.
        """
        self.check_inputs(x, t)
        return self.predict(x, self.time_embedding(t, self._embedded(condition, t)))

    def predict(self, x: Tensor, time: Tensor, context: Context | None = None) -> Tensor:
        """`forward` with what `time_embedding` has made of the timesteps, (N, 4 base_channels), in place of them.

        context: what every attention attends to beside the image; they have been made ready with `attend_to`.
        """
        # What autocast may compute in less is everything between the two ends. x and eps themselves are not rounded: an
        # error in eps is carried into every later step, and rounding it was most of bfloat16's effect on the images.
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv_in(_unshuffled(x.to(self.conv_in.weight.dtype), self.config["patch"]))
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        skips = [x]
        for down in self.down:
            x, new_skips = down(x, time, context)
            skips += new_skips
        x = self.middle(x, time, context)
        for up in reversed(self.up):
            x = up(x, skips, time, context)
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv_out(self.norm_out(x.to(self.conv_out.weight.dtype)))
            return x if self.config["patch"] == 1 else F.pixel_shuffle(x, self.config["patch"])

    def _embedded(self, condition: Tensor | None, t: Tensor) -> Tensor | None:
        """The embedding (N, 4 base_channels) of the classes (N,); None in an unconditional network."""
        if not self.conditional:
            if condition is not None:
                raise ValueError("condition must be None: the network has no classes (num_classes)")
            return None
        if condition is None:
            if not self.config["null_class"]:
                raise ValueError("condition must be given: the network has no class that stands for none (null_class)")
            return self.class_embedding(torch.full_like(t, self.config["num_classes"], dtype=torch.long))
        if condition.shape != t.shape or condition.dtype != torch.long:
            raise ValueError(
                f"condition must be a LongTensor of shape ({len(t)},) like the batch of x, "
                f"got {condition.dtype} {tuple(condition.shape)}"
            )
        return self.class_embedding(condition)

    def attend_to(self, features: int) -> None:
        """Make every attention ready for a context of so many features per token."""
        for module in [module for module in self.modules() if isinstance(module, Attention)]:
            module.add_context(features)

    def check_inputs(self, x: Tensor, t: Tensor) -> None:
        """Raises ValueError where x or t has another shape or kind than `forward` takes."""
        channels = self.config["in_channels"]
        if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
            raise ValueError(f"x must be floating with shape (N, {channels}, H, W), got {x.dtype} {tuple(x.shape)}")
        if x.shape[2] % self.downsampling or x.shape[3] % self.downsampling:
            raise ValueError(
                f"height and width of x must be divisible by {self.downsampling}, got {x.shape[2]}x{x.shape[3]}"
            )
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape ({x.shape[0]},) like the batch of x, got {tuple(t.shape)}")


def _way_up(
    widths: Sequence[int], skips: list[int], blocks: int, attention: Sequence[bool], options: Mapping[str, Any]
) -> list[UpLevel]:
    """The levels in the order in which they are run, the lowest resolution first; takes the channels of `skips`."""
    up: list[UpLevel] = []
    incoming = widths[-1]
    for level in reversed(range(len(widths))):
        channels = []
        for _ in range(blocks):
            channels.append(incoming + skips.pop())
            incoming = widths[level]
        up.append(UpLevel(channels, incoming, attention=attention[level], upsample=level > 0, **options))
    return up


def _unshuffled(x: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, C patch^2, H / patch, W / patch), in channels-last where x is."""
    if patch == 1:
        return x
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    x = F.pixel_unshuffle(x, patch)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _list_of_ints(name: str, values: Sequence[int]) -> list[int]:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise ValueError(f"{name} must be a list of positive integers, got {values!r}")
    listed = list(values)
    for value in listed:
        if not _is_positive_int(value):
            raise ValueError(f"{name} must be a list of positive integers, got {listed!r}")
    return listed


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_config(config: Mapping[str, Any]) -> None:
    for name in (
        "in_channels",
        "out_channels",
        "resolution",
        "base_channels",
        "num_res_blocks",
        "norm_groups",
        "patch",
    ):
        if not _is_positive_int(config[name]):
            raise ValueError(f"{name} must be a positive integer, got {config[name]!r}")
    if config["num_classes"] is not None and not _is_positive_int(config["num_classes"]):
        raise ValueError(f"num_classes must be a positive integer or null, got {config['num_classes']!r}")
    if not isinstance(config["null_class"], bool):
        raise ValueError(f"null_class must be true or false, got {config['null_class']!r}")
    dropout, base, groups = config["dropout"], config["base_channels"], config["norm_groups"]
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}")
    if not config["channel_mult"]:
        raise ValueError("channel_mult must have at least one entry, got an empty list")
    halvings, patch = len(config["channel_mult"]) - 1, config["patch"]
    if config["resolution"] % (patch * 2**halvings):
        patched = f"patch {patch} divides it and " if patch > 1 else ""
        raise ValueError(
            f"resolution {config['resolution']} must be divisible by {patch * 2**halvings}, "
            f"because {patched}channel_mult {config['channel_mult']} halves it {halvings} times"
        )
    if base % 2 or base < 4:
        raise ValueError(f"base_channels must be even and at least 4 for the time embedding, got {base}")
    for width in [base, *(base * m for m in config["channel_mult"])]:
        if width % groups:
            raise ValueError(f"norm_groups {groups} must divide every level's channels, got {width} channels")
