"""Pictures, tables, charts and summary numbers to whichever loggers a run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from ddim.findings.paper import PaperTable
from ddim.tracking.keys import wandb_key
from ddim.tracking.wandb_run import DashboardLogger


def show_image(trainer: pl.Trainer, key: str, picture: Image.Image, caption: str = "") -> None:
    """One picture under `key`: W&B and TensorBoard keep it with its step; CSV has no place for it."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # Outside training there are no steps that a slider could have.
            step = trainer.global_step if trainer.training or trainer.validating else None
            logger.log_image(key, [picture], step=step, caption=[caption])
        elif isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(key, pixels, trainer.global_step, dataformats="HWC")


def show_animation(trainer: pl.Trainer, key: str, path: Path, caption: str = "") -> None:
    """A GIF file under `key` in W&B. TensorBoard would need a video encoder, and CSV has no place for it."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_video(key, [str(path)], caption=[caption])


def show_table(trainer: pl.Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(key, columns=list(columns), data=[list(row) for row in rows])


def show_point(trainer: pl.Trainer, steps: int, nfe: int, values: Mapping[str, Any], caption: str = "") -> None:
    """One point of W&B's curves against S; pictures (PIL) make a slider over S. None is left out.

    TensorBoard gets the pictures, each under a key of its own.
    """
    row = {key: value for key, value in values.items() if value is not None}
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger):
            logger.log_point(steps, nfe, row, caption)
        elif isinstance(logger, TensorBoardLogger):
            for key, value in row.items():
                if isinstance(value, Image.Image):
                    name = f"{key}/steps{steps:04d}"
                    pixels = np.asarray(value.convert("RGB"))
                    logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")


def show_line_chart(
    trainer: pl.Trainer, key: str, title: str, columns: tuple[str, str, str], rows: Sequence[Sequence[Any]]
) -> None:
    """W&B's own chart of rows (x, y, name of the line), below the names of these columns."""
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger):
            logger.log_line_chart(key, title, columns, [list(row) for row in rows])


def show_pictures(trainer: pl.Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table of W&B whose last column are pictures."""
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger):
            logger.log_pictures(key, list(columns), [list(row) for row in rows])


def show_summary(trainer: pl.Trainer, values: Mapping[str, Any]) -> None:
    """Single numbers of the whole run, for comparing runs in W&B's own table."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update({wandb_key(key): value for key, value in values.items()})
        else:
            numbers = {key: value for key, value in values.items() if not isinstance(value, str)}
            logger.log_metrics(numbers, step=trainer.global_step)


def show_comparison(trainer: pl.Trainer, table: PaperTable, records: Sequence[Mapping[str, Any]]) -> None:
    """The same as a table in the loggers."""
    columns = [key for key in dict.fromkeys(key for record in records for key in record) if key != "timesteps"]
    show_table(trainer, f"table/{table.name}", columns, [[record[key] for key in columns] for record in records])
