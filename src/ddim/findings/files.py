"""The files of an evaluation: results.csv and results.json of the grid, and a pair of the same kind for each part."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddim.errors import UserError
from ddim.findings.rows import (
    COLUMNS,
    GROUPED,
    KNOWN_LATER,
    REQUIRED_COLUMNS,
    Floor,
    GridResult,
    cells_of,
    columns_of,
    jsonable,
)
from ddim.findings.telling import Audience, Findings, Row
from ddim.runs.files import write_atomically
from ddim.runs.layout import CSV_NAME, JSON_NAME
from ddim.runs.paths import usable_path

# What reading a damaged or foreign file raises.
UNREADABLE = (
    *(OSError, csv.Error, ValueError, ArithmeticError, LookupError),
    *(TypeError, AttributeError, RecursionError),
)


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
    document = {
        "rows": [row.as_record() for row in rows],
        "floor": None if floor is None else jsonable(vars(floor)),
        "extra": jsonable(extra or {}),
    }
    _write(Path(directory), (CSV_NAME, JSON_NAME), columns_of(rows), [cells_of(row) for row in rows], document)


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
    return GridResult(**{name: value for name, value in record.items() if name in (*COLUMNS, *KNOWN_LATER, *GROUPED)})


def own_metrics(rows: Sequence[GridResult]) -> list[str]:
    """The names of a user's own metrics in `rows`, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name, _ in row.other_metrics or ()))


def csv_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def write_rows(
    directory: Path, name: str, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any] | None = None
) -> None:
    """Write `<name>.csv` and `<name>.json` (with `extra` beside the rows), each whole at any time.

    Columns are the keys in order of first appearance, the options of a sampler one each; None and what a row lacks are
    empty in the CSV.
    """
    cells = options_apart(rows)
    columns = list(dict.fromkeys(key for row in cells for key in row))
    document = {"rows": jsonable(list(rows)), "extra": jsonable(extra or {})}
    _write(directory, (f"{name}.csv", f"{name}.json"), columns, cells, document)


def options_apart(rows: Sequence[Row]) -> list[Row]:
    """Rows in which each of a sampler's own options is a column of its own, where all of them together were."""
    return [
        {
            name: value
            for key, given in row.items()
            for name, value in (dict(given or ()) if key == "options" else {key: given}).items()
        }
        for row in rows
    ]


def _write(
    directory: Path,
    names: tuple[str, str],
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    document: Mapping[str, Any],
) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
    text = json.dumps({"format": 1, **document}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically((directory / names[0], table.getvalue().encode()), (directory / names[1], text.encode()))


class Files(Audience):
    """Keeps the rows of each part as CSV and JSON in `directory`, whole after every row."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._written = 0

    def begin(self, said: Findings) -> None:
        # Rows of other settings leave the table now, not when the first new point is finished.
        self._written = 0
        if said.rows or (said.part.fresh and (self.directory / f"{said.part.table_name()}.csv").is_file()):
            self._write(said)

    def row(self, said: Findings, rows: Sequence[Row], images: Any) -> None:
        # Rows of an earlier attempt are said one by one, but are in the file since the beginning.
        if len(said.rows) > self._written:
            self._write(said)

    def end(self, said: Findings) -> None:
        # Some is only known when all points are.
        self._write(said)

    def _write(self, said: Findings) -> None:
        self._written = len(said.rows)
        said.part.write(self.directory, said.part.name, said.rows, said.extra)
