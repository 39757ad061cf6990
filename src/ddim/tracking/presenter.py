"""Shows what the parts of an evaluation find in its loggers: curves against S, tables, charts, the run table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import PIL.Image
import pytorch_lightning as pl

from ddim.findings.labels import curve_key, point_key
from ddim.findings.telling import Audience, Findings, Picture, Row
from ddim.tracking.show import (
    show_animation,
    show_image,
    show_line_chart,
    show_pictures,
    show_point,
    show_summary,
    show_table,
)


class Drawn(Protocol):
    """Whoever draws the pictures, and is told of them first."""

    last: PIL.Image.Image | Path | None
    samples: PIL.Image.Image | None


class Tracked(Audience):
    """Hands findings to the loggers of `trainer`; what is drawn is taken from `drawn`, which has drawn it already."""

    def __init__(self, trainer: pl.Trainer, drawn: Drawn) -> None:
        self.trainer = trainer
        self.drawn = drawn
        # By `point_key`, of the part that is at work.
        self.samples: dict[str, PIL.Image.Image] = {}

    def begin(self, said: Findings) -> None:
        self.samples = {}

    def row(self, said: Findings, rows: Sequence[Row], images: Any) -> None:
        for row in rows:
            values = dict(said.part.curves(row))
            if images is not None and self.drawn.samples is not None:
                self.samples[point_key(row)] = values[f"samples/{curve_key(row)}"] = self.drawn.samples
            if values:
                show_point(self.trainer, row["steps"], row["nfe"], values, said.part.images_caption(row))

    def picture(self, said: Findings, what: str, picture: Picture, caption: str) -> None:
        key, drawn = f"{said.part.name}/{what}", self.drawn.last
        if isinstance(drawn, PIL.Image.Image):
            show_image(self.trainer, key, drawn, caption)
        elif drawn is not None:
            show_animation(self.trainer, f"{key}-animation", drawn, caption)

    def end(self, said: Findings) -> None:
        name, part, rows = said.part.name, said.part, said.rows
        if part.table is not None:
            columns, cells = part.table(rows)
            show_table(self.trainer, f"{name}/results", columns, [[_cell(value) for value in row] for row in cells])
        if part.gallery is not None:
            columns, cells = part.gallery(rows)
            drawn = [self.samples[point_key(row)] for row in rows]
            show_pictures(
                self.trainer,
                f"{name}/pictures",
                columns,
                [[*texts, picture] for texts, picture in zip(cells, drawn, strict=True)],
            )
        for chart in part.charts(rows):
            show_line_chart(self.trainer, f"{name}/{chart.key}", chart.title, chart.columns, chart.rows)
        show_summary(self.trainer, part.summary(rows, said.extra))


def _cell(value: Any) -> Any:
    """What W&B's tables take: a column has one type there, which settings that differ from row to row have not."""
    return ", ".join(f"{key}={item}" for key, item in value.items()) if isinstance(value, Mapping) else value
