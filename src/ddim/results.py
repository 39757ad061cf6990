"""The results of many evaluations as one table: `python -m ddim.results DIR [DIR ...] [--output DIR]`.

DIR is the directory of an evaluation or of a sweep (`python evaluate.py -m ...`), finished or still running. Reading
is all it does to them, except that a sweep's own directory gets the collected table and plots.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddim.display.collected import print_collection, write_collection
from ddim.display.terminal import Terminal
from ddim.errors import UserError
from ddim.findings import grid_table
from ddim.findings.collection import collect
from ddim.findings.comparable import group_rows, provenance, shows_floor
from ddim.findings.files import Results, read_results, write_results
from ddim.findings.labels import distance_name, eta_label, eta_order, significant
from ddim.findings.rows import COLUMNS, Floor, GridResult
from ddim.findings.telling import Words
from ddim.runs.ending import exit_with_sentence
from ddim.runs.layout import CSV_NAME, JSON_NAME
from ddim.runs.plugins import load_plugins
from ddim.runs.sweeps import is_evaluation, is_sweep

__all__ = [
    "COLUMNS",
    "CSV_NAME",
    "JSON_NAME",
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
    "write_results",
]


def render_table(rows: Sequence[GridResult], floor: Floor | None = None, words: Words | None = None) -> None:
    """Print the grid as an evaluation does; `words` is standard output by default."""
    grid_table.render_table(rows, floor, words or Terminal())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser("python -m ddim.results", description=__doc__.split("\n\n")[1])
    parser.add_argument("directories", nargs="+", metavar="DIR", type=Path, help="of an evaluation or of a sweep")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write the collected table and plots there")
    options = parser.parse_args(arguments)
    exit_with_sentence(lambda: _run(options.directories, options.output))
    return 0


def _run(directories: Sequence[Path], output: Path | None) -> None:
    load_plugins()
    if output is not None and is_evaluation(output) and not _is_collected(output):
        raise UserError(f"--output={output} holds the results of an evaluation, which would be lost; take another one.")
    terminal = Terminal()
    collection = collect(directories)
    print_collection(collection, terminal)
    if output is not None:
        lines = write_collection(collection, output)
    else:
        lines = [line for sweep in filter(is_sweep, directories) for line in write_collection(collect([sweep]), sweep)]
    for line in lines:
        terminal.say(line)


def _is_collected(directory: Path) -> bool:
    try:
        return "collected" in read_results(directory).extra
    except UserError:
        return False


if __name__ == "__main__":
    sys.exit(main())
