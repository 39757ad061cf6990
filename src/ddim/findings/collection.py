"""The results of many evaluations and of a sweep's jobs put together, each setting once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddim.errors import UserError
from ddim.findings.columns import MEASURED
from ddim.findings.comparable import provenance
from ddim.findings.files import Results, read_results
from ddim.findings.labels import eta_label, significant
from ddim.findings.parts import GRID, PARTS
from ddim.findings.rows import Floor, GridResult
from ddim.runs.sweeps import Job, is_evaluation, is_sweep, jobs_of

# Two measurements of the same settings must agree on this, relatively; times and devices may differ.
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

    collection = Collection(jobs)
    floors: dict[tuple[Any, ...], Floor] = {}
    tables = set()
    for job in jobs:
        results, others = _read(job, [part for part in PARTS if part != GRID])
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


def failures(collection: Collection) -> int:
    """The exit status of a sweep: 2 where a user can put right all that failed, 1 for anything else, 0 for nothing."""
    statuses = [job.status for job in collection.jobs if job.state != "finished"]
    return 0 if not statuses else 2 if set(statuses) == {2} else 1


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
        differing = [name for name in MEASURED if not _agree(getattr(other, name), getattr(row, name))]
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
