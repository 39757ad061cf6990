"""Figures of samples that are no images: points on their density and the ways that led there, series over each other,
the columns of a table one by one."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from ddim.display.axes import COLOURS
from ddim.display.samples import MOST_LINES, Frame, array_of
from ddim.findings.telling import Against, Densities, Flow

SHADES = LinearSegmentedColormap.from_list("density", ["#ffffff", "#c9c2b4", "#8f8470"])
BINS = 120
# A Gaussian of two bins.
KERNEL = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)
# Nats below the highest log-density at which maps are black, and those below which a difference says nothing.
DEPTH, NEAR = 12.0, 6.0
# Columns of a table that have room.
MOST_COLUMNS = 12
# Of which pairs are drawn.
MOST_PAIRED = 5


def flow_figure(flow: Flow) -> Image.Image:
    """A panel for each setting: the density of real points, the ways of some samples, where all of them arrive."""
    real = array_of(flow.real)
    ways = [(title, array_of(paths)) for title, paths in flow.panels]
    starts = [paths[:, 0] for _, paths in ways]
    frame = Frame.around([real, *starts])
    figure, panels = _panels(len(ways), flow.title, 5.4)
    for axes, (title, paths) in zip(panels, ways, strict=True):
        _shade(axes, real, frame)
        for number, path in enumerate(paths[: flow.drawn]):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(path[:, 0], path[:, 1], color=colour, linewidth=1.1, alpha=0.85, zorder=2)
            axes.plot(*path[0], marker="o", markersize=4, color="white", markeredgecolor=colour, zorder=3)
        axes.plot(*paths[:, -1].T, linestyle="none", marker=".", markersize=3, color="black", zorder=4)
        axes.set_title(title, fontsize=13)
    return _image(figure)


def against_figure(found: Against) -> Image.Image:
    """Real samples beside those of each setting: as points, as series, or column by column."""
    real = array_of(found.real)
    panels = [(title, array_of(samples)) for title, samples in found.panels]
    if real.ndim == 2 and real.shape[1] != 2:
        return _pairs(real, *panels[-1], found) if found.pairs else _columns(real, panels, found)
    every = [("real, held out", real), *panels]
    frame = Frame.around([real])
    figure, row = _panels(len(every), found.title, 3.1 if real.ndim == 2 else 2.8)
    for number, (axes, (title, samples)) in enumerate(zip(row, every, strict=True)):
        colour = "#555555" if number == 0 else COLOURS[0]
        if real.ndim == 2:
            _shade(axes, real, frame)
            axes.plot(*samples.T, linestyle="none", marker=".", markersize=2.5, color=colour)
        else:
            _overlay(axes, samples, frame, colour)
        axes.set_title(title, fontsize=12)
    return _image(figure)


def density_figure(found: Densities) -> Image.Image:
    """Maps of the log-density in the same colours, and the difference, around 0 and only where data are."""
    maps = [(title, array_of(values)) for title, values in found.panels]
    points = array_of(found.points)
    # Of what is shown last somebody knows that it is true, where there are two.
    top = float(np.nanmax(maps[-1][1]))
    count = len(maps) + 1
    figure, panels = _panels(count, found.title, 4.2)
    for axes, (title, values) in zip(panels, maps, strict=False):
        drawn = axes.imshow(
            values, "magma", origin="lower", extent=found.square, interpolation="bilinear", vmin=top - DEPTH, vmax=top
        )
        axes.set_title(title, fontsize=12)
    figure.colorbar(drawn, ax=panels[: len(maps)], label="nats", shrink=0.85, extend="min")
    last = panels[-1]
    if found.difference is None:
        last.plot(*points.T, linestyle="none", marker=".", markersize=2, color="black")
        last.set_title("held-out points", fontsize=12)
    else:
        title, values = found.difference
        # Where hardly any data are, both are tails of no account.
        seen = np.where(maps[-1][1] > top - NEAR, array_of(values), np.nan)
        image = last.imshow(seen, origin="lower", extent=found.square, cmap="RdBu_r", vmin=-1, vmax=1)
        figure.colorbar(image, ax=last, label="nats", shrink=0.85, extend="both")
        last.set_title(title, fontsize=12)
    for axes in panels:
        axes.set_xlim(found.square[:2])
        axes.set_ylim(found.square[2:])
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    return _image(figure)


def _overlay(axes: Axes, series: NDArray[np.float64], frame: Frame, colour: str) -> None:
    for channel in range(series.shape[1]):
        lines = series[:MOST_LINES, channel].T
        shade = colour if series.shape[1] == 1 else COLOURS[channel % len(COLOURS)]
        axes.plot(lines, color=shade, linewidth=0.7, alpha=min(1.0, 10 / lines.shape[1] + 0.08))
        axes.plot(series[:, channel].mean(axis=0), color="black", linewidth=1.6)
    axes.set_ylim(float(frame.low[0]), float(frame.high[0]))
    axes.set_xlabel("time", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _columns(real: NDArray[np.float64], panels: list[tuple[str, NDArray[np.float64]]], found: Against) -> Image.Image:
    """Histograms of each column, and below them how columns go together: correlations, real and of the last setting."""
    count = min(MOST_COLUMNS, real.shape[1])
    across = min(4, count)
    figure = Figure(figsize=(11.0, 1.9 * math.ceil(count / across) + 1.0), dpi=120, facecolor="white")
    figure.set_layout_engine("constrained")
    figure.suptitle("\n".join(textwrap.wrap(found.title, 90)), fontsize=14, x=0.02, ha="left")
    grid = figure.subplots(math.ceil(count / across), across, squeeze=False).flatten()
    for column, axes in enumerate(grid):
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        if column >= count:
            axes.set_visible(False)
            continue
        low, high = real[:, column].min(), real[:, column].max()
        room = 0.25 * (high - low) or 1.0
        edges = np.linspace(low - room, high + room, 24)
        axes.hist(real[:, column], edges, density=True, color="#cfcabf", label="real, held out")
        for number, (title, samples) in enumerate(panels):
            shade = COLOURS[number % len(COLOURS)]
            axes.hist(samples[:, column], edges, density=True, histtype="step", color=shade, linewidth=1.3, label=title)
        axes.set_title(found.names[column] if column < len(found.names) else f"column {column}", fontsize=10)
        axes.tick_params(labelsize=8)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    return _image(figure)


def _pairs(real: NDArray[np.float64], label: str, samples: NDArray[np.float64], found: Against) -> Image.Image:
    """A scatter matrix of the first columns: histograms on the diagonal, beside it samples, real rows drawn on top."""
    count = min(MOST_PAIRED, real.shape[1])
    frame = Frame.around([real[:, :count]])
    figure = Figure(figsize=(2.0 * count + 0.6, 2.0 * count + 1.1), dpi=110, facecolor="white")
    figure.set_layout_engine("constrained")
    figure.suptitle("\n".join(textwrap.wrap(f"{found.title}, {label}", 12 * count)), fontsize=14, x=0.02, ha="left")
    grid = figure.subplots(count, count, sharex="col")
    names = [found.names[column] if column < len(found.names) else f"column {column}" for column in range(count)]
    dots: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 3.0}
    for down in range(count):
        for across in range(count):
            axes = grid[down, across]
            axes.set_yticks([])
            axes.tick_params(labelsize=8)
            axes.set_xlim(frame.low[across], frame.high[across])
            if down == across:
                edges = np.linspace(frame.low[down], frame.high[down], 24)
                axes.hist(real[:, down], edges, density=True, color="#cfcabf")
                axes.hist(samples[:, down], edges, density=True, histtype="step", color=COLOURS[0], linewidth=1.3)
            else:
                axes.plot(samples[:, across], samples[:, down], color=COLOURS[0], alpha=0.35, zorder=1, **dots)
                axes.plot(real[:, across], real[:, down], color="#222222", alpha=0.8, zorder=2, **dots)
                axes.set_ylim(frame.low[down], frame.high[down])
            if down == count - 1:
                axes.set_xlabel("\n".join(textwrap.wrap(names[across], 18)), fontsize=9)
            if across == 0:
                axes.set_ylabel("\n".join(textwrap.wrap(names[down], 18)), fontsize=9)
    kinds = ((COLOURS[0], label), ("#222222", "real, held out"))
    handles = [Line2D([], [], color=colour, label=text, **dots) for colour, text in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10, markerscale=3)
    return _image(figure)


def _shade(axes: Axes, points: NDArray[np.float64], frame: Frame) -> None:
    """The density of points (N, 2), from a smoothed histogram."""
    limits = [(float(low), float(high)) for low, high in zip(frame.low, frame.high, strict=True)]
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=BINS, range=np.asarray(limits))
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, KERNEL, mode="same")
    density = counts.T
    axes.imshow(density, origin="lower", extent=(*limits[0], *limits[1]), cmap=SHADES, aspect="equal", zorder=0)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_xticks([])
    axes.set_yticks([])


def _panels(count: int, title: str, size: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(7.0, size * count), size + 0.7), dpi=120, facecolor="white")
    figure.set_layout_engine("constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 90)), fontsize=14, x=0.02, ha="left")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _image(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
