"""What Hydra calls around a run and around the jobs of a sweep.

`OneRun`: all processes of a run share the first one's directory, and only that one speaks. `Sweep`: a job that fails
does not stop the others, and the results of all are collected at the end.
"""

from __future__ import annotations

import json
import logging.config
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ddim.errors import UserError
from ddim.runs.ending import exit_with_sentence
from ddim.runs.layout import JOB_FILE, SWEEP_FILE
from ddim.runs.processes import agreed, place

_SILENT = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"none": {"class": "logging.NullHandler"}},
    "root": {"level": "ERROR", "handlers": ["none"]},
}
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class OneRun(Callback):
    """One run directory, one log file and one voice for all processes of a run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        here = place()
        directory = exit_with_sentence(lambda: agreed("directory", os.path.abspath(config.hydra.run.dir)))
        if here.first:
            return
        with read_write(config), open_dict(config):
            config.hydra.run.dir = directory
            config.hydra.output_subdir = None
            config.hydra.job_logging = _SILENT

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if not place().first:
            logging.config.dictConfig(_SILENT)
            warnings.simplefilter("ignore")


class Sweep(Callback):
    """Keeps a sweep going when a job fails, and collects the results of its jobs.

    A sweeper that looks for the best value (not Hydra's basic one) is told of the failure as before.

    Args:
        collect: whether the jobs leave results that make one table.
    """

    def __init__(self, collect: bool) -> None:
        self.collect = collect
        self.directory: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        exit_with_sentence(_refuse_sweep_of_many)
        self.directory = Path(config.hydra.sweep.dir).absolute()
        if config.hydra.sweeper._target_ != BASIC_SWEEPER:
            # By this file a sweep is known; only Hydra's own sweeper leaves one.
            self.directory.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(config, self.directory / SWEEP_FILE)
        _begun.append(self)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if _reports(config):
            _job_file(config).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if not _reports(config):
            return
        document: dict[str, Any] = {"state": "finished", "status": 0}
        if job_return.status == JobStatus.FAILED:
            error = job_return._return_value
            known = isinstance(error, UserError)
            if not known or os.environ.get("HYDRA_FULL_ERROR") == "1":
                traceback.print_exception(error)
            sentence = str(error) if known else f"{type(error).__name__}: {error}"
            print(f"error: job {config.hydra.job.num}: {sentence}", file=sys.stderr, flush=True)
            document = {"state": "failed", "sentence": sentence, "status": 2 if known else 1}
            if config.hydra.sweeper._target_ == BASIC_SWEEPER:
                job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        _job_file(config).write_text(json.dumps(document) + "\n")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        try:
            status = self.finish()
        except Exception:
            # Hydra would make a warning of it.
            traceback.print_exc()
            status = 1
        if status:
            sys.exit(status)

    def finish(self) -> int:
        """Collect, print, and return the exit status of the sweep."""
        _begun.clear()
        assert self.directory is not None
        from ddim.display.collected import collect_and_report
        from ddim.findings.collection import collect, failures

        collection = collect_and_report(self.directory) if self.collect else collect([self.directory])
        return failures(collection)


_begun: list[Sweep] = []


def finish_broken_sweep() -> None:
    """Collect what there is of a sweep whose launcher has raised, as when a worker is killed.

    Hydra does not call `on_multirun_end` then.
    """
    for sweep in list(_begun):
        sweep.finish()


def _refuse_sweep_of_many() -> None:
    here = place()
    if here.started_alike:
        raise UserError(
            f"-m under {here.started_by} with {here.world_size} processes: each of them would run the whole sweep; "
            "leave -m out (lists are then one grid), or start it with python and choose a hydra/launcher."
        )


def _reports(config: DictConfig) -> bool:
    return config.hydra.mode == RunMode.MULTIRUN and place().first


def _job_file(config: DictConfig) -> Path:
    return Path(config.hydra.runtime.output_dir) / JOB_FILE
