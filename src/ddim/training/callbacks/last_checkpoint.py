"""`last.ckpt`: where a killed run goes on, and what `evaluate.py` takes by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loops.evaluation_loop import RestartStage

from ddim.runs.signals import StopRequest


class LastCheckpoint(Checkpoint):
    """Saves `last.ckpt` every n optimizer steps, around a validation, at the last step, and when asked to stop.

    `ModelCheckpoint` skips a last step that is no multiple of n, and saving after `fit` is too late: by then the
    averaged weights have replaced the raw ones. Lightning runs checkpoint callbacks after all others: the average is up
    to date, and this one belongs behind `ModelCheckpoint`.

    A validation may take long and holds nothing that could not be repeated. So the file is written before it, with the
    note that it is due, and again after it, because a checkpoint from before would forget the best score so far and how
    often was sampled. Lightning by itself would skip a validation that a kill cut short.

    Args:
        path: of the checkpoint.
        every_n_steps: n.
        stop: asked after every optimizer step; where it was requested the run leaves, with this step saved.
    """

    def __init__(self, path: Path, every_n_steps: int, stop: StopRequest | None = None) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self.stop = stop
        self.validation_due = False
        self._leaving: int | None = None
        self._seen_step = self._saved_step = 0
        self._owed = self._unflushed = self._one_step_more = False

    def state_dict(self) -> dict[str, Any]:
        return {"validation_due": self.validation_due}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.validation_due = checkpoint["callbacks"].get(self.state_key, {}).get("validation_due", False)
        if self.validation_due and checkpoint["global_step"] == trainer.max_steps:
            # Lightning would find nothing left to train and leave; taken back when the validation begins.
            self._one_step_more = True
            _loop(trainer).max_steps += 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # With gradient accumulation several batches share a step; the first of them must not save in its middle.
        self._seen_step = trainer.global_step
        if self.validation_due and _validates_now(trainer):
            loop = _loop(trainer)
            loop.val_loop._restarting = False
            loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            # The loggers' number of the step: Lightning adds one for the restart and one after the validation.
            loop._batches_that_stepped -= 1
        self._defer(True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._after_step(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return
        self._seen_step = step
        self.validation_due = _validates_now(trainer)
        complete = step == trainer.max_steps and not self.validation_due
        asked = None if complete else self._asked_to_stop(trainer)
        requeue = self.stop is not None and self.stop.is_requeueing(asked)
        self._leaving = None if requeue else asked
        due = step % self.every_n_steps == 0 or step == trainer.max_steps
        if due or self.validation_due or self._owed or asked is not None:
            self._save(trainer)
        if self.stop is not None and requeue:
            self.stop.requeue()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not _inside_fit(trainer):
            return
        if self._one_step_more:
            self._one_step_more = False
            _loop(trainer).max_steps -= 1
        self._after_step(trainer)
        self._defer(_loop(trainer)._should_accumulate())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Before ModelCheckpoint saves what this validation has earned.
        self.validation_due = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not _inside_fit(trainer):
            return
        if _loop(trainer)._should_accumulate():
            self._owed = True  # a checkpoint does not hold the gradients of a step half done
        else:
            self._save(trainer)
        self._defer(True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._after_step(trainer)
        last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if (trainer.should_stop or last_epoch) and self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._defer(False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._defer(False)

    def _save(self, trainer: pl.Trainer) -> None:
        self._saved_step, self._owed = trainer.global_step, False
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path)
        self._unflushed = True

    def _asked_to_stop(self, trainer: pl.Trainer) -> int | None:
        """The signal, if any process has got one: all of them leave after the same step."""
        signum = None if self.stop is None else self.stop.requested
        if trainer.world_size > 1:
            mine = torch.tensor(signum or 0, device=trainer.strategy.root_device)
            signum = int(trainer.strategy.reduce(mine, reduce_op="max")) or None
        return signum

    def _after_step(self, trainer: pl.Trainer) -> None:
        """Where a step's metrics have reached the loggers, which in `on_train_batch_end` they have not."""
        if self._unflushed:
            self._unflushed = False
            for logger in trainer.loggers:
                logger.save()
        if self._leaving is not None and self.stop is not None:
            raise self.stop.leave(self._leaving)

    def _defer(self, on: bool) -> None:
        if self.stop is not None:
            self.stop.deferring = on


def _loop(trainer: pl.Trainer) -> Any:
    return trainer.fit_loop.epoch_loop


def _validates_now(trainer: pl.Trainer) -> bool:
    return bool(_loop(trainer)._should_check_val_fx(trainer.fit_loop._data_fetcher))


def _inside_fit(trainer: pl.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
