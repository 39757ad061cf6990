"""The files of an evaluation (results.csv, results.json) and its terminal table.

The records themselves live in `ddim.records` and are importable from here as well. `python -m ddim.results DIR ...`
collects the results of evaluations and of sweeps (`ddim.collect`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddim.errors import UserError
from ddim.files import write_atomically
from ddim.paths import usable_path
from ddim.records import (
    COLUMNS,
    REQUIRED_COLUMNS,
    Floor,
    GridResult,
    distance_name,
    eta_label,
    eta_order,
    group_rows,
    jsonable,
    provenance,
    shows_floor,
    significant,
)
from ddim.terminal import Terminal

__all__ = [
    "COLUMNS",
    "CSV_NAME",
    "Floor",
    "GridResult",
    "Results",
    "distance_name",
    "eta_label",
    "eta_order",
    "group_rows",
    "provenance",
    "read_results",
    "render_table",
    "shows_floor",
    "significant",
    "write_atomically",
    "write_results",
]

CSV_NAME, JSON_NAME = "results.csv", "results.json"
# What reading a damaged or foreign file raises.
UNREADABLE = (
    *(OSError, csv.Error, ValueError, ArithmeticError, LookupError),
    *(TypeError, AttributeError, RecursionError),
)
_OPTIONAL = {
    "KID": ("kid_mean", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "IS": ("inception_score_mean", 4),
}


class Results(NamedTuple):
    rows: list[GridResult]
    floor: Floor | None
    extra: dict[str, Any]


def write_results(
    directory: str | os.PathLike[str],
    rows: Sequence[GridResult],
    floor: Floor | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write results.csv and results.json; call it after each finished point, a killed run then keeps what it had.

    CSV: booleans as true/false, timesteps separated by spaces, None empty. JSON: also the floor and `extra` (anything
    JSON-able, tensors and arrays included); numbers that are not finite become the strings "nan", "inf", "-inf".
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    own = own_metrics(rows)
    writer.writerow([*COLUMNS, *own])
    writer.writerows(
        [
            *(csv_cell(getattr(row, column)) for column in COLUMNS),
            *(csv_cell(dict(row.other_metrics or ()).get(name)) for name in own),
        ]
        for row in rows
    )
    document = {
        "format": 1,
        "rows": [row.as_record() for row in rows],
        "floor": None if floor is None else jsonable(vars(floor)),
        "extra": jsonable(extra or {}),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    where = Path(directory)
    write_atomically((where / CSV_NAME, table.getvalue().encode()), (where / JSON_NAME, text.encode()))


def read_results(directory: str | os.PathLike[str]) -> Results:
    """Inverse of `write_results`; without a results.json, the rows of results.csv alone (no floor, nothing extra).

    Columns that only some versions write may be missing and unknown ones are ignored. Raises UserError naming the
    file when there is none or when it cannot be understood.
    """
    where = usable_path(directory, "directory")
    path = where / JSON_NAME if (where / JSON_NAME).is_file() else where / CSV_NAME
    try:
        text = path.read_text(encoding="utf-8-sig")
        document: dict[str, Any] = (
            json.loads(text) if path.suffix == ".json" else {"rows": list(csv.DictReader(io.StringIO(text)))}
        )
        rows = [_row(record) for record in document["rows"]]
        floor = document.get("floor")
        if floor is not None:
            metrics = {name: float(value) for name, value in floor["metrics"].items()}
            floor = Floor(floor["num_images"], metrics, floor.get("features"), floor.get("reference"))
        return Results(rows, floor, document.get("extra", {}))
    except FileNotFoundError:
        raise UserError(f"no {JSON_NAME} or {CSV_NAME} in '{where}': name the directory of an evaluation.") from None
    except UNREADABLE as error:
        raise UserError(f"'{path}' is not a result file of an evaluation: {error}.") from error


def _row(record: Mapping[str, Any]) -> GridResult:
    missing = [name for name in REQUIRED_COLUMNS if name not in record]
    if missing:
        raise ValueError(f"column {', '.join(missing)} is missing")
    return GridResult(**{name: value for name, value in record.items() if name in (*COLUMNS, "other_metrics")})


def own_metrics(rows: Sequence[GridResult]) -> list[str]:
    """The names of a user's own metrics in `rows`, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name, _ in row.other_metrics or ()))


def csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def render_table(rows: Sequence[GridResult], floor: Floor | None = None, terminal: Terminal | None = None) -> None:
    """Print the grid (eta down, S across, best of each column marked), every measured number, floor and provenance.

    Rows whose provenance differs get tables of their own. `terminal` is standard output by default.
    """
    terminal = terminal or Terminal()
    groups = group_rows(rows)
    for differs, members in groups:
        if differs:
            terminal.say(", ".join(f"{name} {value}" for name, value in differs.items()), "bold underline")
        terminal.say(f"{distance_name(members[0].features)} by η (down) and S (across)", "bold")
        _pivot(terminal, members)
        _long(terminal, members)
        if floor is not None and shows_floor(floor, rows, members[0]):
            terminal.say(_floor_line(floor, members))
        terminal.say(_provenance_line(members[0]), "dim")
        if len(groups) > 1:
            terminal.say()


def _pivot(terminal: Terminal, rows: Sequence[GridResult]) -> None:
    cells = {(eta_label(row), row.steps): row.frechet_distance for row in rows}
    labels = sorted({label for label, _ in cells}, key=eta_order)
    all_steps = sorted({steps for _, steps in cells})
    of_column = {steps: _lowest(d for (_, s), d in cells.items() if s == steps) for steps in all_steps}
    of_row = {label: _lowest(d for (name, _), d in cells.items() if name == label) for label in labels}

    def text(label: str, steps: int) -> str:
        value = cells.get((label, steps))
        if value is None:
            return significant(value)
        return "+" * (value == of_row[label]) + "*" * (value == of_column[steps]) + significant(value)

    lines = [[label, *(text(label, steps) for steps in all_steps)] for label in labels]
    marked = [cell for line in lines for cell in line if cell.startswith(("*", "+"))]
    terminal.table(["η", *(f"S={steps}" for steps in all_steps)], lines, best=marked)
    marks = ["* lowest of its column"] * (len(labels) > 1) + ["+ lowest of its row"] * (len(all_steps) > 1)
    terminal.say(", ".join(marks) + ("\n" if marks else ""))


def _lowest(values: Iterable[float | None]) -> float | None:
    """The best of several distances; None where there is nothing to compare."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return min(known) if len(known) > 1 else None


def _long(terminal: Terminal, rows: Sequence[GridResult]) -> None:
    shown = {h: spec for h, spec in _OPTIONAL.items() if any(getattr(row, spec[0]) is not None for row in rows)}
    name, own = distance_name(rows[0].features).split()[0], own_metrics(rows)
    lines = []
    for row in sorted(rows, key=lambda row: (eta_order(eta_label(row)), row.steps)):
        texts = [str(row.steps), str(row.nfe), eta_label(row), row.tau, significant(row.frechet_distance)]
        texts += [significant(getattr(row, attribute), digits) for attribute, digits in shown.values()]
        texts += [significant(dict(row.other_metrics or ()).get(metric)) for metric in own]
        lines.append([*texts, significant(row.seconds, 3), significant(row.images_per_second, 3)])
    terminal.table(["S", "nfe", "η", "τ", name, *shown, *own, "seconds", "images/s"], lines)
    terminal.say()


def _floor_line(floor: Floor, rows: Sequence[GridResult]) -> str:
    names = {distance_name(rows[0].features): ("frechet_distance", 4), **_OPTIONAL}
    names |= {metric: (metric, 4) for metric in own_metrics(rows)}
    metrics = floor.metrics
    values = [f"{name} {significant(metrics[key], digits)}" for name, (key, digits) in names.items() if key in metrics]
    return f"floor ({floor.num_images:,} real held-out images): {', '.join(values) or 'not measured'}"


def _provenance_line(row: GridResult) -> str:
    parts = [f"{name} {value}" for name, value in provenance(row).items() if value != "unknown"]
    source = [row.reference_source, None if row.reference_images is None else f"{row.reference_images} images"]
    known = ", ".join(text for text in source if text)
    return " | ".join(parts) + (f" ({known})" if known else "") + (f" | device {row.device}" if row.device else "")


if __name__ == "__main__":
    # Run and not imported: what collects results stands above what a result is.
    runpy.run_module("ddim.collect", run_name="__main__")
