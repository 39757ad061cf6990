"""Plots of the parts of an evaluation that are not the grid: a quantity against S or calls, one line per setting."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ddim.display.axes import COLOURS, MARKERS, label_axes, set_ticks, set_value_ticks
from ddim.findings.telling import Panel


def steps_figure(panels: Sequence[Panel], title: str, subtitle: str = "") -> Image.Image:
    """The panels side by side, 1,400 pixels wide; S is on a log axis whose ticks are the S that were run."""
    figure = Figure(figsize=(10.0, 6.2 if len(panels) == 1 else 5.4), dpi=140, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
    canvas = FigureCanvasAgg(figure)
    heading = "\n".join(textwrap.wrap(title, 80))
    figure.suptitle(heading, fontsize=15, x=0.02, ha="left")
    axes_row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(axes_row, panels, strict=True):
        _draw(axes, panel)
    if subtitle:
        figure.supxlabel("\n".join(textwrap.wrap(subtitle, 125)), fontsize=10, color="#444444", x=0.02, ha="left")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_xscale("log" if panel.x_log else "linear")
    axes.set_yscale("log" if panel.log else "linear")
    drawn: list[tuple[float, float]] = []
    ends: list[float] = []
    for number, (label, points) in enumerate(panel.lines.items()):
        known = [(s, v) for s, v in points if v is not None and math.isfinite(v) and (v > 0 or not panel.log)]
        known = sorted(known) if panel.x_log else known
        if known:
            drawn += known
            colour = COLOURS[number % len(COLOURS)]
            ends += _draw_bars(axes, [bar for bar in panel.bars.get(label, ()) if bar[:2] in known], colour)
            axes.plot(
                *zip(*known, strict=True),
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                linewidth=2,
                markersize=8,
                markeredgecolor="white",
                label=label.replace("σ̂", r"$\hat{\sigma}$"),
            )
    label_axes(axes, panel.ylabel, panel.xlabel)
    if not drawn:
        axes.text(0.5, 0.5, "nothing that these axes can show", transform=axes.transAxes, ha="center", fontsize=12)
        return
    values = [value for _, value in drawn] + ends
    if panel.level is not None and (panel.level[0] > 0 or not panel.log):
        value, text = panel.level
        values.append(value)
        axes.axhline(value, color="#555555", linestyle=(0, (6, 4)), linewidth=1.5, zorder=1, label=text)
    for place, value, text in panel.notes:
        axes.annotate(text, (place, value), xytext=(9, 7), textcoords="offset points", fontsize=11)
    if panel.x_log:
        set_ticks(axes, [int(steps) for steps, _ in drawn], min(values), max(values), label_width=0.08)
    set_value_ticks(axes, min(values), max(values), panel.from_zero)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        # Of three axes each has no more room than a third of the figure.
        size = 11 if len(axes.figure.axes) < 3 else 9
        axes.legend(frameon=True, framealpha=0.85, edgecolor="none", fontsize=size, loc="best")


def _draw_bars(axes: Axes, bars: Sequence[tuple[float, float, float]], colour: str) -> list[float]:
    """One standard deviation up and down; returns where they end."""
    if not bars:
        return []
    places, values, up = zip(*bars, strict=True)
    # A log axis has no place for what lies below zero.
    down = [min(sd, 0.9 * value) if axes.get_yscale() == "log" else sd for _, value, sd in bars]
    axes.errorbar(places, values, yerr=[down, up], fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)
    return [value + sd for _, value, sd in bars] + [value - sd for (_, value, _), sd in zip(bars, down, strict=True)]
