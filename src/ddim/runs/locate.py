"""Where the runs, checkpoints and evaluations are that a command names. Nothing is loaded to find them."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from ddim.errors import UserError
from ddim.runs.layout import CONFIG_FILE, LAST, LAST_CHECKPOINT, OVERRIDES_FILE
from ddim.runs.paths import usable_path


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
            # With Hydra's parser, which those who only look for a file need not load.
            from ddim.runs.overrides import raw_overrides

            command = shlex.join(["python", "train.py", *raw_overrides(Path(source))])
            raise UserError(
                f"resume={source}: that run was stopped before anything was saved; start anew with `{command}`."
            ) from error
        raise UserError(f"{key}={source}: {error}") from error


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


def find_evaluation(source: str, output_dir: Path) -> Path:
    """The directory of an evaluation that `resume=` names: `latest` is the one that was started or resumed last.

    Raises:
        UserError: there is none.
    """
    if source == "latest":
        found = [path for path in output_dir.glob(f"evaluate/*/{OVERRIDES_FILE}") if _is_evaluation(path.parent)]
        if not found:
            raise UserError(
                f"resume=latest: no evaluation under {output_dir}/evaluate has begun; start one without resume=."
            )
        return max(found, key=lambda path: (path.stat().st_mtime, str(path))).parent
    directory = Path(source).expanduser()
    if not _is_evaluation(directory):
        raise UserError(
            f"resume={source} is not the directory of an evaluation that has begun; "
            f"give one of those in {output_dir}/evaluate, or latest."
        )
    return directory


def _is_evaluation(directory: Path) -> bool:
    config = kept_config(directory)
    return (directory / OVERRIDES_FILE).is_file() and isinstance(config, dict) and "evaluation" in config


def kept_config(directory: Path) -> Any:
    """The configuration that is kept with a run; None where there is none or it cannot be read."""
    try:
        return yaml.safe_load((directory / CONFIG_FILE).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
