"""Progress on the terminal: a live bar where there is one, a line now and then where there is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor

SECONDS_BETWEEN_LINES = 10.0
# Of the time so far: the lines of a long run are further apart.
SHARE_BETWEEN_LINES = 0.05
# Characters: what a bar has at least, and what the texts on both sides of it take.
SHORTEST_BAR = 8
BESIDE_THE_BAR = 90


class Pace:
    """When the next line is due where there is no bar: after ten seconds, later after a share of the time so far."""

    def __init__(self) -> None:
        self.began = self.last = time.perf_counter()

    def is_due(self) -> bool:
        """Whether a line is due; if so, it counts as printed."""
        now = time.perf_counter()
        if now - self.last < max(SECONDS_BETWEEN_LINES, SHARE_BETWEEN_LINES * (now - self.began)):
            return False
        self.last = now
        return True

    def note(self) -> None:
        """A line was printed for another reason."""
        self.last = time.perf_counter()


def _console() -> Console:
    """Standard error; escape codes only where it is a terminal, whatever the environment says of colours."""
    return Console(file=sys.stderr, force_terminal=sys.stderr.isatty(), force_jupyter=False)


def _is_live(console: Console) -> bool:
    """Whether bars may be drawn: `| tee log` would mix them with what it prints."""
    return console.is_terminal and not console.is_dumb_terminal and sys.stdout.isatty()


class _Note(TextColumn):
    """What is cut where a terminal is narrow; of columns that may not wrap rich takes from all alike."""

    def __init__(self) -> None:
        super().__init__("{task.fields[note]}", markup=False, table_column=Column(no_wrap=False))

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=max(SHORTEST_BAR, console.width - BESIDE_THE_BAR)),
        TaskProgressColumn(),
        _Note(),
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
        self.console = _console()
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
        if self.enabled and _is_live(self.console):
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
    """Two bars, the point being sampled and the grid, each with its time left.

    Without a terminal: a line per finished point, and lines now and then while a long one is sampled.

    Args:
        costs: of the points in their order, in any unit of time: how often each runs the network for an image.
        enabled: false says nothing.
    """

    def __init__(self, costs: Sequence[int], enabled: bool = True) -> None:
        self.costs = costs
        self.enabled = enabled
        self.console = _console()
        self.bar: Progress | None = None
        self.grid: Any = None
        self.point: Any = None
        self.done = self.images = self.num_samples = 0
        self.name = ""
        self.sampled, self.total = 0.0, float(sum(costs))
        self.pace = Pace()
        self.point_began = 0.0

    def __enter__(self) -> GridProgress:
        if self.enabled and _is_live(self.console):
            self.bar = _progress(self.console)
            self.point = self.bar.add_task("images", total=None, note="")
            self.grid = self.bar.add_task("grid", total=self.total, note=self._count())
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start_point(self, name: str, num_samples: int) -> None:
        self.name, self.num_samples, self.images = name, num_samples, 0
        self.point_began = time.perf_counter()
        if self.bar is not None:
            self.bar.reset(self.point, total=num_samples, note=self._of_samples())

    def advance(self, images: int) -> None:
        self.images += images
        part = self.costs[self.done] * images / max(1, self.num_samples)
        self.sampled += part
        if self.bar is not None:
            self.bar.update(self.point, advance=images, note=self._of_samples())
            self.bar.advance(self.grid, part)
        elif self.enabled and self.images < self.num_samples and self.pace.is_due():
            now = time.perf_counter()
            point = (now - self.point_began) * (self.num_samples / max(1, self.images) - 1)
            # The rate of this attempt: what an earlier one has finished took no time now.
            grid = (now - self.pace.began) / max(self.sampled, 1e-9) * self._ahead()
            self._say(f"{self.name}, {self._of_samples()}, {_duration(point)} left, grid {_duration(grid)}")

    def finish_point(self, line: str) -> None:
        if self.bar is not None and self.num_samples == 0:
            # Finished by an earlier attempt: nothing that says how long the others take.
            self.total -= self.costs[self.done]
            self.bar.update(self.grid, total=self.total)
        self.done += 1
        self.num_samples = 0
        if self.bar is not None:
            self.bar.update(self.grid, note=self._count())
        elif self.enabled:
            self.pace.note()
            self._say(line)

    def _ahead(self) -> float:
        here = self.costs[self.done] * (1 - self.images / max(1, self.num_samples))
        return here + sum(self.costs[self.done + 1 :])

    def _count(self) -> str:
        return f"{self.done}/{len(self.costs)} points"

    def _of_samples(self) -> str:
        return (
            f"{self.name}: {self.images:,}/{self.num_samples:,}"
            if self.bar
            else f"{self.images:,}/{self.num_samples:,}"
        )

    def _say(self, line: str) -> None:
        self.console.print(
            f"[{min(self.done + (self.num_samples > 0), len(self.costs))}/{len(self.costs)}] {line}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def track(batches: Iterable[Tensor], description: str, total: int) -> Iterator[Tensor]:
    """Pass image batches through and show how many of `total` images are done."""
    console = _console()
    if not _is_live(console):
        console.print(f"{description} ...", markup=False, highlight=False, soft_wrap=True)
        yield from batches
        return
    with _progress(console) as bar:
        task = bar.add_task("images", total=total, note=description)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
