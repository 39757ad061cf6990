"""`last.ckpt`: where a killed run goes on, and what `evaluate.py` takes by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` every n optimizer steps and at the last one, whatever made it the last.

    `ModelCheckpoint` skips the last step when it is no multiple of n, and saving after `fit` is too late: by then the
    averaged weights have replaced the raw ones. Lightning runs checkpoint callbacks after all others, so the average
    is already up to date.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.saved_step = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        if due and step != self.saved_step:
            self.saved_step = step
            trainer.save_checkpoint(self.path)
