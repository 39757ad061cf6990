"""The rows of the parts of an evaluation that are not the grid, as CSV and JSON files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.records import jsonable
from ddim.results import csv_cell, write_atomically


def write_rows(
    directory: Path, name: str, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any] | None = None
) -> None:
    """Write `<name>.csv` and `<name>.json` (with `extra` beside the rows), each whole at any time.

    Columns are the keys in order of first appearance; None and what a row lacks are empty in the CSV.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(row.get(column)) for column in columns] for row in rows)
    document = {"format": 1, "rows": jsonable(list(rows)), "extra": jsonable(extra or {})}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(
        (directory / f"{name}.csv", table.getvalue().encode()), (directory / f"{name}.json", text.encode())
    )
