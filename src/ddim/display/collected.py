"""A collection of results on the terminal and as files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ddim.display.figures import distance_figure, drawn, speed_figure
from ddim.display.images import cut_grid, sample_sheet
from ddim.display.page.write import write_report
from ddim.display.terminal import Terminal
from ddim.findings.collection import Collection, collect
from ddim.findings.comparable import group_rows
from ddim.findings.files import write_results, write_rows
from ddim.findings.grid_table import render_table
from ddim.findings.labels import eta_label, point_key
from ddim.findings.paper import TABLES
from ddim.findings.paper.comparison import compare, render_comparison, write_comparison
from ddim.findings.parts.grid import SHEET_IMAGES
from ddim.findings.rows import GridResult
from ddim.runs.files import save_picture
from ddim.runs.layout import JSON_NAME


def collect_and_report(directory: Path) -> Collection:
    """Collect a sweep into its own directory and print it."""
    collection = collect([directory])
    terminal = Terminal()
    print_collection(collection, terminal)
    for line in write_collection(collection, directory):
        terminal.say(line)
    return collection


def print_collection(collection: Collection, terminal: Terminal) -> None:
    """Print the tables, the other parts, what contradicts itself, and the jobs that have not all their results."""
    missing = [job for job in collection.jobs if job.state not in ("finished", "evaluation")]
    if len(collection.jobs) > 1:
        terminal.say(f"\n{len(collection.jobs) - len(missing)} of {len(collection.jobs)} jobs finished", "bold")
    if collection.results:
        render_table(collection.grid, collection.floor, terminal)
    comparison = _comparison(collection)
    if comparison is not None:
        render_comparison(*comparison, terminal)
    for sentence in collection.conflicts:
        terminal.say(f"conflict: {sentence}", "bold yellow")
    for job in missing:
        terminal.say(job.describe(), "bold red" if job.state == "failed" else "yellow")
    if not collection.results and not collection.rows:
        terminal.say("There are no results yet.")


def write_collection(collection: Collection, directory: Path) -> list[str]:
    """Write results.csv, results.json, the plots, the sample sheet, the rows of the other parts, and the report.

    Returns lines that say what is where.
    """
    lines = []
    if collection.results:
        jobs = [{**vars(job), "directory": str(job.directory)} for job in collection.jobs]
        extra = {"collected": jobs, "conflicts": collection.conflicts}
        write_results(directory, collection.grid, collection.floor, extra)
        save_picture(drawn(distance_figure(collection.grid, collection.floor)), directory / "distance.png")
        save_picture(drawn(speed_figure(collection.grid)), directory / "speed.png")
        pictures = [*_sheets(collection, directory), "distance.png", "speed.png"]
        lines.append(f"\nTable     {directory / 'results.csv'}")
        lines.append(f"\nPictures  in {directory}: {', '.join(pictures)}")
    comparison = _comparison(collection)
    if comparison is not None:
        write_comparison(directory, *comparison)
        lines.append(f"Beside the paper's numbers: {directory / f'{comparison[0].name}.csv'}")
    for part, rows in collection.rows.items():
        write_rows(directory, part, rows)
        lines.append(f"{part.capitalize()}: {len(rows)} rows in {directory / f'{part}.csv'}")
    if lines:
        lines.append(f"Report    {write_report([directory])}")
    return lines


def _comparison(collection: Collection) -> tuple[Any, list[dict[str, Any]]] | None:
    """The paper's table and the rows beside it, where all jobs were asked for the same one."""

    table = TABLES.get(collection.table or "")
    if table is None:
        return None

    rows: list[Mapping[str, Any]] = [row.as_record() for row in collection.grid]
    return table, compare(table, rows + [row for rows in collection.rows.values() for row in rows])


def _sheets(collection: Collection, directory: Path) -> Iterator[str]:
    """One sample sheet for each set of comparable rows, of the pictures that the jobs have drawn."""

    groups = group_rows(collection.grid)
    for differs, members in groups:
        cells = {}
        for row, job in collection.results:
            images = _images(row, job.directory) if row in members else None
            if images is not None:
                cells[eta_label(row), row.steps] = images
        if cells and len({images.shape for images in cells.values()}) == 1:
            name = "-".join(["samples", *(re.sub(r"[^\w.=-]+", "-", value)[-40:] for value in differs.values())])
            sample_sheet(cells).save(directory / f"{name}.png")
            yield f"{name}.png"


def _images(row: GridResult, directory: Path) -> Any:
    """The first samples of a grid point, uint8 (N, C, H, W), from the picture beside its results; None without one."""

    try:
        config = json.loads((directory / JSON_NAME).read_text())["extra"]["config"]
        size, drawn = config["dataset"]["resolution"], config["evaluation"]["grid_images"]
        with Image.open(directory / "samples" / f"{point_key(row).replace('/', '-')}.png") as picture:
            return cut_grid(picture, size, size, min(SHEET_IMAGES, drawn, row.num_samples))
    except (OSError, KeyError, TypeError, ValueError):
        return None
