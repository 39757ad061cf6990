"""What a checkpoint holds besides the weights, and what is rebuilt from it.

A checkpoint is a Lightning checkpoint with one more entry, plain data under `CHECKPOINT_KEY`:
`{"format": 1, "config": {"dataset": {...}, "denoiser": {...}, "schedule": {...}}}`. It loads with `weights_only=True`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ddim.denoisers.pretrained import FORMAT, find_checkpoint
from ddim.errors import UserError

CHECKPOINT_KEY = "ddim"
GROUPS = ("dataset", "denoiser", "schedule")
LAST, BEST = "last.ckpt", "best.ckpt"
# What Lightning takes a training up from, besides the weights.
RESUMED: dict[str, type] = {
    **{"epoch": int, "global_step": int, "pytorch-lightning_version": str, "state_dict": Mapping},
    **{"loops": Mapping, "callbacks": Mapping, "optimizer_states": list, "lr_schedulers": list},
}
# The command line of a run, written when its work starts: a resumption that is refused must not change it.
OVERRIDES_FILE = "overrides.yaml"


def describe(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that `DenoisingModule` adds to every checkpoint."""
    return {"format": FORMAT, "config": dict(config)}


def read_config(checkpoint: Mapping[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The dataset, denoiser and schedule that a checkpoint (as `read_checkpoint` returns it) was trained with.

    Raises:
        UserError: naming `path` and what it does not say.
    """
    config = checkpoint[CHECKPOINT_KEY]["config"]
    absent = [key for key in GROUPS if not isinstance(config.get(key), Mapping)]
    if absent:
        raise UserError(f"checkpoint={path} does not say its {' and '.join(absent)}; it was not written by train.py.")
    return {key: dict(config[key]) for key in GROUPS}


def check_resumable(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Raises `UserError` where a checkpoint of ours lacks what a training needs to go on."""
    wrong = [key for key, kind in RESUMED.items() if not isinstance(checkpoint.get(key), kind)]
    if wrong:
        raise UserError(
            f"resume={path} holds no usable {', '.join(wrong)}; it can be evaluated (checkpoint={path}) but training "
            "cannot go on from it."
        )


def latest_checkpoint(output_dir: Path) -> Path:
    """The newest `last.ckpt` of the training runs under `output_dir`.

    Raises:
        UserError: there is none.
    """
    found = [*output_dir.glob(f"train/*/checkpoints/{LAST}"), *output_dir.glob(f"multirun/*/*/checkpoints/{LAST}")]
    if not found:
        raise UserError(
            f"No checkpoint under {output_dir}/train: train one with `python train.py` or name one (checkpoint=PATH)."
        )
    return max(found, key=lambda path: (path.stat().st_mtime, str(path)))


def resolve_checkpoint(source: str | None, output_dir: Path, key: str = "checkpoint") -> Path:
    """`latest`, a run directory or a .ckpt as the path of a checkpoint file. Raises `UserError` if there is none."""
    if source is None:
        raise UserError(f"{key}=null names none; give latest, a run directory or a .ckpt file.")
    if source == "latest":
        return latest_checkpoint(output_dir)
    try:
        return find_checkpoint(source)
    except UserError as error:
        # os.path answers False where a path cannot be; Path would raise.
        if key == "resume" and os.path.isfile(os.path.join(source, OVERRIDES_FILE)):
            command = shlex.join(["python", "train.py", *raw_overrides(Path(source))])
            raise UserError(
                f"resume={source}: that run was stopped before anything was saved; start anew with `{command}`."
            ) from error
        raise UserError(f"{key}={source}: {error}") from error


def raw_overrides(directory: Path) -> list[str]:
    """The command line that a run was started with, for showing it; `ddim.stored_overrides` checks what is replayed."""
    try:
        stored = yaml.safe_load((directory / OVERRIDES_FILE).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        stored = None
    return [str(text) for text in stored] if isinstance(stored, list) else []


def run_directory(checkpoint: Path) -> Path:
    """The run a checkpoint belongs to: the folder that holds its `checkpoints/`.

    Raises:
        UserError: the checkpoint does not lie in a run directory.
    """
    directory = checkpoint.resolve().parent.parent
    if checkpoint.resolve().parent.name != "checkpoints" or not (directory / OVERRIDES_FILE).is_file():
        raise UserError(
            f"resume={checkpoint} does not lie in the checkpoints folder of a run directory; "
            "to go on training, keep the whole directory that train.py wrote."
        )
    return directory
