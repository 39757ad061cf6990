"""Lightning's Trainer with a user's arguments, and what works beside it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import AdvancedProfiler, SimpleProfiler
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from ddim.errors import UserError
from ddim.runs.processes import place
from ddim.training.checkpoint_io import AtomicCheckpointIO

# What Lightning refuses on a machine that lacks it.
DEVICE_ARGUMENTS = ("accelerator", "devices", "strategy", "precision", "num_nodes")
# Processes on the CPU are for trying things out; two of them may share a core.
FEWEST_CPU_PROCESSES = 2
# By name they would say their tables to a log that is kept quiet.
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}


def build_trainer(
    arguments: Mapping[str, Any], directory: Path, *, typed: Collection[str] = (), sweep: bool = False
) -> pl.Trainer:
    """Lightning's Trainer with the user's arguments; `attach` gives it callbacks and loggers.

    It is built before any work is done, so that what this machine cannot do is refused first.

    Args:
        typed: the keys on the command line.
        sweep: whether this is one job of several.

    Raises:
        UserError: naming what cannot be used here.
    """
    arguments = _for_processes(arguments, typed)
    profiler = PROFILERS.get(str(arguments.get("profiler")))
    if profiler is not None:
        arguments = {**arguments, "profiler": profiler(dirpath=directory, filename="profile")}
    try:
        trainer = pl.Trainer(
            **{"enable_model_summary": False, **arguments, "enable_progress_bar": False},
            logger=False,
            enable_checkpointing=False,
            default_root_dir=directory,
            plugins=[AtomicCheckpointIO()],
            # The data room splits by index; Lightning's own sampler repeats images to fill the ranks.
            use_distributed_sampler=False,
        )
    except (
        ValueError,
        TypeError,
        RuntimeError,
        OverflowError,
        pl.utilities.exceptions.MisconfigurationException,
    ) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        named = [key for key in arguments if re.search(rf"\b{key}\b", reason) and key not in DEVICE_ARGUMENTS]
        if named:
            raise UserError(f"trainer.{named[0]}={arguments[named[0]]} cannot be used: {reason}.") from error
        given = ", ".join(f"trainer.{key}={value}" for key, value in arguments.items() if key in DEVICE_ARGUMENTS)
        raise UserError(f"{given} cannot be used here: {reason}; trainer.accelerator=cpu works anywhere.") from error
    most = max(os.cpu_count() or 1, FEWEST_CPU_PROCESSES)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise UserError(
            f"trainer.devices={arguments.get('devices')} would start {trainer.num_devices} processes on a CPU with "
            f"{os.cpu_count()} cores; take at most trainer.devices={most}."
        )
    local_processes = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
    if local_processes and sweep:
        raise UserError(
            f"trainer.devices={arguments.get('devices')} with -m: every process would run the whole sweep; "
            "take one device per job, or leave -m out (lists are then one grid)."
        )
    return trainer


def attach(trainer: pl.Trainer, callbacks: Sequence[Callback], loggers: Sequence[Logger]) -> None:
    """Give the Trainer callbacks, in this order but for those that save checkpoints, which Lightning has last.

    A trial run (`trainer.fast_dev_run`) keeps its own logger, which logs nothing.
    """
    saving = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    others = [callback for callback in callbacks if callback not in saving]
    trainer.callbacks = [*others, *trainer.callbacks, *saving]  # type: ignore[attr-defined]
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.loggers = list(loggers)


def _for_processes(arguments: Mapping[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The Trainer's arguments with as many devices as torchrun or srun started processes.

    Without them each process would do all the work, as if it were alone.
    """
    here = place()
    if not here.started_alike:
        return dict(arguments)
    counts = {"devices": here.world_size // here.num_nodes, "num_nodes": here.num_nodes}
    for key, count in counts.items():
        if f"trainer.{key}" in typed and arguments[key] not in (count, "auto"):
            raise UserError(
                f"trainer.{key}={arguments[key]} does not fit the {here.world_size} processes on {here.num_nodes} "
                f"machines that {here.started_by} started; leave it out or take trainer.{key}={count}."
            )
    return {**arguments, **counts}
