"""A section of a report filled with what an evaluation has found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddim.report.charts import Chart, Series, build_chart, is_finite
from ddim.report.pictures import Picture, inlined
from ddim.report.reading import Evaluation, Part, Row
from ddim.report.sections import Line, Section
from ddim.report.tables import Cell, Table, eta_of, measured_text, value_text


@dataclass(frozen=True)
class Shown:
    """A section of one evaluation. Pictures have the text that stands for them."""

    table: Table
    charts: Sequence[Chart]
    pictures: Sequence[tuple[str, Picture]]
    animations: Sequence[tuple[str, Picture]]


def shown(section: Section, evaluation: Evaluation, number: int) -> Shown:
    """A section of an evaluation that has the part. number: of the evaluation, for the keys of charts."""
    part = evaluation.parts[section.part]
    animations = _pictures(evaluation, [section.animations]) if section.animations else []
    return Shown(
        _table(section, part),
        list(_charts(section, part.rows, number)),
        _pictures(evaluation, section.pictures),
        animations,
    )


def _table(section: Section, part: Part) -> Table:
    several = len({str(row.get("tau")) for row in part.rows}) > 1
    columns = {title: spec for title, spec in section.columns.items() if title != "τ" or several}
    rows = [[_cell(row, *spec) for spec in columns.values()] for row in section.rows(part.rows)]
    foot = []
    if section.closing is not None and isinstance(part.extra.get(section.closing[0]), dict):
        real = part.extra[section.closing[0]]
        settings = [column for column, digits in columns.values() if digits is None]
        cells = [_cell(real, column, digits) if column in real else Cell("") for column, digits in columns.values()]
        foot.append([Cell(section.closing[1]), *cells[1:]] if settings else cells)
    return Table(section.caption, list(columns), rows, foot)


def _cell(row: Row, column: str, digits: int | None) -> Cell:
    if column == "eta":
        return Cell(eta_of(row))
    value = row.get(column)
    return Cell(value_text(value) if digits is None else measured_text(value, digits))


def _charts(section: Section, rows: Sequence[Row], number: int) -> Iterator[Chart]:
    for line in section.lines:
        series = _series(line, rows)
        levels: list[tuple[str, float]] = []
        if line.level is not None and rows:
            value = rows[0].get(line.level[0]) if isinstance(line.level[0], str) else line.level[0]
            levels = [(line.level[1], float(value))] if is_finite(value) else []
        key = f"{section.part}-{line.column}-{number}"
        labels = (*line.x[1:], line.y_label)
        chart = build_chart(
            key, line.title, labels, series, levels, x_log=line.x_log, y_log=line.y_log, reverse=line.x[0] == "timestep"
        )
        if series:
            yield chart


def _series(line: Line, rows: Sequence[Row]) -> list[Series]:
    found: dict[tuple[str, str], list[tuple[float, float, str]]] = {}
    taus = list(dict.fromkeys(str(row.get("tau")) for row in rows))
    for row in rows:
        x, y = row.get(line.x[0]), row.get(line.column)
        if is_finite(x) and is_finite(y):
            found.setdefault((eta_of(row), str(row.get("tau"))), []).append((x, y, measured_text(y)))
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
