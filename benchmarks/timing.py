"""Two or more programs timed in one process, by turns, so that a busy moment of the machine meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Summary:
    """Minimum, median and maximum of some figures."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        return cls(min(values), statistics.median(values), max(values))


@dataclass
class Blocks:
    """Seconds of each side's blocks, in the order they were run: block i of all sides is one round.

    Attributes:
        device: whose queued work belongs to the block that queued it.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, side: str, block: Callable[[], object]) -> float:
        """Run a block and note its wall time."""
        began = self.now()
        block()
        return self.add(side, self.now() - began)

    def add(self, side: str, seconds: float) -> float:
        self.seconds.setdefault(side, []).append(seconds)
        return seconds

    def now(self) -> float:
        """Seconds on the wall, with all work of the device done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def rates(self, side: str, units: float) -> Summary:
        """Units per second, where a block is `units` of something."""
        return Summary.of([units / seconds for seconds in self.seconds[side]])

    def speedup(self, side: str, over: str) -> Summary:
        """How many times as fast as `over` this side was, round by round; blocks of both are the same work."""
        pairs = zip(self.seconds[side], self.seconds[over], strict=True)
        return Summary.of([theirs / ours for ours, theirs in pairs])


# Seconds after which no round is begun: no benchmark takes longer than ten minutes on a slow machine.
BUDGET = 360.0


def alternate(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    say: Callable[[str], object] = lambda line: None,
    budget: float = BUDGET,
) -> Blocks:
    """Run the blocks A B C A B C ...: `warmup` rounds that are not counted, then `rounds` that are.

    Fewer, though at least one, where another round as long as those before would end after `budget` seconds, which is
    then printed. `say` is told of every counted round.
    """
    blocks = Blocks(torch.device(device))
    began = blocks.now()
    for _ in range(warmup):
        for block in sides.values():
            block()
    for number in range(1, rounds + 1):
        times = [f"{side} {blocks.run(side, block):.2f} s" for side, block in sides.items()]
        say(f"round {number} of {rounds}: {', '.join(times)}")
        taken = blocks.now() - began
        if number < rounds and taken * (1 + 1 / (warmup + number)) > budget:
            print(f"{number} of {rounds} rounds: they took {taken:.0f} s, and this machine has {budget:.0f}")
            break
    return blocks


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads in a terminal too: the first column left, the others right."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(headings), line(rule), *(line(row) for row in rows)])


def rate_rows(blocks: Blocks, units: float, against: str) -> list[list[str]]:
    """A row of cells per side: its name, units per second (min, median, max), and how many times `against` it is."""
    rows = []
    for side in blocks.seconds:
        rate, ratio = blocks.rates(side, units), blocks.speedup(side, over=against)
        ratios = f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
        rows.append([side, f"{rate.low:.2f}", f"{rate.median:.2f}", f"{rate.high:.2f}", ratios])
    return rows
