"""A result beside the paper's: its own number, the published one and the difference in every cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.findings.files import write_rows
from ddim.findings.labels import eta_label, eta_order, eta_title, significant, with_sd
from ddim.findings.paper import PaperTable
from ddim.findings.telling import Words


def compare(table: PaperTable, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per result: its row, `measured`, `measured_sd`, `paper`, `difference`, why they may not be compared.

    rows: records of an evaluation's parts as their files hold them; those without the table's metric are left out.
    `paper` and `difference` are None where the paper has no number for these settings, `measured_sd` where the row
    has no standard deviation.
    """
    records = []
    for row in rows:
        if table.metric not in row:
            continue  # of another part of the evaluation
        measured, published = row[table.metric], table.value(row["eta"], row["variance"], row["steps"])
        known = measured is not None and published is not None
        reasons = table.differences(row)
        records.append(
            {
                "table": table.name,
                **row,
                "measured": measured,
                "measured_sd": row.get(f"{table.metric}_sd"),
                "paper": published,
                "difference": measured - published if known else None,
                "comparable": not reasons,
                "not_comparable_because": "; ".join(reasons),
            }
        )
    return records


def write_comparison(directory: Path, table: PaperTable, records: Sequence[Mapping[str, Any]]) -> None:
    """Write `<table>.csv` and `<table>.json`."""
    write_rows(directory, table.name, records, {"title": table.title, "paper": "Song, Meng, Ermon, ICLR 2021"})


def render_comparison(table: PaperTable, records: Sequence[Mapping[str, Any]], words: Words) -> None:
    """Print the paper's table: a line per η, and for every S the own number, the paper's and the difference."""
    words.say(f"\n{table.title}, beside the paper's numbers", "bold")
    if not records:
        words.say("Nothing that this table holds was measured.")
    reasons = list(dict.fromkeys(r for record in records for r in record["not_comparable_because"].split("; ") if r))
    if reasons:
        words.say(f"Not comparable as it stands: {', '.join(reasons)}", "bold yellow")
    for tau in dict.fromkeys(record["tau"] for record in records):
        members = [record for record in records if record["tau"] == tau]
        if len({record["tau"] for record in records}) > 1:
            words.say(f"τ {tau}", "bold underline")
        cells = {(eta_label(record), record["steps"]): record for record in members}
        all_steps = sorted({steps for _, steps in cells})
        headers = ["", *(text for steps in all_steps for text in (f"S={steps}", "paper", "diff"))]
        lines = [
            [eta_title(label), *(text for steps in all_steps for text in _texts(cells.get((label, steps))))]
            for label in sorted({label for label, _ in cells}, key=eta_order)
        ]
        words.table(headers, lines)


def _texts(record: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if record is None:
        return "-", "-", "-"
    difference = record["difference"]
    sign = "" if difference is None or difference < 0 else "+"
    own = with_sd(record["measured"], record["measured_sd"])
    return own, _as_printed(record["paper"]), sign + significant(difference, 3)


def _as_printed(value: float | None) -> str:
    """As printed in the paper: no digits are added."""
    return "-" if value is None else f"{value:.10g}"
