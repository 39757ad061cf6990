"""Captions, as they are told: how often what was asked for is there, by scale of guidance and number of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ddim.findings.labels import curve_key, line_label, point_key, solver_parts, with_sd
from ddim.findings.part import Chart, Line, Part, Rows, numbers, several, title_of
from ddim.findings.telling import Captioned, Curves, Panel, Picture, Row, Words

# What a kind of captions is called in the data set, and in the tables.
KINDS = {"new wording": "new wording", "new combination": "new combination", "trained": "trained on"}
RIGHT = Line(
    "right",
    "Captions drawn right against S",
    "share with both digits in their places",
    level=("ceiling", "real images"),
    y_log=False,
)


@dataclass(frozen=True)
class Drawn:
    """Images of a point: uint8 (n, C, H, W), and of each its caption, that one's kind, and whether it is right."""

    images: Any
    captions: Sequence[str]
    kinds: Sequence[str]
    right: Sequence[bool]


def column_of(kind: str) -> str:
    """ "right_new_wording": the share of a kind of captions."""
    return f"right_{kind.replace(' ', '_')}"


def with_error(row: Row, column: str) -> str:
    """ "0.962 ± 0.0086" """
    return with_sd(row.get(column), row.get(f"{column}_error"), 3)


def pictures(rows: Rows, drawn: Sequence[Drawn]) -> Iterator[tuple[str, Picture, str]]:
    """(what, picture, caption). drawn: of each row; of each curve against S the last one is shown."""
    last = {curve_key(row): (row, images) for row, images in zip(rows, drawn, strict=True)}
    for key, (row, some) in last.items():
        label = line_label(row, rows)
        about = label if not label[:1].isdigit() else title_of(row)
        title = f"{row.get('dataset', 'samples')}, captions never trained on: {about}, S = {row['steps']}"
        name = "images" if len(last) == 1 else f"images-{key.replace('/', '-')}"
        yield name, Captioned(some.images, some.captions, [not right for right in some.right], title), ""
    if several(rows, "scale"):
        yield "scales", Curves([_along_scales(rows)], f"{rows[0].get('dataset', 'samples')}: captions and guidance"), ""


def _along_scales(rows: Rows) -> Panel:
    """The share of held-out captions against the scale of guidance, a line for each kind, sampler and S."""
    lines: dict[str, list[tuple[float, float | None]]] = {}
    for row in rows:
        name = " ".join(solver_parts(row) or ["ddim"]) + f", {title_of(row)}, S = {row['steps']}"
        for kind in ("new wording", "new combination"):
            if row.get(column_of(kind)) is not None:
                lines.setdefault(f"{kind}: {name}", []).append((row["scale"], row[column_of(kind)]))
    level = (rows[0]["ceiling"], "the reader on real test images")
    return Panel(
        "share with both digits in their places", lines, log=False, level=level, xlabel="scale of guidance", x_log=False
    )


def _curves(row: Row) -> dict[str, Any]:
    shares = ["right", "digits", *(column_of(kind) for kind in KINDS)]
    return {f"captions/{name}/{curve_key(row)}": row[name] for name in shares if row.get(name) is not None}


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    """`captions/right/classifier_free/scale2/eta0.000/linear/steps0020` and `captions/right/real`."""
    found = numbers(rows, ["right", "digits", *map(column_of, KINDS)], point_key, "captions")
    return found | {"captions/right/real": extra["real"]["right"]}


def _charts(rows: Rows) -> list[Chart]:
    points = [
        (row["scale"], row["right"], f"{' '.join(solver_parts(row) or ['ddim'])}, S {row['steps']}") for row in rows
    ]
    title = f"{rows[0].get('dataset', 'samples')}: captions drawn right against the scale of guidance"
    return [Chart("scales_chart", title, ("scale", "right", "sampler"), points)] if several(rows, "scale") else []


def _words(rows: Rows, extra: Row, words: Words) -> None:
    words.say(
        f"\nCaptions: the share of {rows[0]['num_images']:,} images of captions never trained on in which both digits "
        "stand where they should, and its standard error",
        "bold",
    )
    shown = [kind for kind in KINDS if any(row.get(column_of(kind)) is not None for row in rows)]
    names = ["right", "digits", *map(column_of, shown)]
    lines = [
        [
            " ".join(solver_parts(row) or ["ddim"]),
            title_of(row),
            f"{row['scale']:g}",
            *(str(row["steps"]), str(row["nfe"])),
            *(with_error(row, name) for name in names),
        ]
        for row in rows
    ]
    real = [with_error(extra["real"], name) for name in names]
    headers = ["sampler", "η", "scale", "S", "nfe", "right", "both digits", *(KINDS[kind] for kind in shown)]
    words.table(headers, [*lines, ["real images", "", "", "", "", *real]])
    words.say(
        "both digits: wherever they stand; real images: what the reader finds right in test images, which samples may "
        "exceed, as they are more alike than handwriting is"
    )


PART = Part(
    name="captions",
    title="Captions",
    caption="Captions drawn right",
    about="Images of captions that training has held out, read by a classifier of digits: both digits in their places, "
    "or both wherever they stand. New wording: the two digits were trained on in these places, and called the other "
    "way round. New combination: never in these places.",
    columns={
        "sampler": ("sampler", None),
        "η": ("eta", None),
        "scale": ("scale", None),
        "S": ("steps", None),
        "nfe": ("nfe", None),
        "images": ("num_images", None),
        "right": ("right", 3),
        "± (right)": ("right_error", 2),
        "both digits": ("digits", 3),
        "new wording": ("right_new_wording", 3),
        "± (new wording)": ("right_new_wording_error", 2),
        "new combination": ("right_new_combination", 3),
        "± (new combination)": ("right_new_combination_error", 2),
        "trained on": ("right_trained", 3),
    },
    pictures=["captions-images*.png", "captions-scales.png"],
    lines=[RIGHT],
    keys=[
        ("captions/<share>/<sampler>/<tau>", "curve", "share of held-out captions drawn right, both digits, by kind"),
        ("captions/scales_chart", "chart", "share drawn right against the scale of guidance"),
        ("captions/results", "table", "captions.csv"),
        ("captions/scales_chart_table", "table", "what `captions/scales_chart` is drawn from"),
        ("captions/images<-sampler>", "picture", "images under their captions, those that are wrong in red"),
        ("captions/scales", "picture", "share drawn right against the scale of guidance"),
        ("captions/<share>/<sampler>/<tau>/<steps>", "summary", "the same shares of each point"),
        ("captions/right/real", "summary", "what the reader finds right in real test images"),
    ],
    curves=_curves,
    summary=_summary,
    charts=_charts,
    words=_words,
    closing=("real", "real test images"),
)
