"""The results of many evaluations as one table: `python -m ddim.results DIR [DIR ...] [--output DIR]`.

DIR is the directory of an evaluation or of a sweep (`python evaluate.py -m ...`), finished or still running. Reading
is all it does to them, except that a sweep's own directory gets the collected table and plots.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddim.cli import exit_with_sentence
from ddim.errors import UserError
from ddim.records import Floor, GridResult, eta_label, group_rows, point_key, provenance, significant
from ddim.results import JSON_NAME, Results, read_results, render_table, write_results
from ddim.rows import write_rows
from ddim.sweeps import Job, is_evaluation, is_sweep, jobs_of
from ddim.terminal import Terminal

# What two results of the same settings must agree on, relatively; times and devices may differ.
METRICS = ("frechet_distance", "kid_mean", "precision", "recall", "inception_score_mean")
AGREEMENT = 1e-4


@dataclass
class Collection:
    """What was found.

    Attributes:
        results: (row, job it is of), each setting once, in the order of the jobs.
        floor: where all jobs have the same one.
        conflicts: a sentence for each setting whose results differ.
        rows: of each other part of the evaluations, {part: rows}.
        table: the paper's table that all jobs were asked for.
    """

    jobs: list[Job]
    results: list[tuple[GridResult, Job]] = field(default_factory=list)
    floor: Floor | None = None
    conflicts: list[str] = field(default_factory=list)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    table: str | None = None

    @property
    def grid(self) -> list[GridResult]:
        return [row for row, _ in self.results]


def collect(directories: Sequence[Path]) -> Collection:
    """Read the evaluations and sweeps in `directories`.

    Raises:
        UserError: one of them is neither, or an evaluation's results cannot be read.
    """
    jobs = [job for directory in directories for job in _jobs(directory)]
    from ddim.evaluation_config import PARTS

    collection = Collection(jobs)
    floors: dict[tuple[Any, ...], Floor] = {}
    tables = set()
    for job in jobs:
        results, others = _read(job, [part for part in PARTS if part != "grid"])
        for part, rows in others.items():
            known = collection.rows.setdefault(part, [])
            known += [row for row in rows if row not in known]
        job.points = sum(map(len, others.values()))
        if results is None:
            continue
        job.points += len(results.rows)
        tables.add((results.extra.get("config") or {}).get("table"))
        if results.floor is not None:
            floor = results.floor
            floors.setdefault((floor.num_images, floor.features, floor.reference), floor)
        for row in results.rows:
            _add(collection, row, job)
    collection.floor = next(iter(floors.values())) if len(floors) == 1 else None
    collection.table = tables.pop() if len(tables) == 1 else None
    collection.rows = {part: rows for part, rows in collection.rows.items() if rows}
    return collection


def collect_and_report(directory: Path) -> Collection:
    """Collect a sweep into its own directory and print it."""
    collection = collect([directory])
    terminal = Terminal()
    report(collection, terminal)
    for line in write(collection, directory):
        terminal.say(line)
    return collection


def failures(collection: Collection) -> int:
    """The exit status of a sweep: 2 where a user can put right all that failed, 1 for anything else, 0 for nothing."""
    statuses = [job.status for job in collection.jobs if job.state != "finished"]
    return 0 if not statuses else 2 if set(statuses) == {2} else 1


def report(collection: Collection, terminal: Terminal) -> None:
    """Print the tables, the other parts, what contradicts itself, and the jobs that have not all their results."""
    missing = [job for job in collection.jobs if job.state not in ("finished", "evaluation")]
    if len(collection.jobs) > 1:
        terminal.say(f"\n{len(collection.jobs) - len(missing)} of {len(collection.jobs)} jobs finished", "bold")
    if collection.results:
        render_table(collection.grid, collection.floor, terminal)
    comparison = _comparison(collection)
    if comparison is not None:
        from ddim.comparison import render_comparison

        render_comparison(*comparison, terminal)
    for sentence in collection.conflicts:
        terminal.say(f"conflict: {sentence}", "bold yellow")
    for job in missing:
        terminal.say(job.describe(), "bold red" if job.state == "failed" else "yellow")
    if not collection.results and not collection.rows:
        terminal.say("There are no results yet.")


def write(collection: Collection, directory: Path) -> list[str]:
    """Write results.csv, results.json, the plots, the sample sheet, the rows of the other parts, and the report.

    Returns lines that say what is where.
    """
    lines = []
    if collection.results:
        from ddim.figures import plot_distance, plot_speed

        jobs = [{**vars(job), "directory": str(job.directory)} for job in collection.jobs]
        extra = {"collected": jobs, "conflicts": collection.conflicts}
        write_results(directory, collection.grid, collection.floor, extra)
        plot_distance(collection.grid, collection.floor, directory / "distance.png")
        plot_speed(collection.grid, directory / "speed.png")
        pictures = [*_sheets(collection, directory), "distance.png", "speed.png"]
        lines.append(f"\nTable     {directory / 'results.csv'}")
        lines.append(f"\nPictures  in {directory}: {', '.join(pictures)}")
    comparison = _comparison(collection)
    if comparison is not None:
        from ddim.comparison import write_comparison

        write_comparison(directory, *comparison)
        lines.append(f"Beside the paper's numbers: {directory / f'{comparison[0].name}.csv'}")
    for part, rows in collection.rows.items():
        write_rows(directory, part, rows)
        lines.append(f"{part.capitalize()}: {len(rows)} rows in {directory / f'{part}.csv'}")
    if lines:
        from ddim.report import write_report

        lines.append(f"Report    {write_report([directory])}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser("python -m ddim.results", description=__doc__.split("\n\n")[1])
    parser.add_argument("directories", nargs="+", metavar="DIR", type=Path, help="of an evaluation or of a sweep")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write the collected table and plots there")
    options = parser.parse_args(arguments)
    exit_with_sentence(lambda: _run(options.directories, options.output))
    return 0


def _run(directories: Sequence[Path], output: Path | None) -> None:
    if output is not None and is_evaluation(output) and not _is_collected(output):
        raise UserError(f"--output={output} holds the results of an evaluation, which would be lost; take another one.")
    terminal = Terminal()
    collection = collect(directories)
    report(collection, terminal)
    if output is not None:
        lines = write(collection, output)
    else:
        lines = [line for sweep in filter(is_sweep, directories) for line in write(collect([sweep]), sweep)]
    for line in lines:
        terminal.say(line)


def _jobs(directory: Path) -> list[Job]:
    if is_sweep(directory):
        return jobs_of(directory)
    if is_evaluation(directory):
        return [Job(str(directory), directory, "evaluation")]
    kind = "has neither results nor jobs" if directory.is_dir() else "is not a directory"
    raise UserError(f"'{directory}' {kind}; name the directory of an evaluation or of a sweep (evaluate.py -m).")


def _read(job: Job, parts: Sequence[str]) -> tuple[Results | None, dict[str, list[dict[str, Any]]]]:
    """The grid's results and the rows of the other parts, as far as there are any.

    A job of a sweep whose files cannot be read counts as failed. Raises UserError for an evaluation that stands alone.
    """
    try:
        results = read_results(job.directory) if is_evaluation(job.directory) else None
        return results, {part: _rows(job.directory / f"{part}.json") for part in parts}
    except UserError as error:
        if job.state == "evaluation":
            raise
        job.state, job.sentence, job.status = "failed", str(error), 1
        return None, {}


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [dict(row) for row in json.loads(path.read_text())["rows"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is not a result file of an evaluation: {error}.") from error


def _add(collection: Collection, row: GridResult, job: Job) -> None:
    for other, other_job in collection.results:
        if _setting(other) != _setting(row):
            continue
        differing = [name for name in METRICS if not _agree(getattr(other, name), getattr(row, name))]
        if differing:
            values = " and ".join(
                f"{significant(getattr(one, differing[0]), 6)} ({where.name})"
                for one, where in ((other, other_job), (row, job))
            )
            collection.conflicts.append(
                f"{differing[0]} of eta {eta_label(row)}, S {row.steps} is {values}; the first is shown."
            )
        return
    collection.results.append((row, job))


def _setting(row: GridResult) -> tuple[Any, ...]:
    return (*provenance(row).items(), eta_label(row), row.steps, row.nfe)


def _agree(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return True
    return math.isclose(one, other, rel_tol=AGREEMENT, abs_tol=1e-9) or (math.isnan(one) and math.isnan(other))


def _comparison(collection: Collection) -> tuple[Any, list[dict[str, Any]]] | None:
    """The paper's table and the rows beside it, where all jobs were asked for the same one."""
    from ddim.paper import TABLES

    table = TABLES.get(collection.table or "")
    if table is None:
        return None
    from ddim.comparison import compare

    rows: list[Mapping[str, Any]] = [row.as_record() for row in collection.grid]
    return table, compare(table, rows + [row for rows in collection.rows.values() for row in rows])


def _sheets(collection: Collection, directory: Path) -> Iterator[str]:
    """One sample sheet for each set of comparable rows, of the pictures that the jobs have drawn."""
    from ddim.figures import sample_sheet

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
    from PIL import Image

    from ddim.callbacks.evaluation import SHEET_IMAGES
    from ddim.image_grids import cut_grid

    try:
        config = json.loads((directory / JSON_NAME).read_text())["extra"]["config"]
        size, drawn = config["dataset"]["resolution"], config["evaluation"]["grid_images"]
        with Image.open(directory / "samples" / f"{point_key(row).replace('/', '-')}.png") as picture:
            return cut_grid(picture, size, size, min(SHEET_IMAGES, drawn, row.num_samples))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _is_collected(directory: Path) -> bool:
    try:
        return "collected" in read_results(directory).extra
    except UserError:
        return False


if __name__ == "__main__":
    sys.exit(main())
