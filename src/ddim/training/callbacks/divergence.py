"""A loss that is no number ends the run before it is saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ddim.errors import UserError
from ddim.runs.signals import resume_command

NEVER = torch.iinfo(torch.int64).max
# What a checkpoint holds of the network and the optimizer; a score may well be infinite.
LEARNED = ("state_dict", "current_model_state", "optimizer_states")


class StopOnDivergence(pl.Callback):
    """Raises `UserError` with the step, its learning rate and the last good checkpoint once the loss is no number.

    Each loss is looked at on the device and the answer is fetched every n steps, before a validation and before a
    checkpoint is written: waiting for it at every step would keep the device from running ahead. What is about to be
    written must be finite as well, weights, averages and optimizer: one step with a finite loss can ruin them.

    Args:
        every_n_steps: n; 0 looks only before validations and checkpoints.
        checkpoint: of the run, to be named as the last good one.
    """

    def __init__(self, every_n_steps: int, checkpoint: Path) -> None:
        self.every_n_steps = every_n_steps
        self.checkpoint = checkpoint
        self._first_bad: Tensor | None = None
        self._rates: dict[int, float] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # After the step the scheduler has already set the next step's rate.
        self._rates[trainer.global_step + 1] = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach()
        step = max(self._rates)
        found = torch.where(torch.isfinite(loss), NEVER, step)
        self._first_bad = found if self._first_bad is None else torch.minimum(self._first_bad, found)
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._check_losses(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_losses(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check_losses(trainer)
        # The same on all processes, which hold the same weights: no decision has to be exchanged.
        finite: dict[torch.device, list[Tensor]] = {}
        for tensor in _floats({key: checkpoint.get(key) for key in LEARNED}):
            finite.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
        if not all(torch.stack(flags).all() for flags in finite.values()):
            raise self._error("The weights are not finite numbers after", trainer.global_step)

    def _check_losses(self, trainer: pl.Trainer) -> None:
        if self._first_bad is None:
            return
        step = int(trainer.strategy.reduce(self._first_bad, reduce_op="min"))
        self._first_bad = None
        if step != NEVER:
            raise self._error("The loss is not a finite number at", step)
        self._rates = {step: rate for step, rate in self._rates.items() if step >= trainer.global_step}

    def _error(self, what: str, step: int) -> UserError:
        if self.checkpoint.is_file():
            directory = self.checkpoint.parent.parent
            good = (
                f"the last good checkpoint is {self.checkpoint}: "
                f"{resume_command('train.py', directory)} with a lower optimizer.lr goes on from it"
            )
        else:
            good = "no checkpoint was saved yet: start anew with a lower optimizer.lr or longer optimizer.warmup_steps"
        return UserError(f"{what} step {step} (learning rate {self._rates.get(step, float('nan')):g}); {good}.")


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _floats(item)
