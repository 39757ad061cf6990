"""Whose signal handlers answer while Lightning works."""

from __future__ import annotations

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import SLURMEnvironment

from ddim.runs.signals import StopRequest


class SignalHandlers(pl.Callback):
    """Takes SIGTERM back from Lightning, which registers a handler of its own just before the work starts.

    Lightning's ends a run after the current batch, which may be in the middle of a step, and on several devices
    broadcasts from within the handler, wherever the other processes stand. Under SLURM, where it is part of requeueing,
    it stays and calls ours as well. The signal that a job's time is almost up, whose handler saves with all processes,
    waits there for the end of a step.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            self.stop.take_requeueing(environment.requeue_signal)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._install(trainer)

    def _install(self, trainer: pl.Trainer) -> None:
        environment = trainer._accelerator_connector.cluster_environment
        if not (isinstance(environment, SLURMEnvironment) and environment.auto_requeue):
            self.stop.install()
