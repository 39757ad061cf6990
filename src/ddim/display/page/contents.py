"""A section of a report filled with what an evaluation has found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddim.display.page.charts import Chart, Series, build_chart, is_finite
from ddim.display.page.pictures import Picture, inlined
from ddim.display.page.tables import Cell, Table, measured_text, value_text
from ddim.findings.labels import eta_title, line_label
from ddim.findings.part import Line, Part, in_unit, title_of
from ddim.findings.reading import Evaluation, PartRows
from ddim.findings.telling import Row


@dataclass(frozen=True)
class Shown:
    """A section of one evaluation. Pictures have the text that stands for them."""

    table: Table
    charts: Sequence[Chart]
    pictures: Sequence[tuple[str, Picture]]
    animations: Sequence[tuple[str, Picture]]


def shown(part: Part, evaluation: Evaluation, number: int) -> Shown:
    """A section of an evaluation that has the part. number: of the evaluation, for the keys of charts."""
    found = evaluation.parts[part.name]
    animations = _pictures(evaluation, [part.animations]) if part.animations else []
    return Shown(
        _table(part, found),
        list(_charts(part, found.rows, number)),
        _pictures(evaluation, part.pictures),
        animations,
    )


def _table(part: Part, found: PartRows) -> Table:
    several = len({str(row.get("tau")) for row in found.rows}) > 1
    members = part.shown_rows(found.rows)
    # What no row has is of another kind of data, or was not asked for.
    columns = {
        title: (column, digits)
        for title, (column, digits) in part.columns.items()
        if (title != "τ" or several) and any(column in row for row in members)
    }
    rows = [[_cell(row, *spec) for spec in columns.values()] for row in members]
    foot = []
    if part.closing is not None and isinstance(found.extra.get(part.closing[0]), dict):
        real = found.extra[part.closing[0]]
        settings = [column for column, digits in columns.values() if digits is None]
        cells = [_cell(real, column, digits) if column in real else Cell("") for column, digits in columns.values()]
        foot.append([Cell(part.closing[1]), *cells[1:]] if settings else cells)
    return Table(part.caption, list(columns), rows, foot)


def _cell(row: Row, column: str, digits: int | None) -> Cell:
    if column == "eta":
        return Cell(title_of(row))
    value = row.get(column)
    return Cell(value_text(value) if digits is None else measured_text(value, digits))


def _charts(part: Part, rows: Sequence[Row], number: int) -> Iterator[Chart]:
    for line in part.lines:
        series = _series(line, rows, part.label)
        levels: list[tuple[str, float]] = []
        if line.level is not None and rows:
            value = rows[0].get(line.level[0]) if isinstance(line.level[0], str) else line.level[0]
            levels = [(line.level[1], float(value))] if is_finite(value) else []
        key = f"{part.name}-{line.column}-{number}"
        labels = (*line.x[1:], in_unit(line.y_label, rows))
        chart = build_chart(
            key, line.title, labels, series, levels, x_log=line.x_log, y_log=line.y_log, reverse=line.x[0] == "timestep"
        )
        if series:
            yield chart


def _series(line: Line, rows: Sequence[Row], named: Callable[[Row, Sequence[Row]], str] | None = None) -> list[Series]:
    found: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    taus = [""] if named is not None else list(dict.fromkeys(str(row.get("tau")) for row in rows))
    for row in rows:
        x, y = row.get(line.x[0]), row.get(line.column)
        if is_finite(x) and is_finite(y):
            label = eta_title(line_label(row, rows)) if named is None else named(row, rows)
            tau = "" if named is not None else str(row.get("tau"))
            found.setdefault((label, tau), []).append((x, y, measured_text(y)))
    etas = list(dict.fromkeys(eta for eta, _ in found))
    return [
        Series(eta if len(taus) == 1 else f"τ {tau}, {eta}", etas.index(eta), taus.index(tau), sorted(points))
        for (eta, tau), points in found.items()
    ]


def _pictures(evaluation: Evaluation, patterns: Sequence[str]) -> list[tuple[str, Picture]]:
    found = []
    for name, folder in evaluation.folders:
        for path in _files(folder, patterns):
            what = path.stem.replace("-", ", ", 1).replace("-", " ")
            found.append((f"{name}: {what}" if name else what, inlined(path)))
    return found


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(path for path in folder.glob(pattern) if path.is_file())
