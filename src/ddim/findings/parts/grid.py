"""The grid, as it is told: distances by η and S, everything measured, samples from the same latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.findings.columns import MEASURED, VALUES, distance_of
from ddim.findings.comparable import by_calls, cost
from ddim.findings.files import own_metrics, write_results
from ddim.findings.grid_table import render_table
from ddim.findings.labels import (
    curve_key,
    distance_name,
    eta_label,
    eta_title,
    line_label,
    point_key,
    sampler_parts,
    with_sd,
)
from ddim.findings.part import Chart, Part, Rows
from ddim.findings.rows import Floor, GridResult, cells_of, columns_of
from ddim.findings.telling import Against, Curves, GridFigure, Panel, Picture, Row, Sheet, Strip, Words

# Images per cell of the sample sheet.
SHEET_IMAGES = 16


def results_of(rows: Rows) -> list[GridResult]:
    """The rows of the part as what they are made from."""
    return [GridResult(**row) for row in rows]


def pictures(
    rows: Rows, images: Mapping[Any, Any], floor: Floor | None, classes: Sequence[str] = ()
) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption). images: point -> its first images, in the order of the grid, which are of `classes`."""
    # Points of an earlier attempt may have kept fewer pictures than are asked for now.
    count = min(len(some) for some in images.values())
    if results_of(rows[:1])[0].features != VALUES:
        count = min(count, SHEET_IMAGES)
    results = results_of(rows)
    calls = by_calls(results)
    places = {point_key(row): (line_label(row, results), cost(row, calls)) for row in results}
    # By spacing: two of them would fight for one cell.
    sheets: dict[str, dict[tuple[str, int], Any]] = {}
    for point, some in images.items():
        sheets.setdefault(point.tau, {})[places[point_key(point)]] = some[:count]
    for tau, cells in sheets.items():
        yield "samples" if len(sheets) == 1 else f"samples-{tau}", Sheet(cells, column="nfe" if calls else "S"), ""
    yield "distance", GridFigure("distance", results, floor), ""
    yield "speed", GridFigure("speed", results), ""
    if classes:
        yield from _class_pictures(results, images, classes)
    if any(row.label_accuracy is not None and row.distance is not None for row in results):
        yield "tradeoff", Curves([_tradeoff(results)], f"{results[0].dataset}: what guidance costs and buys"), ""


def _class_pictures(
    results: Sequence[GridResult], images: Mapping[Any, Any], classes: Sequence[str]
) -> Iterator[tuple[str, Picture, str]]:
    """A row of images for each class, of every line of the grid at its largest S."""
    largest: dict[str, Any] = {}
    for point in images:
        known = largest.get(curve_key(point))
        if known is None or point.steps > known.steps:
            largest[curve_key(point)] = point
    by_key = {point_key(row): row for row in results}
    for point in largest.values():
        shown = images[point]
        places: dict[str, list[int]] = {}
        for place, name in enumerate(classes[: len(shown)]):
            places.setdefault(name, []).append(place)
        count = min(map(len, places.values()))
        strips = [(name, shown[chosen[:count]]) for name, chosen in places.items()]
        name = "classes" if len(largest) == 1 else f"classes-{curve_key(point).replace('/', '-')}"
        row = by_key[point_key(point)]
        label = line_label(row, results)
        title = eta_title(label) if label == eta_label(row) else label
        yield name, Strip(strips, f"{row.dataset} by class: {title}, S = {point.steps}"), ""


def _tradeoff(results: Sequence[GridResult]) -> Panel:
    """Distance against label accuracy: a line along the scales of guidance for each S, and each of several η."""
    lines: dict[str, list[tuple[float, float | None]]] = {}
    bars: dict[str, list[tuple[float, float, float]]] = {}
    notes = []
    several = len({eta_label(row) for row in results}) > 1
    for row in results:
        if row.label_accuracy is None or row.distance is None:
            continue
        name = f"S = {row.steps}" + (f", {eta_title(eta_label(row))}" if several else "")
        lines.setdefault(name, []).append((row.label_accuracy, row.distance))
        if row.distance_sd:
            bars.setdefault(name, []).append((row.label_accuracy, row.distance, row.distance_sd))
        scale = dict(row.options or ()).get("guidance_scale")
        notes.append((row.label_accuracy, row.distance, "" if scale is None else f"{scale:g}"))
    name = f"{distance_name(results[0].features)}, scales of guidance beside points"
    return Panel(name, lines, xlabel="label accuracy", x_log=False, notes=notes, bars=bars)


def against(
    rows: Rows, images: Mapping[Any, Any], real: Any, names: Sequence[str]
) -> Iterator[tuple[str, Picture, str]]:
    """Samples that are no images beside real ones: those of every cost, at the first sampler, η and τ of the grid.

    images: as in `pictures`. real: held-out samples, as they are stored. names: of the columns of a table.
    """
    results = results_of(rows)
    calls, by_key = by_calls(results), {point_key(row): row for row in results}
    first = by_key[point_key(next(iter(images)))]
    label = line_label(first, results)
    shown = {}
    for point, some in images.items():
        row = by_key[point_key(point)]
        if line_label(row, results) == label and row.tau == first.tau:
            shown[cost(row, calls)] = some
    column = "network calls" if calls else "S"
    title = f"{first.dataset}: samples of {eta_title(label) if label == eta_label(first) else label} and real ones"
    panels = [(f"{column} = {place}", shown[place]) for place in sorted(shown)]
    yield "samples-real", Against(panels, real, title, names), ""
    if len(real.shape) == 2 and real.shape[1] > 2:
        yield "samples-pairs", Against(panels[-1:], real, title, names, pairs=True), ""


def caption(row: GridResult) -> str:
    """`eta 0, S 10: FD (pixels) 1.23 ± 0.04, 1000 images in 2.0 s`."""
    measured = with_sd(row.distance, row.distance_sd)
    distance = "" if row.distance is None else f" {distance_name(row.features)} {measured},"
    named = "".join(f"{text}, " for text in sampler_parts(row))
    return (
        f"{named}eta {row.eta:g}{'' if row.variance == 'eta' else f' {row.variance}'}, S {row.steps}:{distance} "
        f"{row.num_samples} images in {row.seconds:.1f} s"
    )


def _write(directory: Path, name: str, rows: Rows, extra: Row) -> None:
    beside = {key: value for key, value in extra.items() if key != "floor"}
    write_results(directory, results_of(rows), extra.get("floor"), beside)


def _say(rows: Rows, extra: Row, words: Words) -> None:
    render_table(results_of(rows), extra.get("floor"), words)


def _curves(row: Row) -> dict[str, Any]:
    result = GridResult(**row)
    names = [*MEASURED, "seconds_per_50000", "images_per_second", *own_metrics([result])]
    return {f"grid/{name}/{curve_key(result)}": result.value(name) for name in names}


def _table(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    results = results_of(rows)
    columns = columns_of(results)
    return columns, [[_plain(cells_of(row).get(column)) for column in columns] for row in results]


def _gallery(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    results = results_of(rows)
    name = distance_name(results[0].features)
    named = ["sampler"] * (len({tuple(sampler_parts(row)) for row in results}) > 1)
    return [*named, "eta", "tau", "steps", name, "samples"], [
        [
            *([" ".join(sampler_parts(row) or ["ddim"])] * len(named)),
            *(eta_label(row), row.tau, row.steps, row.distance),
        ]
        for row in results
    ]


def _charts(rows: Rows) -> list[Chart]:
    results = results_of(rows)
    first, name = results[0], distance_name(results[0].features)
    # Runs that are compared share a chart whose axis has one name: "steps", but for what S does not say the cost of.
    x = "nfe" if by_calls(results) else "steps"
    against = "network calls" if x == "nfe" else "S"
    title = f"{first.dataset}: {{}} against {against}, N = {first.num_samples:,}"
    measured = [row for row in results if row.distance is not None]
    charts = []
    if measured:
        points = [(getattr(row, x), row.distance, _line(row, results)) for row in measured]
        charts.append(Chart("distance_chart", title.format(name), (x, name, "sampler"), points))
    columns = (x, "seconds per 50,000 images", "sampler")
    times = [(getattr(row, x), row.seconds_per_50000, _line(row, results)) for row in results]
    return [*charts, Chart("time_chart", title.format(columns[1]), columns, times)]


def _line(row: GridResult, rows: Sequence[GridResult]) -> str:
    spacing = f", {row.tau} τ" if len({other.tau for other in rows}) > 1 else ""
    label = line_label(row, rows)
    return (eta_title(label) if label == eta_label(row) else label) + spacing


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    return summary(results_of(rows), extra.get("floor"))


def summary(rows: Sequence[GridResult], floor: Floor | None) -> dict[str, float | int | str]:
    """Columns of the run table, whose keys sort well: `frechet_distance/eta0.000/linear/steps0010`; the best point."""
    names = [*MEASURED, "images_per_second", *own_metrics(rows)]
    found = {f"{name}/{point_key(row)}": row.value(name) for name in names for row in rows}
    values: dict[str, float | int | str] = {key: value for key, value in found.items() if value is not None}
    if floor is not None:
        values |= {f"floor/{name}": value for name, value in floor.metrics.items()}
    measured = [(row.distance, row) for row in rows if row.distance is not None]
    if measured:
        distance, best = min(measured, key=lambda pair: pair[0])
        eta = f"{best.eta:g}" if best.variance == "eta" else best.variance
        sampler = " ".join(sampler_parts(best) or ["ddim"])
        values |= {f"best/{distance_of(best.features).name}": distance, "best/sampler": sampler, "best/eta": eta}
        values |= {"best/steps": best.steps}
    return values


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


PART = Part(
    name="grid",
    title="Grid",
    caption="All that was measured",
    about="Every number of steps with every η.",
    columns={},
    pictures=["samples*.png", "distance.png", "speed.png", "classes*.png", "tradeoff.png"],
    keys=[
        ("grid/frechet_distance/<sampler>/<tau>", "curve", "Fréchet distance against S"),
        ("grid/<metric>/<sampler>/<tau>", "curve", "further metrics against S (`evaluation.metrics`)"),
        ("grid/seconds_per_50000/<sampler>/<tau>", "curve", "wall-clock seconds per 50,000 images"),
        ("grid/images_per_second/<sampler>/<tau>", "curve", "images per second"),
        ("samples/<sampler>/<tau>", "samples", "samples of the same latents: one slider over S"),
        (
            "grid/distance_chart",
            "chart",
            "Fréchet distance against S, one line per η; runs that are compared share it",
        ),
        ("grid/time_chart", "chart", "seconds per 50,000 images against S, one line per η"),
        ("grid/results", "table", "results.csv: one row per (η, τ, S)"),
        ("grid/pictures", "table", "samples by (η, τ, S), with their distance: sort, filter, group"),
        ("grid/distance_chart_table", "table", "what `grid/distance_chart` is drawn from"),
        ("grid/time_chart_table", "table", "what `grid/time_chart` is drawn from"),
        ("grid/samples<-tau>", "picture", "sample sheet: η down, S across, the same latents in every cell"),
        ("grid/samples-real", "picture", "of what is no image: samples beside real ones"),
        ("grid/samples-pairs", "picture", "of the columns of a table: each against each other, real rows on top"),
        ("grid/distance", "picture", "distance.png: the same chart with log axes and the floor"),
        ("grid/speed", "picture", "speed.png"),
        ("grid/classes<-sampler>", "picture", "of a network with classes: a row of images for each, at the largest S"),
        ("grid/tradeoff", "picture", "of a network with classes: distance against label accuracy, by guidance"),
        ("best/frechet_distance", "summary", "the smallest distance of the grid"),
        ("best/sampler", "summary", "where it was found: the sampler, with its options"),
        ("best/eta", "summary", "where it was found (sigma_hat for the paper's larger variance)"),
        ("best/steps", "summary", "where it was found: S"),
        (
            "frechet_distance/<sampler>/<tau>/<steps>",
            "summary",
            "the distance of each point: a column per point",
        ),
        (
            "<metric>/<sampler>/<tau>/<steps>",
            "summary",
            "the same for kid_mean, precision, recall, inception_score_mean",
        ),
        ("images_per_second/<sampler>/<tau>/<steps>", "summary", "images per second of each point"),
        ("floor/frechet_distance", "summary", "real held-out images against the reference"),
        ("floor/<metric>", "summary", "the same in further metrics"),
    ],
    curves=_curves,
    summary=_summary,
    table=_table,
    charts=_charts,
    gallery=_gallery,
    images_caption=lambda row: caption(GridResult(**row)),
    words=_say,
    file="results",
    prefix="",
    write=_write,
    fresh=True,
)
