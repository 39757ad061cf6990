"""Reconstruction, as it is told: the error of encoding to x_T and decoding again, by S."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ddim.findings.labels import sampler_parts, significant
from ddim.findings.part import Line, Part, Rows, by_curve, in_unit, numbers, panel, several, stated, suffix
from ddim.findings.telling import Curves, Picture, Row, Strip, Words

ERROR = Line(
    "mse_per_dimension",
    "Reconstruction error against S",
    "mean squared error per dimension",
    panel="mean squared error per dimension on [0, 1]",
)


def pictures(rows: Rows, originals: Any, images: Sequence[Any]) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption): the originals (n, C, H, W) above what is left of them at each of the rows."""
    data, split = rows[0].get("dataset", "images"), rows[0]["split"]
    title = f"{data}: {split} images, and what is left of them after encoding and decoding with S steps"
    for members in by_curve(rows).values():
        lines = [
            (f"S = {row['steps']}   MSE {significant(row['mse_per_dimension'], 2)}", images[rows.index(row)])
            for row in members
        ]
        strip = Strip([("original", originals), *lines], title, breaks=[1])
        name = "".join(f"-{text}" for text in sampler_parts(members[0]))
        yield f"images{name}{suffix(members[0]['tau'], rows)}", strip, "originals above reconstructions"
    first = rows[0]
    about = {name: first.get(column) for name, column in _ABOUT.items()}
    if not several(rows, "tau"):
        about["τ"] = first["tau"]
    unnamed = ["ddim"] if several(rows, "sampler", "options") else []
    curves = {
        " ".join([*(sampler_parts(row[0]) or unnamed), f"{row[0]['tau']} τ"]): row for row in by_curve(rows).values()
    }
    title = f"{data}: reconstruction error against S, {first['num_images']:,} {split} images"
    yield "error", Curves([panel(ERROR, curves)], title, stated(about)), ""


_ABOUT = {"weights": "weights", "precision": "compute_precision", "schedule": "schedule"}


def _curves(row: Row) -> dict[str, Any]:
    return {f"reconstruction/mse/{_setting(row)}": row["mse_per_dimension"]}


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    """`reconstruction/mse/linear/steps0010`: eta is always 0."""
    keyed = [{**row, "mse": row["mse_per_dimension"]} for row in rows]
    return numbers(keyed, ["mse"], lambda row: f"{_setting(row)}/steps{row['steps']:04d}", "reconstruction")


def _setting(row: Row) -> str:
    """`linear`, or with another solver than DDIM `heun/linear`."""
    return "/".join([*sampler_parts(row), row["tau"]])


def _words(rows: Rows, extra: Row, words: Words) -> None:
    spacing, solvers = several(rows, "tau"), several(rows, "sampler", "options")
    words.say(
        f"\nReconstruction of {rows[0]['num_images']:,} {rows[0]['split']} images: "
        + in_unit("mean squared error per dimension on [0, 1], unclipped", rows),
        "bold",
    )
    lines = [
        [
            *([" ".join(sampler_parts(row)) or "ddim"] if solvers else []),
            *([row["tau"]] if spacing else []),
            str(row["steps"]),
            str(row["encode_nfe"] + row["nfe"]),
            significant(row["mse_per_dimension"], 3),
            significant(row["seconds"], 3),
        ]
        for row in rows
    ]
    stated_columns = [*(["sampler"] if solvers else []), *(["τ"] if spacing else [])]
    words.table([*stated_columns, "S", "network calls", "MSE", "seconds"], lines)


PART = Part(
    name="reconstruction",
    title="Reconstruction",
    caption="Errors",
    about="Real images encoded to x_T and decoded with the same S, η = 0. "
    "The error is the mean squared error per dimension on [0, 1] (the paper's Table 2).",
    columns={
        "sampler": ("sampler", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "images": ("num_images", None),
        "MSE": ("mse_per_dimension", 3),
        "seconds": ("seconds", 3),
    },
    pictures=["reconstruction-images*.png"],
    lines=[ERROR],
    keys=[
        (
            "reconstruction/mse/<tau>",
            "curve",
            "mean squared error per dimension on [0, 1] after encoding and decoding",
        ),
        ("reconstruction/results", "table", "reconstruction.csv"),
        ("reconstruction/images<-tau>", "picture", "test images above their reconstructions"),
        ("reconstruction/error", "picture", "reconstruction error against S"),
        ("reconstruction/mse/<tau>/<steps>", "summary", "reconstruction error of each S"),
    ],
    curves=_curves,
    summary=_summary,
    words=_words,
)
