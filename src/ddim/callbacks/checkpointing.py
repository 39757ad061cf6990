"""`last.ckpt`: where a killed run goes on, and what `evaluate.py` takes by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` every n optimizer steps, after a validation, and at the last step, whatever made it the last.

    `ModelCheckpoint` skips a last step that is no multiple of n, and saving after `fit` is too late: by then the
    averaged weights have replaced the raw ones. A checkpoint from before a validation would forget the best score so
    far and how often was sampled, so the file is written again after it. Lightning runs checkpoint callbacks after
    all others: the average is up to date, and this one belongs behind `ModelCheckpoint`.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # With gradient accumulation several batches share a step; the first of them must not save in its middle.
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self.saved_step and (step % self.every_n_steps == 0 or step == trainer.max_steps):
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if (trainer.should_stop or last_epoch) and self.saved_step != trainer.global_step:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        self.saved_step = trainer.global_step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path)
