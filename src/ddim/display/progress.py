"""Progress on the terminal: a live bar where there is one, a line now and then where there is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

T = TypeVar("T", bound=Sized)
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


def error_console() -> Console:
    """Standard error; escape codes only where it is a terminal, whatever the environment says of colours."""
    return Console(file=sys.stderr, force_terminal=sys.stderr.isatty(), force_jupyter=False)


def is_live(console: Console) -> bool:
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


def progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=max(SHORTEST_BAR, console.width - BESIDE_THE_BAR)),
        TaskProgressColumn(),
        _Note(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
    )


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
        self.console = error_console()
        self.bar: Progress | None = None
        self.grid: Any = None
        self.point: Any = None
        self.done = self.images = self.num_samples = 0
        self.name = ""
        self.sampled, self.total = 0.0, float(sum(costs))
        self.pace = Pace()
        self.point_began = 0.0

    def __enter__(self) -> GridProgress:
        if self.enabled and is_live(self.console):
            self.bar = progress_bar(self.console)
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
            self._say(f"{self.name}, {self._of_samples()}, {duration(point)} left, grid {duration(grid)}")

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


def track(batches: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Pass image batches through and show how many of `total` images are done."""
    console = error_console()
    if not is_live(console):
        console.print(f"{description} ...", markup=False, highlight=False, soft_wrap=True)
        yield from batches
        return
    with progress_bar(console) as bar:
        task = bar.add_task("images", total=total, note=description)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
