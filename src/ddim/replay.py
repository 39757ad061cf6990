"""Command lines that are kept with a run, and an evaluation that is found again to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ddim.checkpoint import OVERRIDES_FILE
from ddim.cli import quoted
from ddim.config import PRECISIONS
from ddim.errors import UserError
from ddim.precision import AUTO
from ddim.results import write_atomically

CONFIG_FILE = "config.yaml"


def save_command(cfg: DictConfig, directory: Path, **resolved: str) -> None:
    """Keep the configuration and the overrides of this command in `directory`.

    resolved: keys whose value today need not be their value at a resumption, such as `checkpoint=latest`.
    """
    dropped = {"resume", *resolved}
    kept = [text for text in HydraConfig.get().overrides.task if text.lstrip("+").partition("=")[0] not in dropped]
    kept += [f"{key}={quoted(value)}" for key, value in resolved.items()]
    # The overrides come last: a directory that has them has the configuration.
    write_atomically((directory / CONFIG_FILE, OmegaConf.to_yaml(cfg).encode()))
    write_atomically((directory / OVERRIDES_FILE, OmegaConf.to_yaml(OmegaConf.create(kept)).encode()))


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


def begun_with(directory: Path, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer in which `precision: auto` is what it was when the run in `directory` began."""
    config = _config(directory)
    stated = config.get("trainer") if isinstance(config, dict) else None
    precision = stated.get("precision") if isinstance(stated, dict) else None
    if trainer.get("precision", AUTO) != AUTO or precision not in PRECISIONS:
        return dict(trainer)
    return {**trainer, "precision": precision}


def _is_evaluation(directory: Path) -> bool:
    config = _config(directory)
    return (directory / OVERRIDES_FILE).is_file() and isinstance(config, dict) and "evaluation" in config


def _config(directory: Path) -> Any:
    """The configuration that is kept with a run; None where there is none or it cannot be read."""
    try:
        return yaml.safe_load((directory / CONFIG_FILE).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
