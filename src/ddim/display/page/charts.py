"""What the charts of a report show, as plain values that `assets/page.js` hands to the chart library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeGuard

from ddim.display.page.entries import Entry, dataset_and_features
from ddim.findings.comparable import by_calls, shows_floor
from ddim.findings.labels import distance_name, significant, title_order, with_sd

# A value axis is logarithmic where its values span more than this factor.
WIDE = 4.0


@dataclass(frozen=True)
class Series:
    """A line. colour and dash are places in the page's lists; points are (x, y, what is said of y)."""

    label: str
    colour: int
    dash: int
    points: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Attributes:
    ticks: where the x axis has labels; everywhere for none.
    levels: (label, value) of horizontal lines.
    reverse: whether x decreases to the right.
    """

    key: str
    title: str
    x_name: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: Sequence[tuple[str, float]] = ()
    ticks: Sequence[float] = field(default_factory=tuple)
    x_log: bool = True
    y_log: bool = True
    reverse: bool = False

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def distance_charts(entries: Sequence[Entry], comparisons: Iterable[Any] = ()) -> list[Chart]:
    """Fréchet distance against S: a chart per data set and kind of features, a line per η and whatever else differs.

    Samplers are compared at their network calls.

    comparisons: tables of the paper; its numbers become lines where there are results comparable with them.
    """
    charts = []
    for number, (dataset, features) in enumerate(dict.fromkeys(dataset_and_features(entry.row) for entry in entries)):
        members = [entry for entry in entries if dataset_and_features(entry.row) == (dataset, features)]
        name = distance_name(features)
        calls = by_calls([entry.row for entry in members])
        x_name, x_label = ("nfe", "nfe (network calls per image)") if calls else ("S", "S (sampling steps)")
        charts.append(
            build_chart(
                f"distance-{number}",
                f"{dataset}: {name} against {'network calls' if calls else 'S'}",
                (x_name, x_label, f"{name}, lower is better"),
                lines(members, partial(_distance, calls=calls))
                + (_published(comparisons) if name == "FID" and not calls else []),
                levels=_floors(entries, members),
            )
        )
    return [chart for chart in charts if chart.series]


def time_charts(entries: Sequence[Entry]) -> list[Chart]:
    """Seconds per 50,000 images against the network calls per image (the paper's Figure 4 has S)."""
    chart = build_chart(
        "time",
        "Time against network calls",
        ("nfe", "nfe (network calls per image)", "seconds per 50,000 images"),
        lines(entries, _time),
    )
    return [chart] if chart.series else []


def lines(entries: Sequence[Entry], point: Callable[[Entry], tuple[float | None, float | None, str]]) -> list[Series]:
    """A line per setting of the entries, in order of first appearance; colours go with η, dashes with all else."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.label, []).append(entry)
    etas = sorted({entry.eta for entry in entries}, key=title_order)
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    series = []
    for label, members in found.items():
        points = [(x, y, text) for x, y, text in map(point, members) if is_finite(x) and is_finite(y)]
        if points:
            colour, dash = etas.index(members[0].eta), variants.index(members[0].variant)
            series.append(Series(label, colour, dash, sorted(points)))  # type: ignore[arg-type,type-var]
    return series


def build_chart(
    key: str,
    title: str,
    labels: tuple[str, str, str],
    series: list[Series],
    levels: Sequence[tuple[str, float]] = (),
    *,
    x_log: bool = True,
    y_log: bool | None = None,
    reverse: bool = False,
) -> Chart:
    """y_log: by default, where the values ask for it."""
    values = [y for line in series for _, y, _ in line.points] + [value for _, value in levels]
    possible = bool(values) and min(values) > 0
    log = possible and (max(values) / min(values) > WIDE if y_log is None else y_log)
    ticks = sorted({x for line in series for x, _, _ in line.points}) if x_log else []
    return Chart(key, title, *labels, series, levels, ticks, x_log and all(x > 0 for x in ticks), log, reverse)


def _floors(entries: Sequence[Entry], members: Sequence[Entry]) -> list[tuple[str, float]]:
    levels: dict[tuple[str, float], None] = {}
    for entry in members:
        floor = entry.floor
        rows = [other.row for other in entries if other.letter == entry.letter]
        if floor is not None and shows_floor(floor, rows, entry.row):
            value = floor.distance
            if value is not None and math.isfinite(value):
                levels[f"floor: {floor.num_images:,} real held-out images", value] = None
    return list(levels)


def _published(comparisons: Iterable[Any]) -> list[Series]:
    found: dict[str, dict[float, float]] = {}
    for comparison in comparisons:
        for row in comparison.rows:
            if row.get("comparable") is True and is_finite(row["paper"]) and is_finite(row["steps"]):
                label = "σ̂" if row.get("variance") != "eta" else f"η = {row.get('eta')}"
                found.setdefault(label, {})[row["steps"]] = row["paper"]
    return [
        Series(
            f"the paper, {label}",
            number,
            3,
            [(steps, value, f"{value:.10g}") for steps, value in sorted(points.items())],
        )
        for number, (label, points) in enumerate(found.items())
    ]


def _distance(entry: Entry, calls: bool) -> tuple[float, float | None, str]:
    row = entry.row
    said = with_sd(row.distance, row.distance_sd)
    return row.nfe if calls else row.steps, row.distance, said


def _time(entry: Entry) -> tuple[float, float, str]:
    row = entry.row
    said = (
        f"{significant(row.seconds_per_50000, 3)} s, S = {row.steps}, {significant(row.images_per_second, 3)} images/s"
    )
    return row.nfe, row.seconds_per_50000, said


def is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
