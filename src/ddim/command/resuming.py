"""Whether a training run goes on from what its directory holds, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning_fabric.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf

from ddim.command.config import PRECISIONS
from ddim.denoisers.build import VOCABULARY, with_defaults
from ddim.denoisers.formats.own import HEADER, OBJECTIVE, SPACE, check_resumable, read_checkpoint, read_config
from ddim.errors import UserError
from ddim.runs.layout import LAST, OVERRIDES_FILE
from ddim.runs.locate import kept_config
from ddim.runs.overrides import raw_overrides
from ddim.runs.signals import resume_command
from ddim.training.precision import AUTO

log = logging.getLogger(__name__)


def _overrides() -> list[str]:
    return [text for text in HydraConfig.get().overrides.task if not text.startswith("resume=")]


def started_before(directory: Path) -> str | None:
    """The checkpoint of a run that a cluster starts again: the same command line in the same directory.

    None for a new run, and where Lightning's requeueing under SLURM has a newer checkpoint, which it takes by itself.

    Raises:
        UserError: the directory holds a run of another command line.
    """
    last = directory / "checkpoints" / LAST
    if not last.is_file() or not (directory / OVERRIDES_FILE).is_file():
        return None
    if raw_overrides(directory) != _overrides():
        raise UserError(
            f"hydra.run.dir={directory} holds a run of another command line; "
            f"{resume_command('train.py', directory)} goes on with it, and a new run needs a directory of its own."
        )
    requeued = [path.stat().st_mtime for path in directory.glob("hpc_ckpt_*.ckpt")]
    if SLURMEnvironment.detect() and requeued and max(requeued) > last.stat().st_mtime:
        return None
    log.info("%s was started before: this goes on from %s.", directory, last)
    return str(last)


def check_same_network(checkpoint: Path, description: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the checkpoint's data were standardised, where they are no images.

    Raises:
        UserError: training cannot go on from it, or its denoiser or schedule is another one than described.
    """
    contents = read_checkpoint(checkpoint)
    check_resumable(contents, checkpoint)
    stored = read_config(contents, checkpoint)
    stored["denoiser"] = with_defaults(stored["denoiser"])
    now_described = with_defaults(description["denoiser"])
    description = {OBJECTIVE: {"predicts": "eps"}, **description, "denoiser": now_described}
    for group in ("denoiser", "schedule", OBJECTIVE):
        for key in sorted({*stored[group], *description[group]}, key=lambda key: (key != "name", key)):
            then, now = stored[group].get(key), description[group].get(key)
            of_the_data = key in ("shape", *VOCABULARY) and now is None
            if then != now and not of_the_data:
                raise UserError(
                    f"{group}.{key}={now} differs from {then} in {checkpoint}; a resumed run keeps its {group}."
                )
    stated = contents[HEADER]["config"].get(SPACE)
    return stated if isinstance(stated, Mapping) else None


def begun_with(directory: Path, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer in which `precision: auto` is what it was when the run in `directory` began."""
    config = kept_config(directory)
    stated = config.get("trainer") if isinstance(config, dict) else None
    precision = stated.get("precision") if isinstance(stated, dict) else None
    if trainer.get("precision", AUTO) != AUTO or precision not in PRECISIONS:
        return dict(trainer)
    return {**trainer, "precision": precision}


def as_run(cfg: DictConfig, trainer: Mapping[str, Any]) -> DictConfig:
    """The configuration with what `auto` was: a run that goes on elsewhere keeps the arithmetic it began with."""
    stated = cfg.copy()
    OmegaConf.update(stated, "trainer.precision", trainer["precision"], force_add=True)
    return stated
