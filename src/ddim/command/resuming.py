"""Whether a training run goes on from what its directory holds, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


class Begun(NamedTuple):
    """What a run began with, and keeps: how its data were standardised where they are no images, and its prediction."""

    space: Mapping[str, Any] | None
    predicts: str


def check_same_network(checkpoint: Path, description: Mapping[str, Any], typed: Collection[str] = ()) -> Begun:
    """What the run of a checkpoint began with.

    Args:
        checkpoint: to go on from.
        description: of the network that the configuration asks for (`stored_description`).
        typed: the keys on the command line. What a data set's networks predict may have changed since the run began,
            and counts only where somebody has typed it.

    Raises:
        UserError: training cannot go on from it, or its denoiser or schedule is another one than described.
    """
    contents = read_checkpoint(checkpoint)
    check_resumable(contents, checkpoint)
    stored = read_config(contents, checkpoint)
    stored["denoiser"] = with_defaults(stored["denoiser"])
    now_described = with_defaults(description["denoiser"])
    description = {OBJECTIVE: {"predicts": "eps"}, **description, "denoiser": now_described}
    if not {"objective", "objective.predicts", "recipe"} & set(typed):
        description[OBJECTIVE] = stored[OBJECTIVE]
    for group in ("denoiser", "schedule", OBJECTIVE):
        for key in sorted({*stored[group], *description[group]}, key=lambda key: (key != "name", key)):
            then, now = stored[group].get(key), description[group].get(key)
            of_the_data = key in ("shape", *VOCABULARY) and now is None
            if then != now and not of_the_data:
                raise UserError(
                    f"{group}.{key}={now} differs from {then} in {checkpoint}; a resumed run keeps its {group}."
                )
    stated = contents[HEADER]["config"].get(SPACE)
    return Begun(stated if isinstance(stated, Mapping) else None, str(stored[OBJECTIVE]["predicts"]))


def begun_with(directory: Path, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the Trainer in which `precision: auto` is what it was when the run in `directory` began."""
    config = kept_config(directory)
    stated = config.get("trainer") if isinstance(config, dict) else None
    precision = stated.get("precision") if isinstance(stated, dict) else None
    if trainer.get("precision", AUTO) != AUTO or precision not in PRECISIONS:
        return dict(trainer)
    return {**trainer, "precision": precision}


def as_run(cfg: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """The configuration with what the given keys were in this run.

    They say `auto` or `latest`, or refer to others, and mean something else on another machine or another day.
    """
    stated = cfg.copy()
    for key, value in values.items():
        OmegaConf.update(stated, key, value, force_add=True)
    return stated


def begun_from(directory: Path) -> str | None:
    """The weights that a run which is resumed began from, as its configuration has them."""
    config = kept_config(directory)
    origin = config.get("checkpoint") if isinstance(config, dict) else None
    return origin if isinstance(origin, str) else None
