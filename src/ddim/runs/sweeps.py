"""The jobs of a Hydra multirun as its directory shows them: which there are, and how each of them stands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ddim.runs.layout import CSV_NAME, HYDRA_FILE, JOB_FILE, JSON_NAME, SWEEP_FILE


@dataclass
class Job:
    """A job of a sweep, or an evaluation that stands alone.

    Attributes:
        state: "finished", "failed", "not finished" (it runs, or was killed), "not started"; "evaluation" outside of a
            sweep, where nothing is known of it but its results.
        overrides: what tells it from the other jobs of its sweep.
        sentence: why it failed.
        status: the exit status it would have left with.
        points: rows of results it has.
    """

    name: str
    directory: Path
    state: str
    overrides: str = ""
    sentence: str | None = None
    status: int = 1
    points: int = 0

    def describe(self) -> str:
        """ "job 3 (sampler.eta=1 sampler.steps=10) failed: ..." """
        name = f"{self.name} ({self.overrides})" if self.overrides else self.name
        verb = "" if self.state == "failed" else "is "
        found = f", {self.points} results so far" if self.points and self.state == "not finished" else ""
        return f"{name} {verb}{self.state}{found}{f': {self.sentence}' if self.sentence else ''}"


def is_sweep(directory: Path) -> bool:
    return (directory / SWEEP_FILE).is_file()


def is_evaluation(directory: Path) -> bool:
    return (directory / JSON_NAME).is_file() or (directory / CSV_NAME).is_file()


def jobs_of(directory: Path) -> list[Job]:
    """The jobs of a sweep in their order: those that were planned and those whose directories there are."""
    planned = _planned(directory)
    found = {}
    for path in sorted(directory.glob(f"*/{HYDRA_FILE}")):
        config = _read_yaml(path)
        number = _get(config, "hydra", "job", "num")
        if isinstance(number, int):
            found[number] = (path.parent.parent, _get(config, "hydra", "overrides", "task") or [])
    numbers = sorted({*found, *range(len(planned))})
    all_overrides = [found[number][1] if number in found else planned[number] for number in numbers]
    common = set.intersection(*(set(overrides) for overrides in all_overrides)) if len(numbers) > 1 else set()
    jobs = []
    for number, overrides in zip(numbers, all_overrides, strict=True):
        where = found[number][0] if number in found else directory / str(number)
        told = " ".join(text.lstrip("+") for text in overrides if text not in common)
        jobs.append(_job(f"job {number}", where, told, started=number in found))
    return jobs


def _job(name: str, directory: Path, overrides: str, *, started: bool) -> Job:
    job = Job(name, directory, "not finished" if started else "not started", overrides)
    try:
        document = json.loads((directory / JOB_FILE).read_text())
        job.state = document["state"]
        job.sentence, job.status = document.get("sentence"), document.get("status", 1)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return job


def _planned(directory: Path) -> Sequence[Sequence[str]]:
    """The overrides of every job, as Hydra's basic sweeper makes them; empty where another one decides as it goes."""
    config = _read_yaml(directory / SWEEP_FILE)
    sweeper = _get(config, "hydra", "sweeper") or {}
    if not str(sweeper.get("_target_")).endswith(".BasicSweeper"):
        return []
    texts = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    texts += _get(config, "hydra", "overrides", "task") or []
    try:
        (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(texts), None)
    except (HydraException, ValueError):
        return []
    return jobs


def _read_yaml(path: Path) -> Any:
    """None while it is being written."""
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return None


def _get(config: Any, *keys: str) -> Any:
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config
