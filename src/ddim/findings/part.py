"""How a part of an evaluation is told: its names, columns, curves, keys and words, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddim.findings.files import options_apart, write_rows
from ddim.findings.labels import curve_key, eta_label, eta_title
from ddim.findings.telling import Panel, Row, Words

Rows = Sequence[Row]
# Heading -> (column, significant digits); those with None digits say what a row is of.
Columns = Mapping[str, tuple[str, int | None]]
PIXEL_UNIT = "on [0, 1]"
# (name, kind, what): a family of keys of W&B; "curve" and "samples" (pictures) are drawn against S, the other kinds are
# "chart", "table", "picture" and "summary", a column of the run table.
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Chart:
    """A chart that W&B draws itself: rows (x, y, name of the line) below the names of these columns."""

    key: str
    title: str
    columns: tuple[str, str, str]
    rows: Sequence[tuple[Any, Any, str]]


def _but_timesteps(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    apart = options_apart(rows)
    columns = list(dict.fromkeys(key for row in apart for key in row if "timesteps" not in key))
    return columns, [[row.get(column) for column in columns] for row in apart]


@dataclass(frozen=True)
class Line:
    """A curve of `column` against `x`, in the page, in a figure and in W&B alike.

    Attributes:
        title, y_label: of the chart in the page.
        level: a horizontal line: a value, or the column that has it, and what it is.
        y_log: None lets the values decide.
        x: column, name and label of the x-axis.
        panel: the label of the axis in the figure; none is drawn where it is empty.
    """

    column: str
    title: str
    y_label: str
    level: tuple[str | float, str] | None = None
    y_log: bool | None = None
    x: tuple[str, str, str] = ("steps", "S", "S (sampling steps)")
    x_log: bool = True
    panel: str = ""


@dataclass(frozen=True)
class Part:
    """What everybody who shows a part has to know of it.

    Attributes:
        name: in `evaluation.parts`, and of its files.
        title, caption, about: of its section in the page; `caption` is the table's.
        columns: of its table in the page.
        lines: curves.
        pictures, animations: patterns of file names.
        keys: families of W&B keys.
        curves: row -> the values of W&B's curves that it adds a point to.
        summary: columns of W&B's run table.
        table: the columns and cells of the table in W&B; None logs none.
        charts: further charts in W&B.
        gallery: columns of a table of pictures, and their cells for each row with images, the picture apart.
        images_caption: of the images of a row.
        words: what the terminal says in the end.
        shown_rows: which rows the table has, where not all.
        closing: a further row of the page's table, from what the file holds beside the rows.
        file: of its rows, without the ending.
        prefix: of the names of its pictures.
        write: writes its rows.
        fresh: whether the rows of an earlier evaluation in the same directory give way before there are new ones.
        label: (row, rows) -> what its line is called in the page, where that is more than sampler and η.
    """

    name: str
    title: str
    caption: str
    about: str
    columns: Columns
    pictures: Sequence[str] = ()
    lines: Sequence[Line] = ()
    animations: str = ""
    keys: Sequence[Key] = ()
    curves: Callable[[Row], Mapping[str, Any]] = lambda row: {}
    summary: Callable[[Rows, Row], Mapping[str, Any]] = lambda rows, extra: {}
    table: Callable[[Rows], tuple[Sequence[str], Sequence[Sequence[Any]]]] | None = _but_timesteps
    charts: Callable[[Rows], Sequence[Chart]] = lambda rows: ()
    gallery: Callable[[Rows], tuple[Sequence[str], Sequence[Sequence[Any]]]] | None = None
    images_caption: Callable[[Row], str] = lambda row: ""
    words: Callable[[Rows, Row, Words], None] = lambda rows, extra, words: None
    shown_rows: Callable[[Rows], Rows] = list
    closing: tuple[str, str] | None = None
    file: str = ""
    prefix: str | None = None
    write: Callable[[Path, str, Rows, Row], None] = write_rows
    fresh: bool = False
    label: Callable[[Row, Rows], str] | None = None

    def table_name(self) -> str:
        """Of the files that hold the rows, without the ending."""
        return self.file or self.name

    def picture_name(self, what: str) -> str:
        """`consistency-images`, without the ending."""
        return f"{self.name}-{what}" if self.prefix is None else f"{self.prefix}{what}"


def panel(line: Line, curves: Mapping[str, Rows]) -> Panel:
    """The axes of a line: {label: rows in order}."""
    drawn = {label: [(row[line.x[0]], row[line.column]) for row in rows] for label, rows in curves.items()}
    level = None
    if line.level is not None:
        first = next(iter(curves.values()))[0]
        value, text = line.level
        level = (first[value] if isinstance(value, str) else value, text)
    first_row = next(iter(curves.values()))[0]
    return Panel(in_unit(line.panel, [first_row]), drawn, log=line.y_log is not False, level=level, xlabel=line.x[2])


def in_unit(text: str, rows: Rows) -> str:
    """A text about errors of pixels, which are on [0, 1], as one about those of rows that say another unit."""
    unit = rows[0].get("unit") if rows else None
    if unit is None:
        return text
    for words in ("pixels: ", "of pixels ", "pixel "):
        text = text.replace(words, "")
    return text.replace(PIXEL_UNIT, str(unit))


def by_curve(rows: Rows) -> dict[str, list[Row]]:
    """Rows of one η, τ and sampler together, {`curve_key`: rows}, in order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(curve_key(row), []).append(row)
    return found


def suffix(tau: str, rows: Rows) -> str:
    """Tells the pictures of several spacings apart."""
    return f"-{tau}" if several(rows, "tau") else ""


def several(rows: Rows, *columns: str) -> bool:
    """Whether rows differ in one of the columns."""
    return len({tuple(str(row.get(column)) for column in columns) for row in rows}) > 1


def title_of(row: Any) -> str:
    """ "η = 0.5" of a row or a point."""
    return eta_title(eta_label(row))


def stated(about: Mapping[str, Any]) -> str:
    """ "weights ema · τ linear": what is known."""
    return " · ".join(f"{name} {value}" for name, value in about.items() if value is not None)


def numbers(rows: Rows, columns: Iterable[str], key: Callable[[Row], str], name: str) -> dict[str, float]:
    """{`name/column/key`: value} of what is known."""
    return {
        f"{name}/{column}/{key(row)}": row[column] for row in rows for column in columns if row.get(column) is not None
    }
