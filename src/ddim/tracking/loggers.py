"""The loggers a run writes to: W&B (offline by itself when nobody is logged in), CSV, TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ddim.errors import UserError, one_of
from ddim.runs.files import write_atomically
from ddim.runs.processes import place
from ddim.tracking.offline_runs import next_history_step
from ddim.tracking.wandb_run import DashboardLogger

LOGGERS = ("wandb", "csv", "tensorboard", "none")
WANDB_MODES = ("auto", "online", "offline")
# W&B refuses anything else, but only after the data are loaded.
WANDB_NAME = re.compile(r"[^/\\#?%:\n\r]+")


log = logging.getLogger(__name__)


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, whose file keeps what it had when the disk is full or the process is killed.

    Lightning rewrites the file in place whenever a metric appears for the first time.
    """

    @rank_zero_only
    def save(self) -> None:
        """Raises OSError naming the file."""
        writer = self.experiment
        if not writer.metrics:
            return
        path = Path(writer.metrics_file_path)
        if writer._record_new_keys() or not path.exists():
            earlier = list(csv.DictReader(io.StringIO(path.read_text()))) if path.exists() else []
            write_atomically((path, _csv(writer.metrics_keys, [*earlier, *writer.metrics], header=True)))
        else:
            _append(path, _csv(writer.metrics_keys, writer.metrics, header=False))
        writer.metrics = []


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _append(path: Path, content: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            # A disk that takes a part says at the rest why it takes no more.
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from error


RUN_ID_FILE = "wandb_run_id"
RUN_ID = re.compile(r"[\w-]{1,128}", re.ASCII)
# W&B refuses these in the names of groups.
NOT_IN_NAMES = re.compile(r"[/\\#?%:\n\r]+")


def build_loggers(
    config: LoggerConfig,
    directory: Path,
    *,
    job_type: str,
    hyperparameters: Mapping[str, Any],
    group: str | None = None,
) -> list[Logger]:
    """Loggers that write under `directory`. A directory that already has a W&B run goes on in that run.

    Of several processes only the first one has any. group: that of the W&B run where `logger.group` gives none; a
    training run and what evaluates it share one.

    Raises:
        UserError: `logger=tensorboard` without tensorboard, or `logger.mode=online` without credentials.
    """
    if config.name == "none" or not place().first:
        return []
    # A resumed run gets a new version_N folder: CSVLogger deletes the metrics of a folder it finds.
    loggers: list[Logger] = [MetricsFile(directory, name="csv")]
    if config.name == "tensorboard":
        try:
            loggers.append(TensorBoardLogger(directory, name="tensorboard", version=""))
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error
    if config.name == "wandb" and os.environ.get("WANDB_MODE") != "disabled":
        loggers.append(_wandb(config, directory, job_type, hyperparameters, group))
    return loggers


def _wandb(
    config: LoggerConfig, directory: Path, job_type: str, hyperparameters: Mapping[str, Any], group: str | None
) -> DashboardLogger:
    import wandb

    # Before anything else: W&B prints a page at the end of each run.
    wandb.setup(wandb.Settings(silent=True))
    id_file = directory / RUN_ID_FILE
    # The file of a process that was killed may be empty.
    stored = id_file.read_text(errors="replace").strip() if id_file.is_file() else ""
    # An agent of a W&B sweep has chosen one.
    chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    run_id = stored or chosen or secrets.token_hex(4)
    # It becomes part of a folder's name.
    if not RUN_ID.fullmatch(run_id):
        raise UserError(f"{id_file} holds no id of a W&B run; remove it, and a new run is begun.")
    if config.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError(
            "logger.mode=online: nobody is logged in to W&B; run `wandb login`, or take logger.mode=offline."
        )
    offline = config.mode == "offline" or (config.mode == "auto" and not logged_in())
    if offline:
        log.info("W&B: offline; `wandb sync %s/wandb/offline-run-*` uploads this run.", directory)
    logger = DashboardLogger(
        job=job_type,
        # W&B numbers the rows of an offline run from 0 in every attempt; rows of one run must not share numbers.
        first_row=next_history_step(directory, run_id) if offline else 0,
        name=_name(directory),
        dir=directory,
        project=config.project,
        entity=config.entity,
        group=config.group or group_name(group or directory.name),
        tags=config.tags,
        notes=config.notes,
        id=run_id,
        # Offline as well: `wandb sync` then adds later attempts to the run instead of replacing it.
        resume="allow",
        config=dict(hyperparameters),
        # Settings win over WANDB_MODE, which W&B read before anybody asked for offline.
        settings=wandb.Settings(mode="offline" if offline else "online"),
    )
    if not offline:
        log.info("W&B: %s", logger.experiment.url)
    write_atomically((id_file, f"{run_id}\n".encode()))
    return logger


def group_name(text: str) -> str:
    """The text as the name of a W&B group: 1 to 128 characters, without those that W&B refuses."""
    return NOT_IN_NAMES.sub("-", text).strip("-")[-128:] or "ddim"


def _name(directory: Path) -> str:
    """The directory's; a job of a sweep has only a number, so the sweep's goes before it."""
    return f"{directory.parent.name}-{directory.name}" if directory.name.isdigit() else directory.name


def logged_in() -> bool:
    """Whether W&B has credentials, or was told by WANDB_MODE what to do. Asks nobody and sends nothing."""
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        return mode in ("online", "shared")
    return wandb.login(prompt=False, verify=False)


def finish(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        logger.finalize("success")
        if isinstance(logger, pl.loggers.WandbLogger):
            logger.experiment.finish()


def finish_wandb(status: Any) -> None:
    wandb = sys.modules.get("wandb")  # importing it takes a second, and where nobody has there is no run
    if wandb is None or wandb.run is None:
        return
    try:
        wandb.run.finish(exit_code=status)
    except Exception as error:  # with a full disk there is none it could not raise, and another one is on its way
        log.warning("W&B could not close its run (%s); it keeps what it had written.", error)
        wandb.teardown(exit_code=status)


@dataclass
class LoggerConfig:
    """Where numbers and pictures go, besides the files of the run.

    Attributes:
        name: one of LOGGERS.
        project: of W&B.
        entity: the W&B team or user; null is your default.
        group: W&B runs to show together; null is the training run's name, for it and all that evaluates it.
        tags: of the W&B run; those of the run where none are given.
        notes: of the W&B run.
        mode (online, offline, auto): auto is offline where nobody is logged in.
        log_model: whether the checkpoints of a finished training become a W&B artifact.
    """

    name: str = "wandb"
    project: str = "ddim"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    mode: str = "auto"
    log_model: bool = False

    def check(self) -> None:
        one_of("logger.name", self.name, LOGGERS)
        one_of("logger.mode", self.mode, WANDB_MODES)
        for key in ("project", "entity", "group"):
            value = getattr(self, key)
            if value is not None and not (0 < len(value) <= 128 and WANDB_NAME.fullmatch(value)):
                raise UserError(rf"logger.{key}={value!r} must be 1 to 128 characters, none of them / \ # ? % or :.")
        check_tags("logger.tags", self.tags)


def check_tags(key: str, tags: Sequence[str]) -> None:
    """Refuse what W&B refuses only after the data are loaded."""
    if not all(0 < len(tag) <= 64 for tag in tags):
        raise UserError(f"{key}={list(tags)} must be texts of 1 to 64 characters.")
