"""The files of an evaluation (results.csv, results.json) and its terminal table.

The records themselves live in `ddim.records` and are importable from here as well.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ddim.errors import UserError
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

__all__ = [
    "COLUMNS",
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
_OPTIONAL = {
    "KID": ("kid_mean", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "IS": ("inception_score_mean", 4),
}
_ASCII = {"σ̂": "sigma_hat", "η": "eta", "τ": "tau"}


class Results(NamedTuple):
    rows: list[GridResult]
    floor: Floor | None
    extra: dict[str, Any]


def write_atomically(*files: tuple[Path, bytes]) -> None:
    """Write files so that each is at any time whole, old or new: all temporaries first, then the renames."""
    pending: list[tuple[Path, Path]] = []
    try:
        for path, content in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            pending.append((temporary, path))
            with open(temporary, "xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, path in pending:
            os.replace(temporary, path)
    finally:
        for temporary, _ in pending:
            temporary.unlink(missing_ok=True)


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
    writer.writerow(COLUMNS)
    writer.writerows([_cell(value) for value in vars(row).values()] for row in rows)
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
    where = Path(directory)
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
    except (csv.Error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"'{path}' is not a result file of an evaluation: {error}.") from error


def _row(record: Mapping[str, Any]) -> GridResult:
    missing = [name for name in REQUIRED_COLUMNS if name not in record]
    if missing:
        raise ValueError(f"column {', '.join(missing)} is missing")
    return GridResult(**{name: value for name, value in record.items() if name in COLUMNS})


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def render_table(rows: Sequence[GridResult], floor: Floor | None = None, file: TextIO | None = None) -> None:
    """Print the grid (eta down, S across, best of each column marked), every measured number, floor and provenance.

    Rows whose provenance differs get tables of their own. When `file` (default: standard output) is not a terminal,
    the text is ASCII without colours or boxes, as wide as it needs to be; numbers are never cut on a terminal either.
    """
    file = sys.stdout if file is None else file
    styled = file.isatty() and "utf" in (getattr(file, "encoding", None) or "").lower()
    console = Console(file=file, force_terminal=styled, force_jupyter=False)
    groups = group_rows(rows)
    for differs, members in groups:
        if differs:
            _say(console, ", ".join(f"{name} {value}" for name, value in differs.items()), styled, "bold underline")
        _say(console, f"{distance_name(members[0].features)} by η (down) and S (across)", styled, "bold")
        pivot = _pivot(members, styled)
        note = "* lowest of its column\n" if pivot.row_count > 1 else ""
        for table, below in ((pivot, note), (_long(members, styled), "")):
            needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
            console.width = max(console.width, needed)
            console.print(table)
            _say(console, below, styled)
        if floor is not None and shows_floor(floor, rows, members[0]):
            _say(console, _floor_line(floor, members[0].features), styled)
        _say(console, _provenance_line(members[0]), styled, "dim")
        if len(groups) > 1:
            console.print()


def _plain(text: str) -> str:
    for symbol, name in _ASCII.items():
        text = text.replace(symbol, name)
    return text.encode("ascii", "backslashreplace").decode()


def _say(console: Console, text: str, styled: bool, style: str = "") -> None:
    console.print(Text(text if styled else _plain(text), style=style if styled else ""), soft_wrap=True)


def _table(headers: Sequence[str], styled: bool) -> Table:
    table = Table(box=SIMPLE_HEAD if styled else None, pad_edge=False, padding=(0, 1, 0, 0) if styled else (0, 1))
    for header in headers:
        table.add_column(header if styled else _plain(header), justify="right", no_wrap=True)
    return table


def _pivot(rows: Sequence[GridResult], styled: bool) -> Table:
    cells = {(eta_label(row), row.steps): row.frechet_distance for row in rows}
    labels = sorted({label for label, _ in cells}, key=eta_order)
    all_steps = sorted({steps for _, steps in cells})
    best = {}
    for steps in all_steps:
        known = [d for (_, s), d in cells.items() if s == steps and d is not None and math.isfinite(d)]
        best[steps] = min(known) if len(known) > 1 else None
    table = _table(["η", *(f"S={steps}" for steps in all_steps)], styled)
    for label in labels:
        line = [Text(label if styled else _plain(label))]
        for steps in all_steps:
            value = cells.get((label, steps))
            is_best = value is not None and value == best[steps]
            text = ("*" if is_best else "") + significant(value)
            line.append(Text(text, style="bold green" if is_best and styled else ""))
        table.add_row(*line)
    return table


def _long(rows: Sequence[GridResult], styled: bool) -> Table:
    shown = {h: spec for h, spec in _OPTIONAL.items() if any(getattr(row, spec[0]) is not None for row in rows)}
    name = distance_name(rows[0].features).split()[0]
    table = _table(["S", "nfe", "η", "τ", name, *shown, "seconds", "images/s"], styled)
    for row in sorted(rows, key=lambda row: (eta_order(eta_label(row)), row.steps)):
        texts = [str(row.steps), str(row.nfe), eta_label(row), row.tau, significant(row.frechet_distance)]
        texts += [significant(getattr(row, attribute), digits) for attribute, digits in shown.values()]
        texts += [significant(row.seconds, 3), significant(row.images_per_second, 3)]
        table.add_row(*(Text(text if styled else _plain(text)) for text in texts))
    return table


def _floor_line(floor: Floor, features: str) -> str:
    names = {distance_name(features): ("frechet_distance", 4), **_OPTIONAL}
    metrics = floor.metrics
    values = [f"{name} {significant(metrics[key], digits)}" for name, (key, digits) in names.items() if key in metrics]
    return f"floor ({floor.num_images} real held-out images): {', '.join(values) or 'not measured'}"


def _provenance_line(row: GridResult) -> str:
    parts = [f"{name} {value}" for name, value in provenance(row).items() if value != "unknown"]
    source = [row.reference_source, None if row.reference_images is None else f"{row.reference_images} images"]
    known = ", ".join(text for text in source if text)
    return " | ".join(parts) + (f" ({known})" if known else "") + (f" | device {row.device}" if row.device else "")
