"""Checkpoints of this project: Lightning checkpoints with a description of the denoiser, schedule and dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddim.denoisers.contents import Pretrained
from ddim.denoisers.torch_file import printable, read_torch_file, reason_of
from ddim.denoisers.weights import is_ordinary
from ddim.errors import UserError
from ddim.paths import usable_path

FORMAT = 1
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
PREFIX = "denoiser."
HEADER = "ddim"


def find_checkpoint(source: str | Path) -> Path:
    """The checkpoint file that ``source`` means: a file itself, or of a run directory its ``checkpoints/last.ckpt``.

    Raises:
        UserError: there is no such file or directory, or the directory holds no last checkpoint.
    """
    path = usable_path(source, "checkpoint")
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"checkpoint {path} does not exist; give a run directory or a .ckpt file")
    checkpoint = path / LAST_CHECKPOINT
    if not checkpoint.is_file():
        raise UserError(
            f"directory {path} holds no {LAST_CHECKPOINT}; give a run directory that has saved a checkpoint, "
            "or a .ckpt file"
        )
    return checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file of this project into memory, on the CPU, without executing anything in it.

    Returns:
        The Lightning checkpoint: ``["ddim"]["config"]`` describes dataset, denoiser and schedule, ``["state_dict"]``
        and (with EMA) ``["current_model_state"]`` hold the weights.

    Raises:
        UserError: the file is missing, empty, truncated, damaged, of another kind or version, or holds objects other
            than tensors and plain values.
    """
    path = usable_path(path, "checkpoint")
    checkpoint = read_torch_file(path)
    if not is_own(checkpoint):
        raise UserError(
            f'{path} is not a checkpoint of this project (it has no "ddim" entry); give one of its .ckpt files'
        )
    check_header(checkpoint, str(path))
    return checkpoint


def is_own(loaded: Any) -> bool:
    """Whether the contents of a file are a checkpoint of this project, of any version."""
    header = loaded.get(HEADER) if isinstance(loaded, Mapping) else None
    return isinstance(header, Mapping) and "format" in header


def check_header(checkpoint: Mapping[str, Any], origin: str) -> None:
    """Raises UserError where a checkpoint of ours has another version or does not describe its denoiser."""
    header = checkpoint[HEADER]
    if not isinstance(header["format"], int) or header["format"] != FORMAT:
        raise UserError(
            f"checkpoint {origin} has format {printable(repr(header['format']))}, this version reads format {FORMAT}; "
            "use the version that wrote it"
        )
    config = header.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("denoiser"), Mapping):
        raise UserError(f"checkpoint {origin} does not describe its denoiser; give one saved by train.py")


def from_own(checkpoint: Mapping[str, Any], origin: str) -> Pretrained:
    """`Pretrained` from what :func:`read_checkpoint` returned; holds "ema" only if it was trained with EMA.

    Raises:
        UserError: it is of another version, or holds no description or no weights.
    """
    check_header(checkpoint, origin)
    config = checkpoint[HEADER]["config"]
    denoiser = _plain(config["denoiser"], origin)
    assert denoiser is not None
    # The EMA callback saves its average under the ordinary name and moves the raw weights aside.
    with_ema = "current_model_state" in checkpoint
    keys = {"ema": "state_dict", "raw": "current_model_state"} if with_ema else {"raw": "state_dict"}
    return Pretrained(
        origin=origin,
        format="ddim",
        denoiser=denoiser,
        schedule=_plain(config.get("schedule"), origin),
        dataset=_plain(config.get("dataset"), origin),
        states={label: _denoiser_state(checkpoint.get(key), origin) for label, key in keys.items()},
    )


def _plain(group: Any, origin: str) -> dict[str, Any] | None:
    if not isinstance(group, Mapping):
        return None
    try:
        return json.loads(json.dumps(dict(group)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{origin} describes its training with other than plain values ({reason_of(error)})") from error


def _denoiser_state(state_dict: Any, origin: str) -> dict[str, Tensor]:
    if not isinstance(state_dict, Mapping):
        raise UserError(f"{origin} holds no weights; give a checkpoint saved by train.py")
    state = {
        name.removeprefix(PREFIX): value
        for name, value in state_dict.items()
        if isinstance(name, str) and name.startswith(PREFIX) and isinstance(value, Tensor)
    }
    if not state:
        raise UserError(f"{origin} holds no denoiser weights; give a checkpoint saved by train.py")
    for name, value in state.items():
        if not is_ordinary(value):
            raise UserError(f"{origin} is damaged: {printable(name)} is not an ordinary floating-point tensor")
    return state
