"""From the tensors of a file to the weights of a network: do they fit, and what are they called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddim.denoisers.build import UNET, build_denoiser
from ddim.denoisers.formats.naming import canonical_name, file_name
from ddim.denoisers.formats.torch_file import printable, reason_of
from ddim.denoisers.unet import UNet
from ddim.errors import UserError

# All networks of the DDPM and DDIM papers attend at this resolution, and only there.
OFFICIAL_ATTENTION = 16


def network_of(
    config: Mapping[str, Any], state: Mapping[str, Any], origin: str, whose: str = "it describes"
) -> nn.Module:
    """The network of this configuration, to hold the weights `state`; the UNet without storage, as `unet_of` has it.

    Of another network nobody knows what it holds besides its weights: it is made whole.

    Raises:
        UserError: the configuration cannot be built.
    """
    if config.get("name") == UNET:
        return unet_of(config, state, origin, whose)
    try:
        return build_denoiser(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise _not_built(origin, whose, error) from error


def unet_of(config: Mapping[str, Any], state: Mapping[str, Any], origin: str, whose: str = "it describes") -> UNet:
    """The UNet of this configuration without storage (on the meta device), to hold the weights `state`.

    `whose` says where the configuration comes from, if not from the file itself.

    Raises:
        UserError: the configuration cannot be built, or is far larger than what `state` could fill.
    """
    blocks, levels = config.get("num_res_blocks", 2), config.get("channel_mult", ())
    if isinstance(blocks, int) and hasattr(levels, "__len__") and max(blocks, 1) * len(levels) > max(len(state), 100):
        raise UserError(
            f"{origin} holds {len(state)} tensors, too few for the denoiser {whose}: "
            f"{len(levels)} levels with {blocks} blocks each"
        )
    try:
        with torch.device("meta"):
            unet = build_denoiser(config)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise _not_built(origin, whose, error) from error
    assert isinstance(unet, UNet)
    return unet


def _not_built(origin: str, whose: str, error: Exception) -> UserError:
    return UserError(f"{origin} cannot be used, because the denoiser {whose} cannot be built: {reason_of(error)}")


def check_fit(network: nn.Module, state: Mapping[str, Tensor], format: str, origin: str, whose: str) -> None:
    """Refuse weights (in our names) that do not fit `network`, in one sentence with the file's names for them.

    `whose` says what describes the denoiser they should fit.

    Raises:
        UserError: naming the first three that are missing, not expected, or of another shape.
    """
    # Only files of our own format hold another network, in names that are ours.
    levels = len(network.config["channel_mult"]) if isinstance(network, UNet) else 0
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"{file_name(format, name, levels)} is missing" for name in expected if name not in found]
    problems += [f"{file_name(format, name, levels)} is not expected" for name in found if name not in expected]
    problems += [
        f"{file_name(format, name, levels)} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    refuse(problems, f"the weights in {origin} do not fit the denoiser {whose}")


def refuse(problems: list[str], sentence: str) -> None:
    """Raise UserError with the first three of `problems`, if there are any."""
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{sentence}: {', '.join(map(printable, problems[:3]))}{more}")


def in_our_names(state: Mapping[Any, Any], unet: UNet, format: str, origin: str) -> dict[str, Tensor]:
    """The tensors of a file of `format`, named and shaped as in `unet`.

    Attention projections may be linear layers (C, C) or 1x1 convolutions (C, C, 1, 1).

    Raises:
        UserError: naming, as the file does, the first three keys that are missing, not expected, of another shape or
            not ordinary floating-point tensors.
    """
    levels = len(unet.config["channel_mult"])
    ours = {file_name(format, name, levels): name for name in unet.state_dict()}
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    keys: dict[str, str] = {}
    unexpected = []
    for key in state:
        name = ours.get(canonical_name(format, key)) if isinstance(key, str) else None
        if name is None or name in keys:
            unexpected.append(f"{key} is not expected")
        else:
            keys[name] = key
    problems = [f"{theirs} is missing" for theirs, name in ours.items() if name not in keys] + unexpected
    tensors: dict[str, Tensor] = {}
    for name, key in keys.items():
        value, shape = state[key], shapes[name]
        if not isinstance(value, Tensor) or not is_ordinary(value):
            problems.append(f"{key} is not an ordinary floating-point tensor")
            continue
        convolution = ".attention" in name and name.endswith(".weight") and len(shape) == 2
        if tuple(value.shape) not in (shape, (*shape, 1, 1) if convolution else shape):
            needed = (*shape, 1, 1) if convolution and value.ndim != 2 else shape
            problems.append(f"{key} has shape {tuple(value.shape)} instead of {needed}")
            continue
        tensors[name] = value.reshape(shape)
    refuse(problems, f"{origin} does not fit the UNet of DDPM")
    return {name: tensors[name] for name in ours.values()}


def resolution_of(attends: list[bool]) -> dict[str, Any]:
    """`resolution` and `attention_resolutions` of a UNet, from which of its levels attend.

    Weights do not tell the image resolution. The first level that attends is taken to be at 16x16, as in every network
    of the DDPM and DDIM papers; where none does, the images are taken to be 32x32; both enlarged where the number of
    levels needs more.
    """
    levels = [level for level, attention in enumerate(attends) if attention]
    likely = OFFICIAL_ATTENTION << levels[0] if levels else 32
    resolution = max(likely, 2 ** (len(attends) - 1))
    return {"resolution": resolution, "attention_resolutions": [resolution >> level for level in levels]}


def is_ordinary(value: Tensor, *, floating: bool = True) -> bool:
    """Whether a tensor from a file is a dense one that is really there, and where asked for of floating point."""
    return (
        value.layout == torch.strided
        and value.device.type == "cpu"
        and (value.is_floating_point() or not floating)
        and not value.is_quantized
        # An expanded tensor can claim any size for a few bytes of file.
        and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    )
