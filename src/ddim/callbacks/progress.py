"""Progress on the terminal: a live bar where there is one, a line now and then where there is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

SECONDS_BETWEEN_LINES = 10.0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )


class TrainingProgress(ProgressBar):
    """One bar over all optimizer steps with the loss, images/s and the time left.

    Lightning's bars start anew with every epoch; diffusion training is counted in steps, and an epoch of a small data
    set is a fraction of a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.task: Any = None
        self.first_step = 0
        self.began = self.last_line = 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.began = self.last_line = time.perf_counter()
        self.first_step = trainer.global_step
        if self.enabled and self.console.is_terminal:
            self.bar = _progress(self.console)
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self.task = self.bar.add_task("training", total=total, completed=trainer.global_step, note="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.enabled:
            return
        now, step = time.perf_counter(), trainer.global_step
        if self.bar is not None:
            self.bar.update(self.task, completed=step)
            if step % 10 == 0:
                # Reading the loss waits for the device; every step would serialise host and device.
                self.bar.update(self.task, note=self._note(trainer))
        elif now - self.last_line >= SECONDS_BETWEEN_LINES or step == trainer.max_steps:
            self.last_line = now
            self.console.print(self._line(trainer, step, now), highlight=False, soft_wrap=True)

    def _note(self, trainer: pl.Trainer) -> str:
        metrics = trainer.callback_metrics
        parts = [f"loss {metrics['train/loss']:.4f}"] if "train/loss" in metrics else []
        if "val/loss" in metrics:
            parts.append(f"val {metrics['val/loss']:.4f}")
        if "train/images_per_second" in metrics:
            parts.append(f"{metrics['train/images_per_second']:.0f} images/s")
        return ", ".join(parts)

    def _line(self, trainer: pl.Trainer, step: int, now: float) -> str:
        total = f"/{trainer.max_steps}" if trainer.max_steps > 0 else ""
        line = f"step {step}{total}: {self._note(trainer)}"
        if trainer.max_steps > 0 and step > self.first_step:
            left = (now - self.began) / (step - self.first_step) * (trainer.max_steps - step)
            line += f", {_duration(left)} left"
        return line

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


class GridProgress:
    """Two bars, the grid and the point being sampled; without a terminal, a line per finished point."""

    def __init__(self, num_points: int, enabled: bool = True) -> None:
        self.num_points = num_points
        self.enabled = enabled
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.grid: Any = None
        self.point: Any = None
        self.done = 0

    def __enter__(self) -> GridProgress:
        if self.enabled and self.console.is_terminal:
            self.bar = _progress(self.console)
            self.grid = self.bar.add_task("grid points", total=self.num_points, note="")
            self.point = self.bar.add_task("images", total=None, note="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start_point(self, name: str, num_samples: int) -> None:
        if self.bar is not None:
            self.bar.reset(self.point, total=num_samples, note=name)

    def advance(self, images: int) -> None:
        if self.bar is not None:
            self.bar.advance(self.point, images)

    def finish_point(self, line: str) -> None:
        self.done += 1
        if self.bar is not None:
            self.bar.update(self.grid, completed=self.done)
        elif self.enabled:
            self.console.print(f"[{self.done}/{self.num_points}] {line}", markup=False, highlight=False, soft_wrap=True)


def track(batches: Iterable[Tensor], description: str, total: int) -> Iterator[Tensor]:
    """Pass image batches through and show how many of `total` images are done."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        console.print(f"{description} ...", markup=False, highlight=False, soft_wrap=True)
        yield from batches
        return
    with _progress(console) as bar:
        task = bar.add_task(description, total=total, note="")
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
