"""Checkpoints of the official PyTorch code of DDIM and DDPM: a flat state dict, or the list that training saves.

Neither describes its network; it is read from the names and shapes of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddim.denoisers.formats.contents import UNSTATED, Pretrained
from ddim.denoisers.formats.naming import canonical_name, file_name
from ddim.denoisers.formats.torch_file import ACCEPTED, printable
from ddim.denoisers.formats.weights import in_our_names, resolution_of, unet_of
from ddim.errors import UserError

NORM_GROUPS = 32


def from_official(loaded: Any, origin: str) -> Pretrained:
    """`Pretrained` from what a file of the official code holds, already loaded.

    The release is a flat state dict, which does not say whether it is EMA ("unstated"). Training saves the list
    `[model, optimizer, epoch, step]`, with the EMA weights as a fifth entry where it keeps them.

    Raises:
        UserError: it is neither of these, or not the UNet of DDPM; the message names the first keys that differ.
    """
    if _is_state_dict(loaded):
        return _pretrained("official", {UNSTATED: loaded}, origin)
    if not _is_training_list(loaded):
        raise UserError(f"{origin} is not a checkpoint of a known kind ({_kind(loaded)}); give {ACCEPTED}")
    states = {"raw": loaded[0]} if len(loaded) == 4 else {"ema": loaded[4], "raw": loaded[0]}
    return _pretrained("official-training", states, origin)


def infer_config(state: Mapping[Any, Any], origin: str) -> dict[str, Any]:
    """The configuration of the UNet whose weights a file of the official code holds, from their names and shapes.

    They do not tell the resolution (for the rule see `resolution_of`), the groups of the normalisations (32 in the
    official code) and the dropout (without effect on a trained network: 0).

    Raises:
        UserError: naming the key that is missing or has an impossible shape.
    """
    shapes = {
        canonical_name("official", key): tuple(value.shape)
        for key, value in state.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }

    def has(name: str) -> bool:
        return file_name("official", name, 0) in shapes

    def convolution(name: str) -> tuple[int, ...]:
        key = file_name("official", name, 0)
        if key not in shapes or len(shapes[key]) != 4 or 0 in shapes[key]:
            found = f"has shape {shapes[key]}" if key in shapes else "is missing"
            raise UserError(f"{origin} does not fit the UNet of DDPM: {key} {found}")
        return shapes[key]

    base, in_channels, *_ = convolution("conv_in.weight")
    levels = 1
    while has(f"down.{levels}.blocks.0.conv1.weight"):
        levels += 1
    widths = [convolution(f"down.{level}.blocks.0.conv1.weight")[0] for level in range(levels)]
    for level, width in enumerate(widths):
        if width % base:
            raise UserError(
                f"{origin} does not fit the UNet of DDPM: down.{level}.block.0.conv1.weight has {width} output "
                f"channels, no multiple of the {base} of conv_in.weight"
            )
    blocks = 1
    while has(f"down.0.blocks.{blocks}.conv1.weight"):
        blocks += 1
    return {
        "name": "unet",
        "in_channels": in_channels,
        "out_channels": convolution("conv_out.weight")[0],
        "base_channels": base,
        "channel_mult": [width // base for width in widths],
        "num_res_blocks": blocks,
        "dropout": 0.0,
        "norm_groups": NORM_GROUPS,
        **resolution_of([has(f"down.{level}.attentions.0.q.weight") for level in range(levels)]),
    }


def _pretrained(format: str, states: Mapping[str, Mapping[Any, Any]], origin: str) -> Pretrained:
    first = next(iter(states.values()))
    config = infer_config(first, origin)
    # The groups change no shape; whether 32 of them fit is for `build` to say, where a user may give another number.
    unet = unet_of({**config, "norm_groups": 1}, first, origin)
    named = {label: in_our_names(state, unet, format, _part(origin, label)) for label, state in states.items()}
    return Pretrained(origin, format, config, None, None, named)


def _part(origin: str, label: str) -> str:
    return origin if label == UNSTATED else f"{origin} ({label} weights)"


def _is_state_dict(loaded: Any) -> bool:
    return isinstance(loaded, Mapping) and any(
        isinstance(key, str) and key.removeprefix("module.").startswith(("temb.dense.", "down.0.block."))
        for key in loaded
    )


def _is_training_list(loaded: Any) -> bool:
    return (
        isinstance(loaded, (list, tuple))
        and len(loaded) in (4, 5)
        and _is_state_dict(loaded[0])
        and (len(loaded) == 4 or isinstance(loaded[4], Mapping))
    )


def _kind(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        keys = ", ".join(printable(str(key), 60) for key in list(loaded)[:3])
        return f"its first keys are {keys}" if keys else "it is empty"
    return f"it holds a {type(loaded).__name__}"
