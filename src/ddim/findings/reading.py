"""What the directory of an evaluation holds, finished or not: numbers, pictures, command and configuration.

Nothing but the files below the directory is read. They may be damaged or somebody else's: values are taken as they are
only where their kind has been looked at.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ddim.errors import UserError
from ddim.findings.files import UNREADABLE, read_results
from ddim.findings.labels import point_key
from ddim.findings.parts import GRID, PARTS
from ddim.findings.rows import Floor, GridResult
from ddim.findings.telling import Row
from ddim.runs.layout import CONFIG_FILE, OVERRIDES_FILE, SWEEP_FILE
from ddim.runs.sweeps import Job, is_evaluation, is_sweep, jobs_of

# Hydra needs no quotes around a plain path or a word such as 32-true, and a shell's around them are hard to read.
_HYDRA_QUOTES = re.compile(r"^([\w.+]+=)'([\w./-]*(?:/|-[a-z])[\w./-]*)'$")


@dataclass(frozen=True)
class PartRows:
    """The rows of a part, and what its file holds beside them."""

    rows: Sequence[Row]
    extra: Row


@dataclass(frozen=True)
class PaperComparison:
    """Rows beside a table of the paper, with `measured`, `paper`, `difference`, `not_comparable_because`."""

    name: str
    title: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Evaluation:
    """Attributes:
    rows, floor: the grid.
    samples: pictures of the grid's points, by their place in `rows`.
    folders: where pictures of the other parts are: (what to call them, directory).
    context: configuration, versions and reference, as the evaluation wrote them; of a sweep the first job's.
    command: what started it, empty where it is not known.
    notices: what is missing, as sentences.
    """

    directory: Path
    rows: Sequence[GridResult]
    floor: Floor | None
    parts: Mapping[str, PartRows]
    comparisons: Sequence[PaperComparison]
    samples: Mapping[int, Path]
    folders: Sequence[tuple[str, Path]]
    context: Row
    command: str
    notices: Sequence[str] = field(default_factory=tuple)

    @property
    def records(self) -> list[Row]:
        """The rows of all parts as mappings, the grid's first."""
        return [*(row.as_record() for row in self.rows), *(row for part in self.parts.values() for row in part.rows)]


def read_evaluation(directory: Path) -> Evaluation:
    """Read what there is.

    Raises:
        UserError: there are no results, or a result file cannot be understood.
    """
    directory = directory.absolute()
    if not directory.is_dir():
        raise UserError(f"'{directory}' is not a directory; name the directory of an evaluation.")
    settings = _mapping(_yaml(directory / CONFIG_FILE))
    wanted = _mapping(settings.get("evaluation")).get("parts")
    asked = [name for name in wanted if isinstance(name, str)] if isinstance(wanted, list) else [*PARTS]
    results = read_results(directory) if GRID in asked and is_evaluation(directory) else None
    # A directory that was used again may have files of parts that were not asked for this time.
    found = {name: _part(directory / f"{name}.json") for name in PARTS if name in asked and name != GRID}
    parts = {name: part for name, part in found.items() if part is not None}
    if results is None and not parts:
        raise UserError(f"'{directory}' {_what_is_missing(directory, settings)}")
    jobs = jobs_of(directory) if is_sweep(directory) else []
    rows = [] if results is None else results.rows
    context = _context(results.extra if results is not None else {}, parts)
    if jobs:
        context = {**_context_of_jobs(jobs), **context}
    return Evaluation(
        directory,
        rows,
        None if results is None else results.floor,
        parts,
        list(_comparisons(directory, settings)),
        _samples(rows, directory, jobs),
        [("", directory), *((job.overrides or job.name, job.directory) for job in jobs)],
        context,
        _command(directory),
        list(_notices(directory, rows, parts, context, jobs)),
    )


def _what_is_missing(directory: Path, settings: Row) -> str:
    if is_sweep(directory):
        return f"is a sweep whose table is not collected yet; run: python -m ddim.results {shlex.quote(str(directory))}"
    if "evaluation" in settings:
        return f"has no results yet; go on with: python evaluate.py resume={shlex.quote(str(directory))}"
    return "has no results; name the directory of an evaluation, or of a sweep whose table is collected."


def _part(path: Path) -> PartRows | None:
    if not path.is_file():
        return None
    document = _document(path)
    return PartRows(document["rows"], _mapping(document.get("extra")))


def _document(path: Path) -> dict[str, Any]:
    """Raises UserError naming the file where it does not hold rows."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(row, dict) for row in document["rows"]):
            raise ValueError("a row is no table of names and values")
        return {**document, "rows": list(document["rows"])}
    except UNREADABLE as error:
        raise UserError(f"'{path}' is not a result file of an evaluation: {error}.") from error


def _comparisons(directory: Path, settings: Row) -> Iterator[PaperComparison]:
    """Tables of the paper are known by what their files say."""
    asked = settings.get("table")
    for path in sorted(directory.glob("*_table*.json")):
        if settings and asked != path.stem:
            continue
        document = _document(path)
        title = _mapping(document.get("extra")).get("title")
        rows = [row for row in document["rows"] if {"measured", "paper", "difference", "steps"} <= row.keys()]
        yield PaperComparison(path.stem, str(title or path.stem), rows)


def _samples(rows: Sequence[GridResult], directory: Path, jobs: Sequence[Job]) -> dict[int, Path]:
    places = [(directory, set(range(len(rows))))]
    for job in jobs:
        try:
            made = read_results(job.directory).rows
        except UserError:
            continue
        places.append((job.directory, {number for number, row in enumerate(rows) if row in made}))
    found = {}
    for where, numbers in places:
        for number in sorted(numbers):
            path = where / "samples" / f"{point_key(rows[number]).replace('/', '-')}.png"
            if path.is_file():
                found[number] = path
    return found


def _context(extra: Any, parts: Mapping[str, PartRows]) -> Row:
    candidates = [_mapping(extra), *(part.extra for part in parts.values())]
    return next((context for context in candidates if isinstance(context.get("config"), dict)), candidates[0])


def _context_of_jobs(jobs: Sequence[Job]) -> Row:
    """Configuration and versions of the first job that has results; what it had planned is not the sweep's plan."""
    for job in jobs:
        try:
            context = _mapping(read_results(job.directory).extra)
        except UserError:
            continue
        return {name: context[name] for name in ("config", "versions") if name in context}
    return {}


def _command(directory: Path) -> str:
    stored = _yaml(directory / OVERRIDES_FILE)
    words = ["python", "evaluate.py"]
    if stored is None and (directory / SWEEP_FILE).is_file():
        hydra = _mapping(_mapping(_yaml(directory / SWEEP_FILE)).get("hydra"))
        stored = _mapping(hydra.get("overrides")).get("task")
        words.append("-m")
    if not isinstance(stored, list):
        return ""
    return shlex.join([*words, *(_HYDRA_QUOTES.sub(r"\1\2", str(text)) for text in stored)])


def _notices(
    directory: Path, rows: Sequence[GridResult], parts: Mapping[str, PartRows], context: Row, jobs: Sequence[Job]
) -> Iterator[str]:
    planned = _mapping(context.get("planned"))
    missing = [name for name in planned if name in PARTS and name != GRID and name not in parts]
    grid = planned.get(GRID)
    unfinished = isinstance(grid, int) and len(rows) < grid
    if unfinished:
        yield f"{len(rows)} of {grid} grid points are finished."
    if missing:
        yield f"Not there yet: {', '.join(missing)}."
    if unfinished or missing:
        yield f"python evaluate.py resume={shlex.quote(str(directory))} goes on with what is missing."
    yield from (job.describe() for job in jobs if job.state != "finished")
    conflicts = context.get("conflicts")
    yield from (str(sentence) for sentence in (conflicts if isinstance(conflicts, list) else []))


def _yaml(path: Path) -> Any:
    """None where there is nothing that can be read: the page then says less."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}
