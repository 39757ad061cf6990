"""Interpolation, as it is told: images on lines between latents and on a grid between four, and how even they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ddim.findings.labels import Setting, point_key, significant
from ddim.findings.part import Part, Rows, in_unit, several
from ddim.findings.telling import Picture, Row, Strip, Words


def pictures(point: Setting, on_lines: Any, on_grid: Any, data: str, suffix: str) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption). on_lines: uint8 (lines, n, C, H, W); on_grid: uint8 (side, side, C, H, W).

    suffix: tells the pictures of several points apart.
    """
    about = f"{data}, η = 0, S = {point.steps}"
    rows = [(f"{2 * number} – {2 * number + 1}", images) for number, images in enumerate(on_lines)]
    title = f"Between the latents of two samples: {about}"
    yield f"lines{suffix}", Strip(rows, title, _weights(on_lines.shape[1])), f"S {point.steps}"
    first, sides = 2 * len(on_lines), _weights(len(on_grid))
    title = f"Between the latents of samples {first} to {first + 3} in the corners: {about}"
    yield f"corners{suffix}", Strip(list(zip(sides, on_grid, strict=True)), title, sides), f"S {point.steps}"


def _weights(count: int) -> list[str]:
    return [f"{number / (count - 1):.2f}" for number in range(count)]


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    values = {}
    for key in dict.fromkeys(map(point_key, rows)):
        members = [row for row in rows if point_key(row) == key]
        shares = [row["largest_jump_share"] for row in members if row["largest_jump_share"] is not None]
        if shares:
            values[f"interpolation/largest_jump_share/{key}"] = max(shares)
        values[f"interpolation/norm_excess/{key}"] = max(row["norm_excess"] for row in members)
    return values


def _words(rows: Rows, extra: Row, words: Words) -> None:
    headers = ["line", "norm of ends", "norm between", "MSE of ends", "mean jump", "largest jump", "largest/ends"]
    spacing = several(rows, "tau", "steps")
    lines = [
        [
            *([row["tau"]] if spacing else []),
            f"{row['first_sample']}-{row['last_sample']}",
            f"{row['norm_first']:.2f}, {row['norm_last']:.2f}",
            f"{row['norm_min']:.2f} to {row['norm_max']:.2f}",
            *(significant(row[name], 3) for name in ("mse_ends", "mse_mean_jump", "mse_largest_jump")),
            significant(row["largest_jump_share"], 3),
        ]
        for row in rows
    ]
    words.say(in_unit("\nInterpolation: norms of latents along the line; MSE on [0, 1]", rows))
    words.table(["τ", *headers] if spacing else headers, lines)


PART = Part(
    name="interpolation",
    title="Interpolation",
    caption="Along the lines",
    about="Slerp between the latents of two samples, η = 0. Jumps are mean squared errors between neighbouring images; "
    "a largest jump of 1 of the ends' distance is a line that changes at one place only.",
    columns={
        "line": ("line", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "MSE of ends": ("mse_ends", 3),
        "mean jump": ("mse_mean_jump", 3),
        "largest jump": ("mse_largest_jump", 3),
        "largest / ends": ("largest_jump_share", 3),
    },
    pictures=["interpolation-lines*.png", "interpolation-corners*.png"],
    keys=[
        ("interpolation/results", "table", "interpolation.csv"),
        ("interpolation/<what>", "picture", "lines and corners of interpolated latents"),
        ("interpolation/<what>", "summary", "of the interpolated lines"),
    ],
    summary=_summary,
    words=_words,
)
