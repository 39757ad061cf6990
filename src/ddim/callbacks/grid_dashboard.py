"""What the loggers, W&B above all, show of an evaluation grid: curves against S, tables, charts, the run table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from PIL import Image

from ddim.records import (
    COLUMNS,
    Floor,
    GridResult,
    curve_key,
    distance_name,
    eta_label,
    eta_title,
    point_key,
    significant,
)
from ddim.show import show_line_chart, show_pictures, show_point, show_summary, show_table

METRICS = ("frechet_distance", "kid_mean", "precision", "recall", "inception_score_mean")


def show_result(trainer: pl.Trainer, row: GridResult, picture: Image.Image) -> None:
    """A finished point: one point of each curve against S, and its samples."""
    curve = curve_key(row)
    values = {
        f"grid/{name}/{curve}": getattr(row, name) for name in (*METRICS, "seconds_per_50000", "images_per_second")
    }
    values |= {f"grid/{name}/{curve}": value for name, value in row.other_metrics or ()}
    show_point(trainer, row.steps, row.nfe, {**values, f"samples/{curve}": picture}, caption(row))


def show_grid(
    trainer: pl.Trainer, rows: Sequence[GridResult], pictures: Mapping[str, Image.Image], floor: Floor | None
) -> None:
    """A finished grid: its tables, its charts and its columns of the run table. pictures: by `point_key`."""
    cells = [[_plain(getattr(row, column)) for column in COLUMNS] for row in rows]
    show_table(trainer, "grid/results", COLUMNS, cells)
    name = distance_name(rows[0].features)
    settings = [[eta_label(row), row.tau, row.steps] for row in rows]
    show_pictures(
        trainer,
        "grid/pictures",
        ["eta", "tau", "steps", name, "samples"],
        [
            [*setting, row.frechet_distance, pictures[point_key(row)]]
            for setting, row in zip(settings, rows, strict=True)
        ],
    )
    title = f"{rows[0].dataset}: {{}} against S, N = {rows[0].num_samples:,}"
    distances = [
        [row.steps, row.frechet_distance, _line(row, rows)] for row in rows if row.frechet_distance is not None
    ]
    if distances:
        show_line_chart(trainer, "grid/distance_chart", title.format(name), ("steps", name, "sampler"), distances)
    times = [[row.steps, row.seconds_per_50000, _line(row, rows)] for row in rows]
    columns = ("steps", "seconds per 50,000 images", "sampler")
    show_line_chart(trainer, "grid/time_chart", title.format(columns[1]), columns, times)
    show_summary(trainer, summary(rows, floor))


def summary(rows: Sequence[GridResult], floor: Floor | None) -> dict[str, float | int | str]:
    """Columns of the run table, whose keys sort well: `frechet_distance/eta0.000/linear/steps0010`; the best point."""
    values: dict[str, float | int | str] = {
        f"{name}/{point_key(row)}": getattr(row, name)
        for name in (*METRICS, "images_per_second")
        for row in rows
        if getattr(row, name) is not None
    }
    values |= {f"{name}/{point_key(row)}": value for row in rows for name, value in row.other_metrics or ()}
    if floor is not None:
        values |= {f"floor/{name}": value for name, value in floor.metrics.items()}
    measured = [(row.frechet_distance, row) for row in rows if row.frechet_distance is not None]
    if measured:
        distance, best = min(measured, key=lambda pair: pair[0])
        eta = f"{best.eta:g}" if best.variance == "eta" else best.variance
        values |= {"best/frechet_distance": distance, "best/eta": eta, "best/steps": best.steps}
    return values


def caption(row: GridResult) -> str:
    """`eta 0, S 10: FD (pixels) 1.234, 1000 images in 2.0 s`."""
    distance = (
        "" if row.frechet_distance is None else f" {distance_name(row.features)} {significant(row.frechet_distance)},"
    )
    return (
        f"eta {row.eta:g}{'' if row.variance == 'eta' else f' {row.variance}'}, S {row.steps}:{distance} "
        f"{row.num_samples} images in {row.seconds:.1f} s"
    )


def _line(row: GridResult, rows: Sequence[GridResult]) -> str:
    several = len({other.tau for other in rows}) > 1
    return eta_title(eta_label(row)) + (f", {row.tau} τ" if several else "")


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value
