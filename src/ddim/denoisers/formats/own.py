"""Checkpoints of this project: what they hold besides the weights, and what is rebuilt from them.

A checkpoint is a Lightning checkpoint with one more entry, plain data under `HEADER`:
`{"format": 1, "config": {"dataset": {...}, "denoiser": {...}, "schedule": {...}}}`, of a conditional network also
`"condition": {"classes": [names]}`, of data that are no images `"space"`, of one that does not predict the noise
`"objective": {"predicts": ...}`. It loads with `weights_only=True`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ddim.denoisers.build import UNET
from ddim.denoisers.formats.contents import Pretrained
from ddim.denoisers.formats.torch_file import printable, read_torch_file, reason_of
from ddim.denoisers.formats.weights import is_ordinary
from ddim.diffusion import PREDICTIONS
from ddim.errors import UserError
from ddim.runs.paths import usable_path

HEADER = "ddim"
GROUPS = ("dataset", "denoiser", "schedule")
# Beside them, of data that are no images: how they were standardised.
SPACE = "space"
OBJECTIVE = "objective"
# What Lightning takes a training up from, besides the weights.
RESUMED: dict[str, type] = {
    **{"epoch": int, "global_step": int, "pytorch-lightning_version": str, "state_dict": Mapping},
    **{"loops": Mapping, "callbacks": Mapping, "optimizer_states": list, "lr_schedulers": list},
}


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that `DenoisingModule` adds to every checkpoint."""
    return {"format": FORMAT, "config": dict(config)}


def read_config(checkpoint: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The dataset, denoiser and schedule that a checkpoint (as `read_checkpoint` returns it) was trained with.

    Raises:
        UserError: naming `path` and what it does not say.
    """
    config = checkpoint[HEADER]["config"]
    absent = [key for key in GROUPS if not isinstance(config.get(key), Mapping)]
    if absent:
        raise UserError(f"checkpoint={path} does not say its {' and '.join(absent)}; it was not written by train.py.")
    return {key: dict(config[key]) for key in GROUPS} | {OBJECTIVE: {"predicts": _predicts(config, str(path))}}


def check_resumable(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raises `UserError` where a checkpoint of ours lacks what a training needs to go on."""
    wrong = [key for key, kind in RESUMED.items() if not isinstance(checkpoint.get(key), kind)]
    if wrong:
        raise UserError(
            f"resume={path} holds no usable {', '.join(wrong)}; it can be evaluated (checkpoint={path}) but training "
            "cannot go on from it."
        )


FORMAT = 1
PREFIX = "denoiser."


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
        space=_plain(config.get(SPACE), origin),
        predicts=_predicts(config, origin),
        states={label: _denoiser_state(checkpoint.get(key), origin, denoiser) for label, key in keys.items()},
        condition=_plain(config.get("condition"), origin),
        steps=_whole_number(checkpoint.get("global_step")),
        images=_images_seen(checkpoint),
    )


def _predicts(config: Mapping[str, Any], origin: str) -> str:
    """What the network predicts; the noise where nothing is said, as in all checkpoints before there was a choice."""
    objective = config.get(OBJECTIVE, {"predicts": "eps"})
    predicts = objective.get("predicts") if isinstance(objective, Mapping) else None
    if not isinstance(predicts, str) or predicts not in PREDICTIONS:
        raise UserError(
            f"checkpoint {origin} states objective.predicts={printable(repr(predicts))}; "
            f"known are {', '.join(PREDICTIONS)}"
        )
    return str(predicts)


def _images_seen(checkpoint: Mapping[str, Any]) -> int | None:
    """Batches that have reached the weights times their size on all processes, as Lightning and our loader say."""
    try:
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]["total"]["processed"]
        (loader,) = loop["state_dict"]["combined_loader"]
        factors = [_whole_number(value) for value in (batches, loader["batch_size"], loader["world_size"])]
    except (LookupError, TypeError, ValueError):
        return None
    return None if None in factors else math.prod(number for number in factors if number is not None)


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _plain(group: Any, origin: str) -> dict[str, Any] | None:
    if not isinstance(group, Mapping):
        return None
    try:
        return json.loads(json.dumps(dict(group)))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{origin} describes its training with other than plain values ({reason_of(error)})") from error


def _denoiser_state(state_dict: Any, origin: str, denoiser: Mapping[str, Any]) -> dict[str, Tensor]:
    if not isinstance(state_dict, Mapping):
        raise UserError(f"{origin} holds no weights; give a checkpoint saved by train.py")
    state = {
        name.removeprefix(PREFIX): value
        for name, value in state_dict.items()
        if isinstance(name, str) and name.startswith(PREFIX) and isinstance(value, Tensor)
    }
    if not state:
        raise UserError(f"{origin} holds no denoiser weights; give a checkpoint saved by train.py")
    # Another network may count something beside its weights.
    floating = denoiser.get("name") == UNET
    for name, value in state.items():
        if not is_ordinary(value, floating=floating):
            kind = "floating-point tensor" if floating else "tensor"
            raise UserError(f"{origin} is damaged: {printable(name)} is not an ordinary {kind}")
    return state
