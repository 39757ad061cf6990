"""How all plots against S look: palette, grid, ticks that say the S that were run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import AutoLocator, FixedLocator, FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's palette, told apart by colour-blind readers; its yellow is left out because it is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def label_axes(axes: Axes, ylabel: str, xlabel: str = "S (sampling steps)") -> None:
    axes.set_xlabel(xlabel, fontsize=12)
    axes.set_ylabel(ylabel, fontsize=12)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11)


def set_ticks(axes: Axes, points: Sequence[int], low: float, high: float, label_width: float = 0.05) -> None:
    """Limits and ticks for the S or calls of `points` and values from `low` to `high`; a linear value axis begins at 0.

    points: one value per point drawn, repeated where several lines have a point.
    label_width: the part of the axis that a label takes; of values that are closer together, the one with most points
        is labelled, of as many the smallest.
    """
    counts = Counter(points)
    ratio = max(counts) / min(counts)
    margin = max(ratio**0.04, 1.1)
    axes.set_xlim(min(counts) / margin, max(counts) * margin)
    shown: list[int] = []
    for value in sorted(counts, key=lambda value: (-counts[value], value)):
        if all(max(value / other, other / value) >= ratio**label_width for other in shown):
            shown.append(value)
    axes.xaxis.set_major_locator(FixedLocator(sorted(shown)))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_locator(NullLocator())
    set_value_ticks(axes, low, high)


def set_value_ticks(axes: Axes, low: float, high: float, from_zero: bool = True) -> None:
    """Limits and ticks of the value axis for values from `low` to `high`, written out; a linear one may begin at 0."""
    if axes.get_yscale() == "log":
        decades, margin = math.log10(high / low), max((high / low) ** 0.06, 1.15)
        axes.set_ylim(low / margin, high * margin)
        subs = (1.0,) if decades > 4 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs) if decades > 0.9 else AutoLocator())
    elif from_zero:
        axes.set_ylim(0, max(high, 1e-12) * 1.08)
    else:
        margin = 0.08 * max(high - low, 1e-12)
        axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))
    axes.yaxis.set_minor_locator(NullLocator())


def _plain(value: float, _position: int) -> str:
    return f"{value:.10g}"
