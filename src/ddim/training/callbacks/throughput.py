"""Images per second and the learning rate, logged with the other training metrics."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl


class Throughput(pl.Callback):
    """Logs `train/images_per_second` over the last n steps, all devices together, and `train/lr`.

    Validation does not count: the clock starts anew after it.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.images = 0
        self.started: float | None = None
        self.images_per_second: float | None = None
        self.lr = 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # After the step the scheduler has already set the next step's rate.
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.started is None:
            self.started, self.images = time.perf_counter(), 0
            return
        self.images += len(batch["image"]) * trainer.world_size
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            now = time.perf_counter()
            self.images_per_second = self.images / (now - self.started)
            self.started, self.images = now, 0
            pl_module.log("train/images_per_second", self.images_per_second)
            pl_module.log("train/lr", self.lr)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = None
