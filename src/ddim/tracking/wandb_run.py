"""The W&B run of a training or an evaluation: which x-axis each key has, artifacts, and going on offline."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

from ddim.runs.files import write_atomically
from ddim.tracking.keys import (
    AXES,
    CURVE,
    EVALUATE,
    NFE,
    PICTURE,
    SAMPLING_STEPS,
    TRAINING_STEP,
    all_keys,
    find,
    wandb_key,
)

log = logging.getLogger(__name__)
# Says which artifact holds the checkpoints of a run directory.
ARTIFACT_FILE = "wandb_artifact.json"
STAGING = "WANDB_DATA_DIR"
# What this program has set the other to, for those that inherit it; any other value is the user's.
OURS = "DDIM_WANDB_DATA_DIR"


class DashboardLogger(WandbLogger):
    """Lightning's, with the x-axes of `ddim.tracking.keys` and with runs that go on offline.

    Args:
        first_row: number of the first logged row; what earlier offline attempts of the run have left off at.
        arguments: those of `wandb.init`.
    """

    def __init__(self, *, job: str, first_row: int = 0, **arguments: Any) -> None:
        self._experiment: Any
        super().__init__(save_dir=arguments.pop("dir"), job_type=job, **arguments)
        del self._wandb_init["anonymous"]
        self.job = job
        self.first_row = first_row
        self._defined: set[str] = set()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            import wandb

            self._stage_below_the_run()
            self._experiment = wandb.init(**self._wandb_init)
            self._define()
            if self.first_row:
                self._experiment.log({}, step=self.first_row)
        return self._experiment

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one row, its keys without dots; the axes of keys that are new are defined first."""
        row = {wandb_key(key): value for key, value in metrics.items()}
        if self.job == EVALUATE:
            # Lightning's number of passes over the training images, of which an evaluation makes none.
            row.pop("epoch", None)
        for key in row:
            if key not in self._defined:
                self._define_key(key)
        super().log_metrics(row, step)

    def log_point(self, steps: int, nfe: int, values: Mapping[str, Any], caption: str = "") -> None:
        """One point of curves against S, and pictures (PIL) of it."""
        import wandb

        row = {
            key: wandb.Image(value, caption=caption) if isinstance(value, Image.Image) else value
            for key, value in values.items()
        }
        self.log_metrics({**row, SAMPLING_STEPS: steps, NFE: nfe})

    def log_line_chart(self, key: str, title: str, columns: tuple[str, str, str], rows: list[list[Any]]) -> None:
        """A chart that W&B draws itself: a line per value of the last of the columns (x, y, line).

        In a comparison of several runs it has the lines of all of them: colour says which run, dashes which line.
        """
        import wandb

        x, y, line = columns
        chart = wandb.plot_table(
            # The preset behind wandb.plot.line_series; given directly, the table's columns keep readable names.
            vega_spec_name="wandb/lineseries/v0",
            data_table=wandb.Table(columns=list(columns), data=rows),
            fields={"step": x, "lineVal": y, "lineKey": line},
            string_fields={"title": title, "xname": x},
        )
        self.log_metrics({key: chart})

    def log_pictures(self, key: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A table whose last column are pictures (PIL)."""
        import wandb

        self.log_table(key, columns, [[*row[:-1], wandb.Image(row[-1])] for row in rows])

    def log_checkpoints(self, directory: Path, step: int, metadata: Mapping[str, Any]) -> None:
        """The checkpoints of a finished training as one artifact, and beside them a note of its name."""
        import wandb

        checkpoints = sorted((directory / "checkpoints").glob("*.ckpt"))
        if not checkpoints:
            return
        run = self.experiment
        artifact = wandb.Artifact(f"model-{run.id}", "model", metadata={"step": step, **metadata})
        for path in checkpoints:
            artifact.add_file(str(path), name=path.name)
        alias = f"step-{step}"
        run.log_artifact(artifact, aliases=["latest", alias])
        place = "/".join(part for part in (run.entity, run.project) if part)
        note = {
            "artifact": f"{place}/{artifact.name.split(':')[0]}:{alias}",
            "md5": {path.name: md5(path) for path in checkpoints},
        }
        write_atomically((directory / ARTIFACT_FILE, (json.dumps(note, indent=1) + "\n").encode()))

    def use_checkpoint(self, artifact: str) -> None:
        """Say that this run has used an artifact. Only the server knows artifacts; offline the config alone says it."""
        if self.experiment.offline:
            return
        try:
            self.experiment.use_artifact(artifact)
        except Exception as error:  # whatever W&B's client and its network have: the evaluation does not depend on it
            log.warning("W&B does not know the artifact %s (%s); the config of the run names it.", artifact, error)

    def _define(self) -> None:
        for axis in AXES:
            self._experiment.define_metric(axis, hidden=True, summary=None if axis == TRAINING_STEP else "none")
            self._defined.add(axis)
        for entry in all_keys():
            if entry.job == self.job and entry.kind in (CURVE, PICTURE) and not entry.is_family:
                self._define_key(entry.name)
        # What nobody has listed, such as a callback of one's own.
        self._experiment.define_metric("*", step_metric=TRAINING_STEP, step_sync=True)

    def _define_key(self, key: str) -> None:
        # By name: of several patterns that match, W&B takes any.
        self._defined.add(key)
        entry = find(key, self.job)
        if entry is None or entry.axis is None:
            return
        of_steps = entry.axis == SAMPLING_STEPS
        # The last S of a curve is no column for the run table.
        summary = "none" if of_steps and entry.kind == CURVE else "min,last" if entry.best else None
        self._experiment.define_metric(key, step_metric=entry.axis, step_sync=not of_steps, summary=summary)

    def _stage_below_the_run(self) -> None:
        """Copies of artifacts that wait for their upload go below the run directory, not into the user's home."""
        if os.environ.get(STAGING) == os.environ.get(OURS):
            os.environ[STAGING] = os.environ[OURS] = str(Path(str(self.save_dir)).absolute() / "wandb" / "data")


def artifact_of(checkpoint: Path) -> str | None:
    """The artifact that holds exactly this checkpoint file, by the note its training has left; None if none does."""
    note = checkpoint.parent.parent / ARTIFACT_FILE
    try:
        stated = json.loads(note.read_text())
        same = stated["md5"].get(checkpoint.name) == md5(checkpoint)
        return str(stated["artifact"]) if same else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def md5(path: Path) -> str:
    """As artifacts state it: base64."""
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()


def log_checkpoints(trainer: pl.Trainer, directory: Path, description: Mapping[str, Any]) -> None:
    names = {group: values["name"] for group, values in description.items()}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger):
            logger.log_checkpoints(directory, trainer.global_step, {**names, **metrics})


def use_artifact(trainer: pl.Trainer, artifact: str | None) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger) and artifact is not None:
            logger.use_checkpoint(artifact)
