"""The loggers a run writes to: W&B (offline by itself when nobody is logged in), CSV, TensorBoard."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from ddim.errors import UserError
from ddim.processes import place

if TYPE_CHECKING:
    from ddim.config import LoggerConfig

log = logging.getLogger(__name__)
RUN_ID_FILE = "wandb_run_id"


def build_loggers(
    config: LoggerConfig, directory: Path, *, job_type: str, hyperparameters: Mapping[str, Any]
) -> list[Logger]:
    """Loggers that write under `directory`. A directory that already has a W&B run goes on in that run.

    Of several processes only the first one has any.

    Raises:
        UserError: `logger=tensorboard` without tensorboard.
    """
    if config.name == "none" or not place().first:
        return []
    # A resumed run gets a new version_N folder: CSVLogger deletes the metrics of a folder it finds.
    loggers: list[Logger] = [CSVLogger(directory, name="csv")]
    if config.name == "tensorboard":
        try:
            loggers.append(TensorBoardLogger(directory, name="tensorboard", version=""))
        except ModuleNotFoundError as error:
            raise UserError("logger=tensorboard needs the package tensorboard: pip install tensorboard") from error
    if config.name == "wandb" and os.environ.get("WANDB_MODE") != "disabled":
        loggers.append(_wandb(config, directory, job_type, hyperparameters))
    return loggers


def _wandb(config: LoggerConfig, directory: Path, job_type: str, hyperparameters: Mapping[str, Any]) -> WandbLogger:
    import wandb

    # Before anything else: Lightning passes arguments that W&B comments on.
    wandb.setup(wandb.Settings(silent=True))
    id_file = directory / RUN_ID_FILE
    run_id = id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(4)
    offline = config.offline if isinstance(config.offline, bool) else not logged_in()
    if offline:
        log.info("W&B: offline; `wandb sync %s/wandb/offline-run-*` uploads this run.", directory)
    logger = WandbLogger(
        name=directory.name,
        save_dir=directory,
        project=config.project,
        entity=config.entity,
        group=config.group,
        job_type=job_type,
        tags=config.tags,
        notes=config.notes,
        offline=offline,
        # Lightning cannot upload artifacts of offline runs; asking for it there is an error, not a wish.
        log_model=config.log_model and not offline,
        id=run_id,
        resume="allow" if not offline else None,
        config=dict(hyperparameters),
        # Settings win over WANDB_MODE, which W&B read before anybody asked for offline.
        settings=wandb.Settings(mode="offline" if offline else "online"),
    )
    if not offline:
        log.info("W&B: %s", logger.experiment.url)
    directory.mkdir(parents=True, exist_ok=True)
    id_file.write_text(run_id + "\n")
    return logger


def logged_in() -> bool:
    """Whether W&B has credentials, or was told by WANDB_MODE what to do. Asks nobody and sends nothing."""
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        return mode in ("online", "shared")
    return wandb.login(prompt=False, verify=False)
