"""What an offline W&B run has written, read back from its `.wandb` file without W&B's server."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# W&B's files have LevelDB's log format: after a header of 7 bytes, blocks with records in fragments.
BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4


@dataclass(frozen=True)
class OfflineRun:
    """One `.wandb` file.

    Attributes:
        run: the run itself: `run_id`, `project`, `display_name`, `run_group`, `job_type`, `tags`, `notes`, `resume`.
        config: the configuration; what W&B keeps for itself is under `_wandb`.
        history: the logged rows; nested values as dictionaries.
        summary: the columns of the run table.
        metrics: what was defined, by name or by pattern (`*`).
        artifacts: all artifacts, tables included.
        files: the paths below `<run>/files` that belong to the run.
        system: names of the system metrics.
        exit_code: None for a run that was killed.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    system: set[str] = field(default_factory=set)
    exit_code: int | None = None

    def series(self, key: str) -> list[Any]:
        """All values of a key, in the order in which they were logged."""
        return [row[key] for row in self.history if key in row]

    def curve(self, key: str) -> list[tuple[float, float]]:
        """A key against the x-axis that was defined for it, as its panel draws it."""
        axis = self.metrics[key].step_metric if key in self.metrics else self.metrics["*"].step_metric
        return [(row[axis], row[key]) for row in self.history if key in row and axis in row]


def read_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file, up to the point where it was cut off, if a kill has done so."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    content, position, parts = path.read_bytes(), HEADER, b""
    while position + HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += HEADER + length
        if kind == 0 or position > len(content):
            return
        parts += content[position - length : position]
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
            parts = b""


def read_offline_run(path: Path) -> OfflineRun:
    """All of a `.wandb` file. Raises OSError where it cannot be read."""
    values: dict[str, Any] = {}
    run = OfflineRun()
    for record in read_records(path):
        if record.HasField("run"):
            values["run"] = record.run
            _update(run.config, record.run.config.update)
        elif record.HasField("config"):
            _update(run.config, record.config.update)
        elif record.HasField("summary"):
            _update(run.summary, record.summary.update)
        elif record.HasField("history"):
            run.history.append(_update({}, record.history.item))
        elif record.HasField("metric"):
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif record.HasField("artifact"):
            run.artifacts.append(record.artifact)
        elif record.HasField("files"):
            run.files.extend(file.path for file in record.files.files)
        elif record.HasField("stats"):
            run.system.update(item.key for item in record.stats.item)
        elif record.HasField("exit"):
            values["exit_code"] = record.exit.exit_code
    return OfflineRun(**{**vars(run), **values})


def offline_files(directory: Path, run_id: str) -> list[Path]:
    """The files of an offline run's attempts in a run directory, the oldest first."""
    # Of two attempts begun in one second the later folder's name ends in a number.
    return sorted(directory.glob(f"wandb/offline-run-*-{run_id}*/run-{run_id}.wandb"))


def next_history_step(directory: Path, run_id: str) -> int:
    """Where W&B's own numbering of the logged rows goes on after the attempts so far; 0 for the first."""
    last = -1
    for path in offline_files(directory, run_id):
        for record in read_records(path):
            if record.HasField("history"):
                last = max(last, record.history.step.num)
    return last + 1


def _update(target: dict[str, Any], items: Any) -> dict[str, Any]:
    for item in items:
        path = list(item.nested_key) or [item.key]
        inner = target
        for name in path[:-1]:
            known = inner.get(name)
            inner = inner.setdefault(name, {}) if isinstance(known, Mapping) or known is None else {}
        inner[path[-1]] = json.loads(item.value_json)
    return target
