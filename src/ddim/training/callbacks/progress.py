"""A line or a bar that says how far training is."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.progress import Progress

from ddim.display.progress import Pace, duration, error_console, is_live, progress_bar


class TrainingProgress(ProgressBar):
    """One bar over all optimizer steps with the loss, images/s and the time left.

    Lightning's bars start anew with every epoch; diffusion training is counted in steps, and an epoch of a small data
    set is a fraction of a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.console = error_console()
        self.bar: Progress | None = None
        self.task: Any = None
        self.first_step = self.last_step = 0
        self.pace = Pace()

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.pace = Pace()
        self.first_step = self.last_step = trainer.global_step
        if self.enabled and is_live(self.console):
            self.bar = progress_bar(self.console)
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self.task = self.bar.add_task("training", total=total, completed=trainer.global_step, note="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.enabled:
            return
        step = trainer.global_step
        if self.bar is not None:
            self.bar.update(self.task, completed=step)
            if step % 10 == 0:
                # Reading the loss waits for the device; every step would serialise host and device.
                self.bar.update(self.task, note=f"{self._count(trainer, step)}: {self._note(trainer)}")
        elif self.pace.is_due() or (step == trainer.max_steps and step > self.last_step):
            self.console.print(self._line(trainer, step), markup=False, highlight=False, soft_wrap=True)
        self.last_step = step

    def _note(self, trainer: pl.Trainer) -> str:
        metrics = trainer.callback_metrics
        parts = [f"loss {metrics['train/loss']:.4f}"] if "train/loss" in metrics else []
        if "val/loss" in metrics:
            parts.append(f"val {metrics['val/loss']:.4f}")
        if "train/images_per_second" in metrics:
            parts.append(f"{metrics['train/images_per_second']:.0f} images/s")
        return ", ".join(parts)

    @staticmethod
    def _count(trainer: pl.Trainer, step: int) -> str:
        return f"step {step}/{trainer.max_steps}" if trainer.max_steps > 0 else f"step {step}"

    def _line(self, trainer: pl.Trainer, step: int) -> str:
        line = f"{self._count(trainer, step)}: {self._note(trainer)}"
        if trainer.max_steps > 0 and step > self.first_step:
            left = (time.perf_counter() - self.pace.began) / (step - self.first_step) * (trainer.max_steps - step)
            line += f", {duration(left)} left"
        return line

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
