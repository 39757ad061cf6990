"""Diversity, as it is told: how near samples are to the images that the network learnt from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddim.findings.labels import Setting, noise_key, point_key, significant
from ddim.findings.part import Part, Rows, numbers, several, title_of
from ddim.findings.telling import Row, Strip, Words

NUMBERS = ("precision", "recall", "relative_spread", "nearest_median", "copy_ratio")
ORDINALS = ("nearest", "2nd", "3rd")


def split_name(split: str | None) -> str:
    """How people name a split."""
    return "training" if split == "train" else str(split)


def picture(
    point: Setting, images: Any, neighbours: Mapping[str, Any], distances: Any, split: str, data: str, suffix: str
) -> tuple[str, Strip, str]:
    """(what, picture, caption): samples (n, C, H, W) above their nearest real images.

    neighbours: one of ORDINALS -> images (n, C, H, W). distances: (n,) of the nearest ones.
    """
    strip = Strip(
        [("sample", images), *((f"{split}, {ordinal}", real) for ordinal, real in neighbours.items())],
        f"The samples nearest to a {split} image, and their distances from it: "
        f"{data}, {title_of(point)}, S = {point.steps}",
        [significant(distance, 3) for distance in distances],
        breaks=[1],
    )
    return f"neighbours-{noise_key(point)}{suffix}", strip, f"{title_of(point)}, S {point.steps}"


def _held_out(rows: Rows) -> str:
    return f"real {'test' if rows[0]['reference_split'] == 'train' else 'training'}"


def _summary(rows: Rows, extra: Row) -> dict[str, Any]:
    return numbers(rows, NUMBERS, point_key, "diversity") | numbers(
        [extra["held_out"]], NUMBERS, lambda row: "held_out", "diversity"
    )


def _words(rows: Rows, extra: Row, words: Words) -> None:
    points = several(rows, "tau", "steps")
    headers = ["", "N", "precision", "recall", "spread", "nearest: median", "1 %", "smallest", "copy ratio"]
    names = [title_of(row) + (f", {row['tau']} S {row['steps']}" if points else "") for row in rows]
    held_out, split = _held_out(rows), split_name(rows[0]["reference_split"])
    table = [
        [
            name,
            f"{row['num_samples']:,}",
            *(significant(row.get(key), 3) for key in ("precision", "recall", "relative_spread")),
            *(significant(row[f"nearest_{key}"], 3) for key in ("median", "percentile_1", "smallest")),
            f"{row['copy_ratio']:.3f}",
        ]
        for name, row in zip([*names, held_out], [*rows, extra["held_out"]], strict=True)
    ]
    steps = "" if points else f", S {rows[0]['steps']}"
    against = f"{rows[0]['reference_images']:,} {split} images"
    words.say(f"\nDiversity{steps}: {rows[0]['features']} features against {against}")
    words.table(headers, table)
    words.say(
        f"copy ratio: the share that is no farther from a {split} image than the nearest "
        f"{extra['copy_rate']:.0%} of {held_out} images; {extra['copy_rate']} where nothing is copied"
    )


PART = Part(
    name="diversity",
    title="Diversity",
    caption="Distances from real images",
    about="How near samples are to the real images of the reference. Copy ratio: the share that is no farther from one "
    "of them than the nearest 1% of held-out images; 0.01 where nothing is copied.",
    columns={
        "η": ("eta", None),
        "S": ("steps", None),
        "τ": ("tau", None),
        "images": ("num_samples", None),
        "precision": ("precision", 3),
        "recall": ("recall", 3),
        "spread": ("relative_spread", 3),
        "nearest: median": ("nearest_median", 3),
        "nearest 1%": ("nearest_percentile_1", 3),
        "copy ratio": ("copy_ratio", 3),
    },
    pictures=["diversity-neighbours-*.png"],
    keys=[
        ("diversity/results", "table", "diversity.csv"),
        ("diversity/<what>", "picture", "samples above their nearest training images"),
        (
            "diversity/<number>/<sampler>/<tau>/<steps>",
            "summary",
            "precision, recall, spread, distance to training images",
        ),
        ("diversity/<number>/held_out", "summary", "the same for held-out images"),
    ],
    summary=_summary,
    words=_words,
    closing=("held_out", "real held-out images"),
)
