"""The objects of a training run, from its configuration: images, module, Trainer with its callbacks and loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ddim.build import build_trainer, load_data, new_denoiser, training_callbacks
from ddim.config import TrainConfig, build_schedule
from ddim.data import ImageDataModule
from ddim.lit_module import DenoisingModule
from ddim.loggers import build_loggers
from ddim.signals import StopRequest


@dataclass(frozen=True)
class Training:
    """What `trainer.fit` takes."""

    trainer: pl.Trainer
    module: DenoisingModule
    datamodule: ImageDataModule

    @property
    def parameters(self) -> int:
        """Number of the network's."""
        return _count(self.module)

    def fit(self, resume: str | None = None) -> None:
        """Train to the end; `resume` is the checkpoint to go on from."""
        self.trainer.fit(self.module, self.datamodule, ckpt_path=resume, weights_only=True)


def stored_description(config: TrainConfig) -> dict[str, Mapping[str, Any]]:
    """What is saved with the weights: plain data that rebuild the network."""
    return {"dataset": config.dataset, "denoiser": config.denoiser, "schedule": config.schedule}


def build_training(
    config: TrainConfig,
    directory: Path,
    *,
    hyperparameters: Mapping[str, Any],
    stop: StopRequest | None = None,
    callbacks: Sequence[Callback] = (),
) -> Training:
    """Load the data and build everything; what is random comes from torch's global generator.

    Args:
        directory: of the run; checkpoints, pictures and logs go there.
        hyperparameters: for the loggers, to which the number of parameters is added.
        stop: asked after every step whether to leave.
        callbacks: to run before those of the configuration.

    Raises:
        UserError: the data are not to be had, or something cannot be built or does not fit.
    """
    datamodule = load_data(config.dataset, config, **asdict(config.loader))
    module = DenoisingModule(
        new_denoiser(config.denoiser, datamodule),
        build_schedule(config.schedule),
        optimizer=asdict(config.optimizer),
        weighting=config.loss.weighting,
        seed=config.seed,
        config=stored_description(config),
    )
    built = training_callbacks(config, module, datamodule, directory, stop)
    trainer = build_trainer(
        config.trainer,
        directory,
        callbacks=[*callbacks, *built],
        logger=build_loggers(
            config.logger,
            directory,
            job_type="train",
            hyperparameters={**hyperparameters, "parameters": _count(module)},
        ),
    )
    return Training(trainer, module, datamodule)


def _count(module: DenoisingModule) -> int:
    return sum(parameter.numel() for parameter in module.denoiser.parameters())
