"""Plots of an evaluation: distance against S or network calls, and seconds against network calls.

Figures are built by functions that return them (`distance_figure`, `speed_figure`) and drawn without any global state,
so they work in any thread, on machines without a display, and leave a notebook's own plots alone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from ddim.display.axes import COLOURS, MARKERS, label_axes, set_ticks
from ddim.findings.columns import VALUES
from ddim.findings.comparable import by_calls, group_rows, provenance, shared_parts, shows_floor, told_apart
from ddim.findings.labels import distance_name, eta_order, eta_title, line_label
from ddim.findings.rows import Floor, GridResult

Provenance = Callable[[GridResult], dict[str, str]]
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_WIDTH, _DPI = 10.0, 140
_LEGEND_CHARACTERS = 28
_X_LABELS = {"steps": "S (sampling steps)", "nfe": "nfe (network calls per image)"}


def distance_figure(rows: Sequence[GridResult], floor: Floor | None = None) -> Figure:
    """Distance against S, log-log: a panel per kind of features, a line per eta or sampler, and provenance.

    The distance is Fréchet's, of what is no image the energy distance. Samplers are compared at their network calls.
    Bars are one standard deviation up and down.
    Distances that are absent or not positive cannot be drawn on a log axis and are left out. ValueError without rows.
    """
    all_features = list(dict.fromkeys(row.features for row in rows))
    figure, panels = _panels(len(all_features))
    for axes, features in zip(panels, all_features, strict=True):
        members = [row for row in rows if row.features == features]
        x = "nfe" if by_calls(members) else "steps"
        handles = _draw_lines(axes, members, lambda row: row.distance, told_apart, x, bars=True)
        distance = (floor.distance or 0.0) if floor is not None else 0.0
        if floor is not None and shows_floor(floor, rows, members[0]) and distance > 0:
            label = f"floor: {floor.num_images:,} real\nheld-out images"
            style: dict[str, Any] = {"color": "#555555", "linestyle": (0, (6, 4)), "linewidth": 1.5, "zorder": 1}
            handles.append(axes.axhline(distance, label=label, **style))
        name = distance_name(features).split(" (")[0]
        kind = "energy distance" if features == VALUES else f"Fréchet distance on {features} features"
        ylabel = kind if features == VALUES else f"{name}: {kind}"
        against = "S" if x == "steps" else "network calls"
        _finish(axes, members, f"{name} against {against}", ylabel, told_apart, handles, x)
    _fit_legends(figure)
    return figure


def speed_figure(rows: Sequence[GridResult]) -> Figure:
    """Seconds per 50,000 images against network calls, log-log; different hardware is never in one line.

    The paper's Figure 4 has S, which is the same for its samplers but not what others have to be paid for.

    Measured on `num_samples` images, feature extraction apart. ValueError without rows.
    """
    figure, (axes,) = _panels(1 if rows else 0)
    handles = _draw_lines(axes, rows, lambda row: row.seconds_per_50000, _speed_provenance, "nfe")
    subject, ylabel = "time against network calls", "seconds per 50,000 images"
    _finish(axes, rows, subject, ylabel, _speed_provenance, handles, "nfe")
    _fit_legends(figure)
    return figure


def _speed_provenance(row: GridResult) -> dict[str, str]:
    return {**told_apart(row), "device": row.device or "unknown"}


def _sizes(rows: Sequence[GridResult]) -> str:
    return " or ".join(f"{size:,}" for size in sorted({row.num_samples for row in rows}))


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    if count == 0:
        raise ValueError("rows must hold at least one result to draw a figure")
    figure = Figure(figsize=(_WIDTH, 6.2 * count), dpi=_DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.autoscale(False, axis="x")  # set_ticks sets the limits; matplotlib warns of those of a single point
    return figure, panels


def _draw_lines(
    axes: Axes,
    rows: Sequence[GridResult],
    value: Callable[[GridResult], float | None],
    key: Provenance,
    x: str = "steps",
    bars: bool = False,
) -> list[Line2D]:
    """Draw one line per provenance and eta or sampler; returns the legend, with headings where they differ."""
    lines: list[tuple[str, int, list[tuple[int, float]]]] = []
    labels = sorted({line_label(row, rows) for row in rows}, key=eta_order)
    deviations: dict[tuple[str, int], dict[int, float]] = {}
    groups = group_rows(rows, key)
    short = _shortened([differs for differs, _ in groups])
    headings = ["\n".join(short[item] for item in differs.items()) for differs, _ in groups]
    for variant, (_, members) in enumerate(groups):
        for label in labels:
            alike = [row for row in members if line_label(row, rows) == label]
            found = {getattr(row, x): value(row) for row in alike}
            deviations[label, variant] = {getattr(row, x): row.distance_sd or 0.0 for row in alike}
            points = sorted((s, v) for s, v in found.items() if v is not None and math.isfinite(v) and v > 0)
            if points:
                lines.append((label, variant, points))
    handles: list[Line2D] = []
    for number, (label, variant, points) in enumerate(lines):
        if headings[variant] and (number == 0 or lines[number - 1][1] != variant):
            handles.append(Line2D([], [], linestyle="none", label=headings[variant]))
        # Lines may coincide (eta hardly changes the time): each one is drawn thinner than those below it.
        below = 1 - number / max(1, len(lines) - 1)
        handles += axes.plot(
            *zip(*points, strict=True),
            color=COLOURS[labels.index(label) % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=_DASHES[variant % len(_DASHES)],
            linewidth=1.8 + below,
            markersize=7 + 4 * below,
            markeredgecolor="white",
            label=eta_title(label).replace("σ̂", r"$\hat{\sigma}$"),
        )
        of_line = deviations[label, variant]
        known = [(place, y, of_line[place]) for place, y in points if 0 < of_line[place] < math.inf]
        if bars and known:
            places, heights, up = zip(*known, strict=True)
            # A log axis has no place for what lies below zero.
            down = [min(sd, 0.9 * y) for _, y, sd in known]
            colour = COLOURS[labels.index(label) % len(COLOURS)]
            axes.errorbar(places, heights, yerr=[down, up], fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)
    if not lines:
        axes.text(0.5, 0.5, "nothing that a log axis can show", transform=axes.transAxes, ha="center", fontsize=14)
    return handles


def _shortened(all_differs: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], str]:
    """Text of each (name, value) for the legend; of long paths only the components that not all have in common."""
    texts = {}
    for name in all_differs[0] if all_differs else ():
        values = list(dict.fromkeys(differs[name] for differs in all_differs))
        paths = [value.split("/") for value in values]
        head, tail = shared_parts(paths), 0
        if head < min(map(len, paths)):
            tail = shared_parts([path[:head:-1] for path in paths])
        for value, path in zip(values, paths, strict=True):
            middle = ["…"] * (head > 0) + path[head : len(path) - tail] + ["…"] * (tail > 0)
            text = f"{name} {value if len(value) <= 16 else '/'.join(middle)}"
            lines = textwrap.wrap(text.replace("/", "/ "), _LEGEND_CHARACTERS, break_on_hyphens=False)
            texts[name, value] = "\n".join(lines).replace("/ ", "/")
    return texts


def _finish(
    axes: Axes,
    rows: Sequence[GridResult],
    subject: str,
    ylabel: str,
    key: Provenance,
    handles: Sequence[Line2D],
    x: str = "steps",
) -> None:
    """Axis labels, ticks that say the S that were run, title and subtitle from what all rows share, legend."""
    varying = group_rows(rows, key)[0][0]
    samplers = dict.fromkeys(provenance(row)["sampler"] for row in rows)
    shared = {name: text for name, text in key(rows[0]).items() if name not in varying}
    shared |= {"sampler": next(iter(samplers))} if len(samplers) == 1 else {}
    named = ("weights", "sampler", "τ", "seed", "resize", "compute_precision", "device", "reference")
    parts = [f"{name} {shared[name]}" for name in named if shared.get(name, "unknown") != "unknown"]
    packed = textwrap.wrap("  ·  ".join(part.replace(" ", "\u00a0") for part in parts), 115)
    subtitle = [line.strip(" ·") for line in packed]
    label_axes(axes, ylabel, _X_LABELS[x])
    title = f"{shared.get('dataset', 'several datasets')}: {subject}, N = {_sizes(rows)}"
    axes.set_title("\n".join(textwrap.wrap(title, 70)), fontsize=15, loc="left", pad=16 + 14 * len(subtitle))
    axes.annotate("\n".join(subtitle), (0, 1), (0, 10), "axes fraction", "offset points", fontsize=10, color="#444444")
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.ones(1)])
    set_ticks(axes, [getattr(row, x) for row in rows], float(drawn.min()), float(drawn.max()))
    if handles:
        axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=11, labelspacing=0.7
        )


def _fit_legends(figure: Figure) -> None:
    """Make the panels high enough for the longest legend."""
    legends = [axes.get_legend() for axes in figure.axes]
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend is not None]
    needed = max((sum(0.12 + 0.21 * (1 + t.count("\n")) for t in entries) for entries in texts), default=0.0)
    figure.set_size_inches(_WIDTH, len(figure.axes) * max(6.2, 1.8 + needed))


def drawn(figure: Figure) -> Image.Image:
    """The figure as an RGB picture, 1400 pixels wide."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
