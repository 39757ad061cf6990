"""The tables of a report: values as texts, with the best of each column marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ddim.display.page.entries import Entry, heading, measured_alike
from ddim.findings.columns import Column, distance_of, further, own
from ddim.findings.comparable import by_calls, cost, shows_floor
from ddim.findings.files import own_metrics
from ddim.findings.labels import distance_name, sampler_parts, significant, title_order, with_sd
from ddim.findings.part import title_of
from ddim.findings.reading import PaperComparison


@dataclass(frozen=True)
class Cell:
    """small: further lines under the text."""

    text: str
    best: bool = False
    small: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """The first cell of each row is its heading. `foot` rows stand apart, `note` below."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Sequence[Cell]] = field(default_factory=tuple)
    note: str = ""


def grid_tables(entries: Sequence[Entry]) -> list[Table]:
    """For each set of distances that may be ranked: η down and S across, then all that was measured."""
    tables = []
    for differs, members in measured_alike(entries):
        tables += [_pivot(members, heading(members, differs)), _long(members, heading(members, differs), entries)]
    return tables


def paper_table(comparison: PaperComparison) -> list[Table]:
    """For each spacing: own number, the paper's and the difference in every cell."""
    tables = []
    for tau in dict.fromkeys(str(row.get("tau")) for row in comparison.rows):
        members = [row for row in comparison.rows if str(row.get("tau")) == tau]
        cells = {(title_of(row), _number(row["steps"])): row for row in members}
        all_steps = sorted({steps for _, steps in cells if steps is not None})
        rows = [
            [Cell(label), *(_beside(cells.get((label, steps))) for steps in all_steps)]
            for label in sorted({label for label, _ in cells}, key=title_order)
        ]
        tables.append(Table(f"{comparison.title}, τ {tau}", ["", *(f"S = {steps:g}" for steps in all_steps)], rows))
    return tables


def not_comparable(comparison: PaperComparison) -> list[str]:
    """Each reason why numbers cannot be compared with the paper's, with the rows it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in comparison.rows:
        where = f"{title_of(row)}, S = {value_text(row['steps'])}"
        for reason in str(row.get("not_comparable_because") or "").split("; "):
            if reason:
                reasons.setdefault(reason, []).append(where)
    everywhere = len(comparison.rows)
    return [
        f"{text}: {'all rows' if len(where) == everywhere else '; '.join(where)}" for text, where in reasons.items()
    ]


def value_text(value: Any, digits: int = 4) -> str:
    """A cell of a file as text: numbers with so many significant digits, whole ones as they are."""
    if isinstance(value, float):
        return f"{value:g}" if value == round(value, 1) and abs(value) < 1e6 else significant(value, digits)
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return str(value)


def measured_text(value: Any, digits: int = 4, sd: float | None = None) -> str:
    """A measured number with its digits, or with its standard deviation; "–" where there is none."""
    number = _number(value)
    return "–" if number is None else with_sd(number, sd, digits)


def _pivot(entries: Sequence[Entry], name: str) -> Table:
    rows_of = [entry.row for entry in entries]
    calls = by_calls(rows_of)
    cells = {(entry.label, cost(entry.row, calls)): entry for entry in entries}
    costs = sorted({place for _, place in cells})
    marked = {place: _lowest([entry for (_, p), entry in cells.items() if p == place]) for place in costs}
    rows = [
        [Cell(label), *(_distance(cells.get((label, place)), marked[place]) for place in costs)]
        for label in _labels(entries)
    ]
    note = ""
    if any(cell.best for row in rows for cell in row):
        together = ", or not told apart from it" if any(row.as_good is not None for row in rows_of) else ""
        note = f"Marked: the lowest of its column{together}."
    down = "sampler" if len({tuple(sampler_parts(row)) for row in rows_of}) > 1 else "η"
    across, column = ("network calls", "nfe ≤") if calls else ("S", "S =")
    headers = ["", *(f"{column} {place}" for place in costs)]
    return Table(f"{name} by {down} (down) and {across} (across)", headers, rows, note=note)


def _lowest(entries: Sequence[Entry]) -> list[Entry]:
    """Those of the lowest distance, with all that cannot be told apart from it.

    `as_good` speaks of the best of a row's own evaluation and setting, which is not the best of the table where
    another one stands beside it.
    """
    lowest = _best(min, [entry.row.distance for entry in entries])
    found = [entry for entry in entries if _is(entry.row.distance, lowest)]
    beside = {entry.variant for entry in found}
    return [entry for entry in entries if entry in found or (entry.row.as_good and entry.variant in beside)]


def _distance(entry: Entry | None, marked: Sequence[Entry]) -> Cell:
    # Not sampled and not measured are not told apart: there is nothing to be seen either way.
    if entry is None:
        return Cell(measured_text(None))
    row = entry.row
    return Cell(measured_text(row.distance, sd=row.distance_sd), entry in marked)


def _long(entries: Sequence[Entry], name: str, everyone: Sequence[Entry]) -> Table:
    short = distance_name(entries[0].row.features).split()[0]
    rows_of = [entry.row for entry in entries]
    columns = [
        replace(distance_of(rows_of[0].features), heading=short),
        *(
            [Column("frechet_distance_unbiased", f"{short} unbiased", 4)]
            * any(row.frechet_distance_unbiased is not None for row in rows_of)
        ),
        *(
            column
            for column in further(rows_of[0].features)
            if any(row.value(column.name) is not None for row in rows_of)
        ),
        *map(own, own_metrics(rows_of)),
        Column("seconds", "seconds", 3),
        Column("images_per_second", "images/s", 3, "max"),
        Column("seconds_per_50000", "s per 50,000", 3),
    ]
    best = {}
    for column in columns:
        better = column.best()
        best[column.name] = None if better is None else _best(better, [row.value(column.name) for row in rows_of])
    rows = []
    for label in _labels(entries):
        for entry in sorted((e for e in entries if e.label == label), key=lambda e: e.row.steps):
            row = entry.row
            cells = [Cell(label), Cell(str(row.steps)), Cell(str(row.nfe))]
            for column in columns:
                value = row.value(column.name)
                text = measured_text(value, column.digits, row.value(column.sd))
                cells.append(Cell(text, _is(value, best[column.name])))
            rows.append(cells)
    headers = ["", "S", "nfe", *(column.heading for column in columns)]
    foot = [
        [Cell(label), *[Cell("")] * 2, *(Cell(_floor_text(values, column)) for column in columns)]
        for label, values in _floors(entries, everyone).items()
    ]
    return Table(f"{name}: all that was measured", headers, rows, foot, "Marked: the best of its column.")


def _floor_text(values: Any, column: Column) -> str:
    return measured_text(values[column.name], column.digits) if column.name in values else ""


def _floors(entries: Sequence[Entry], everyone: Sequence[Entry]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in entries:
        rows = [other.row for other in everyone if other.letter == entry.letter]
        if entry.floor is not None and shows_floor(entry.floor, rows, entry.row):
            known = found.values()
            if entry.floor.metrics not in known:
                letter = f"{entry.letter}, " if any(other.letter != entry.letter for other in entries) else ""
                found[f"{letter}floor"] = entry.floor.metrics
    return found


def _labels(entries: Iterable[Entry]) -> list[str]:
    """Lines of tables: by variant, then by η."""
    variants = list(dict.fromkeys(entry.variant for entry in entries))
    keys = {entry.label: (variants.index(entry.variant), title_order(entry.eta)) for entry in entries}
    return sorted(keys, key=keys.__getitem__)


def _beside(row: Any) -> Cell:
    if row is None:
        return Cell("–")
    difference, paper = _number(row["difference"]), _number(row["paper"])
    sign = "" if difference is None or difference < 0 else "+"
    # No digits are added to what the paper prints.
    small = ["not in the paper"] if paper is None else [f"paper {paper:.10g}"]
    return Cell(
        measured_text(row["measured"], sd=_number(row.get("measured_sd"))),
        small=small + ([f"{sign}{significant(difference, 3)}"] if difference is not None else []),
    )


def _best(better: Callable[..., float], values: Iterable[float | None]) -> float | None:
    """None where there is nothing to choose from."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return better(known) if len(known) > 1 else None


def _is(value: float | None, best: float | None) -> bool:
    return best is not None and value == best


def _number(value: Any) -> float | None:
    """Files hold numbers that are not finite as texts."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return float(value) if value in ("nan", "inf", "-inf") else None
