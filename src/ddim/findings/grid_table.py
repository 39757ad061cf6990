"""The table of a grid in words: distances by η or sampler and by cost, and everything else that was measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from ddim.findings.columns import MEASURED, Column, distance_of, further, own
from ddim.findings.comparable import by_calls, cost, group_rows, provenance, shows_floor, told_apart
from ddim.findings.files import own_metrics
from ddim.findings.labels import distance_name, eta_order, line_label, sampler_parts, significant, with_sd
from ddim.findings.rows import Floor, GridResult
from ddim.findings.telling import Words


def render_table(rows: Sequence[GridResult], floor: Floor | None, words: Words) -> None:
    """Print the grid (eta or sampler down, S or network calls across), all that was measured, floor and provenance.

    The best of each column is marked, with all that cannot be told apart from it. Rows whose provenance differs get
    tables of their own.
    """
    groups = group_rows(rows, told_apart)
    for differs, members in groups:
        if differs:
            words.say(", ".join(f"{name} {value}" for name, value in differs.items()), "bold underline")
        _pivot(words, members)
        _long(words, members)
        if floor is not None and shows_floor(floor, rows, members[0]):
            words.say(_floor_line(floor, members))
        words.say(_provenance_line(members), "dim")
        if len(groups) > 1:
            words.say()


def _pivot(words: Words, rows: Sequence[GridResult]) -> None:
    calls = by_calls(rows)
    cells = {(line_label(row, rows), cost(row, calls)): row for row in rows}
    down, across = "sampler" if _several(rows) else "η", "network calls" if calls else "S"
    words.say(f"{distance_name(rows[0].features)} by {down} (down) and {across} (across)", "bold")
    labels = sorted({label for label, _ in cells}, key=eta_order)
    costs = sorted({place for _, place in cells})
    of_column = {place: _best([row for (_, p), row in cells.items() if p == place]) for place in costs}
    of_row = {label: _lowest(row.distance for (name, _), row in cells.items() if name == label) for label in labels}

    def text(label: str, place: int) -> str:
        row = cells.get((label, place))
        if row is None or row.distance is None:
            return significant(None)
        marks = "+" * (row.distance == of_row[label]) + "*" * (row in of_column[place])
        return marks + with_sd(row.distance, row.distance_sd)

    lines = [[label, *(text(label, place) for place in costs)] for label in labels]
    marked = [cell for line in lines for cell in line if cell.startswith(("*", "+"))]
    headers = [down, *(f"{'nfe≤' if calls else 'S='}{place}" for place in costs)]
    words.table(headers, lines, best=marked)
    together = " or not told apart from it" if any(row.as_good is not None for row in rows) else ""
    marks = [f"* lowest of its column{together}"] * (len(labels) > 1) + ["+ lowest of its row"] * (len(costs) > 1)
    words.say(", ".join(marks) + ("\n" if marks else ""))


def _several(rows: Sequence[GridResult]) -> bool:
    """Whether lines are samplers and not η alone."""
    return len({tuple(sampler_parts(row)) for row in rows}) > 1


def _best(rows: Sequence[GridResult]) -> list[GridResult]:
    """The rows of the lowest distance, with those that cannot be told apart from it."""
    lowest = _lowest(row.distance for row in rows)
    return [row for row in rows if lowest is not None and (row.distance == lowest or row.as_good)]


def _lowest(values: Iterable[float | None]) -> float | None:
    """The best of several distances; None where there is nothing to compare."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return min(known) if len(known) > 1 else None


def _long(words: Words, rows: Sequence[GridResult]) -> None:
    shown = [column for column in further(rows[0].features) if any(row.value(column.name) is not None for row in rows)]
    shown += [own(name) for name in own_metrics(rows)]
    calls, unbiased = by_calls(rows), any(row.frechet_distance_unbiased is not None for row in rows)
    lines = []
    for row in sorted(rows, key=lambda row: (eta_order(line_label(row, rows)), cost(row, calls), row.steps)):
        texts = [
            str(row.steps),
            str(row.nfe),
            line_label(row, rows),
            row.tau,
            _measured(row, distance_of(row.features)),
        ]
        texts += [significant(row.frechet_distance_unbiased)] * unbiased
        texts += [_measured(row, column) for column in shown]
        lines.append([*texts, significant(row.seconds, 3), significant(row.images_per_second, 3)])
    name = distance_name(rows[0].features).split()[0]
    headings = [f"{name} unbiased"] * unbiased + [column.heading for column in shown]
    label = "sampler" if _several(rows) else "η"
    words.table(["S", "nfe", label, "τ", name, *headings, "seconds", "images/s"], lines)
    words.say()


def _measured(row: GridResult, column: Column) -> str:
    return with_sd(row.value(column.name), row.value(column.sd), column.digits)


def _floor_line(floor: Floor, rows: Sequence[GridResult]) -> str:
    headings = {distance_of(rows[0].features).name: distance_name(rows[0].features)}
    columns = [*MEASURED.values(), *map(own, own_metrics(rows))]
    values = [
        f"{headings.get(column.name, column.heading)} {significant(floor.metrics[column.name], column.digits)}"
        for column in columns
        if column.name in floor.metrics
    ]
    return f"floor ({floor.num_images:,} real held-out images): {', '.join(values) or 'not measured'}"


def _provenance_line(rows: Sequence[GridResult]) -> str:
    row = rows[0]
    stated = provenance(row) | {"sampler": ", ".join(dict.fromkeys(provenance(row)["sampler"] for row in rows))}
    parts = [f"{name} {value}" for name, value in stated.items() if value != "unknown"]
    source = [row.reference_source, None if row.reference_images is None else f"{row.reference_images} images"]
    known = ", ".join(text for text in source if text)
    return " | ".join(parts) + (f" ({known})" if known else "") + (f" | device {row.device}" if row.device else "")
