"""Networks by name: an untrained one from its configuration, and whether it fits the images."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ddim.denoisers.unet import UNet
from ddim.errors import UserError

MAX_BLOCKS = 100


def new_denoiser(config: Mapping[str, Any], sample_shape: Sequence[int], dataset: str) -> UNet:
    """An untrained network for samples (C, H, W) of this data set.

    Raises:
        UserError: it cannot be built, or does not fit.
    """
    try:
        _check_size(config)
        denoiser = build_denoiser(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"denoiser cannot be built: {error}") from error
    check_shape(denoiser, sample_shape, dataset)
    return denoiser


def _check_size(config: Mapping[str, Any]) -> None:
    blocks = config.get("num_res_blocks", 1)
    if isinstance(blocks, int) and blocks > MAX_BLOCKS:
        raise ValueError(f"num_res_blocks must be at most {MAX_BLOCKS}, got {blocks}")
    try:
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in build_denoiser(config).parameters())
    except RuntimeError as error:  # more than can be counted
        raise ValueError(f"denoiser.base_channels={config.get('base_channels')} is too large: {error}") from error
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * weights > memory:
        raise ValueError(
            f"its {weights:,} parameters need {4 * weights / 1e9:,.0f} GB, this machine has {memory / 1e9:,.0f} GB; "
            "lower denoiser.base_channels or denoiser.channel_mult"
        )


def check_shape(denoiser: UNet, sample_shape: Sequence[int], dataset: str) -> None:
    """Refuse (`UserError`) a denoiser of other channels or resolution than the samples (C, H, W) of this data set."""
    channels, *_, resolution = sample_shape
    for key, name, wanted in (("in_channels", "channels", channels), ("resolution", "resolution", resolution)):
        if denoiser.config[key] != wanted:
            raise UserError(
                f"denoiser.{key}={denoiser.config[key]} does not fit dataset {dataset} with "
                f"dataset.{name}={wanted}; they must be the same."
            )


def build_denoiser(config: Mapping[str, Any]) -> UNet:
    """Build a denoiser from its configuration: ``name`` ("unet") and that network's keyword arguments.

    Raises:
        ValueError: unknown name, unknown keys (the known ones are named), or values that the network refuses.
    """
    options = dict(config)
    name = options.pop("name", None)
    if name != "unet":
        raise ValueError(f"denoiser.name is {name!r}; known denoisers: unet")
    known = list(inspect.signature(UNet).parameters)
    unknown = [str(key) for key in options if key not in known]
    if unknown:
        raise ValueError(f"unknown denoiser keys {', '.join(unknown)}; known keys: {', '.join(known)}")
    return UNet(**options)
