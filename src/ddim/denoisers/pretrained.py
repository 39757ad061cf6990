"""Denoisers from files: a run directory or checkpoint of this project, or the public formats of the same network.

Files are data: they are read without executing anything in them, and what is not a checkpoint, or not one of a network
that ours can represent, is refused in one sentence.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ddim.denoisers.formats import hub
from ddim.denoisers.formats.contents import UNSTATED, WEIGHTS, Pretrained
from ddim.denoisers.formats.diffusers import from_diffusers, is_diffusers
from ddim.denoisers.formats.official import from_official
from ddim.denoisers.formats.own import FORMAT, from_own, is_own, read_checkpoint
from ddim.denoisers.formats.torch_file import ACCEPTED, read_torch_file
from ddim.errors import UserError
from ddim.runs.layout import LAST_CHECKPOINT
from ddim.runs.paths import usable_path

__all__ = [
    "FORMAT",
    "UNSTATED",
    "WEIGHTS",
    "Pretrained",
    "load_denoiser",
    "open_pretrained",
    "read_checkpoint",
]


def open_pretrained(source: str | Path, cache_dir: Path | None = None) -> Pretrained:
    """Read a trained denoiser of any known format into memory, on the CPU.

    Args:
        source: a run directory of this project (its last checkpoint is taken) or a checkpoint file of it; a file of
            the official PyTorch code of DDIM or DDPM; a diffusers pipeline or UNet2DModel directory; or such a model
            on the Hugging Face hub, `owner/name` or `owner/name@revision`, where no local path has that name.
        cache_dir: downloads from the hub go to its folder `hub`; None for the hub library's own place.

    Raises:
        UserError: there is no such source, it is not intact, of an unknown kind, or of another network.
    """
    path = usable_path(source, "checkpoint")
    if path.is_dir():
        return _open_directory(path)
    if not path.exists() and hub.is_hub_id(str(source)):
        directory, origin = hub.fetch(str(source), cache_dir)
        return from_diffusers(directory, origin)
    if path.suffix == ".safetensors" and path.is_file():
        raise UserError(
            f"{path} does not describe its network; give the diffusers directory that has config.json beside it"
        )
    loaded = read_torch_file(path)
    return from_own(loaded, str(path)) if is_own(loaded) else from_official(loaded, str(path))


def load_denoiser(source: str | Path, weights: str = "ema", device: str | torch.device = "cpu") -> nn.Module:
    """Load a trained denoiser.

    Args:
        source: what :func:`open_pretrained` takes.
        weights: "ema" for the exponential moving average, "raw" for the weights the optimizer holds.
        device: where the denoiser goes.

    Returns:
        The float32 denoiser in eval mode: (x, t) -> eps, whatever the network predicts.

    Raises:
        ValueError: ``weights`` is neither "ema" nor "raw".
        UserError: there is no such source, it is not an intact checkpoint of a known kind, or it has no such weights.
    """
    opened = open_pretrained(source)
    return opened.denoiser_of(opened.build(weights, device))


def _open_directory(path: Path) -> Pretrained:
    if (path / LAST_CHECKPOINT).is_file():
        checkpoint = path / LAST_CHECKPOINT
        return from_own(read_checkpoint(checkpoint), str(checkpoint))
    if is_diffusers(path):
        return from_diffusers(path, str(path))
    raise UserError(
        f"directory {path} holds no {LAST_CHECKPOINT} and no config.json of a diffusers model; give {ACCEPTED}"
    )
