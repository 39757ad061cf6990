"""Whether a training run goes on from what its directory holds, and whether it may."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning_fabric.plugins.environments import SLURMEnvironment

from ddim.checkpoint import LAST, OVERRIDES_FILE, check_resumable, raw_overrides, read_config
from ddim.denoisers.pretrained import read_checkpoint
from ddim.errors import UserError
from ddim.signals import resume_command

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


def check_same_network(checkpoint: Path, description: Mapping[str, Any]) -> None:
    contents = read_checkpoint(checkpoint)
    check_resumable(contents, checkpoint)
    stored = read_config(contents, checkpoint)
    for group in ("denoiser", "schedule"):
        for key in sorted({*stored[group], *description[group]}, key=lambda key: (key != "name", key)):
            then, now = stored[group].get(key), description[group].get(key)
            if then != now:
                raise UserError(
                    f"{group}.{key}={now} differs from {then} in {checkpoint}; a resumed run keeps its {group}."
                )
