"""Pictures, tables and summary numbers to whichever loggers a run has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger


def show_image(trainer: pl.Trainer, key: str, picture: Image.Image, caption: str = "") -> None:
    """One picture under `key`: W&B and TensorBoard keep it with its step; CSV has no place for it."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], caption=[caption])
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


def show_summary(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Single numbers of the whole run, for comparing runs in W&B's own table."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(dict(values))
        else:
            logger.log_metrics(dict(values), step=trainer.global_step)
