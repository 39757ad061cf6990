"""The objects of a training run, from its configuration: images, module, Trainer with its callbacks and loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from ddim.data import ImageDataModule, Space
from ddim.data.build import load_data
from ddim.denoisers.build import (
    TEXT_UNET,
    VOCABULARY,
    check_conditions,
    described,
    new_denoiser,
    takes_condition,
)
from ddim.denoisers.formats.contents import Pretrained
from ddim.denoisers.formats.own import OBJECTIVE, SPACE
from ddim.diffusion import NoiseSchedule
from ddim.diffusion.schedule import build_schedule
from ddim.display.progress import track
from ddim.evaluation.build import sampling
from ddim.evaluation.studies.grid import warn_of_few_samples
from ddim.metrics.measure import build_measure, load_extractor
from ddim.runs.layout import BEST, LAST
from ddim.runs.signals import StopRequest
from ddim.tracking.loggers import build_loggers
from ddim.training.callbacks.averaging import WeightEma, constant_decay, halflife_decay
from ddim.training.callbacks.best_checkpoint import BestCheckpoint
from ddim.training.callbacks.divergence import StopOnDivergence
from ddim.training.callbacks.last_checkpoint import LastCheckpoint
from ddim.training.callbacks.progress import TrainingProgress
from ddim.training.callbacks.sample_grid import SampleGrid
from ddim.training.callbacks.stopping import SignalHandlers
from ddim.training.callbacks.throughput import Throughput
from ddim.training.callbacks.training_evaluation import TrainingEvaluation
from ddim.training.module import DenoisingModule
from ddim.training.settings import EmaConfig, TrainConfig, sample_grid_point, training_grid
from ddim.training.starting import start_from
from ddim.training.trainer import attach


@dataclass(frozen=True)
class Training:
    """What `trainer.fit` takes."""

    trainer: pl.Trainer
    module: DenoisingModule
    images: ImageDataModule

    @property
    def parameters(self) -> int:
        """Number of the network's."""
        return _count(self.module)

    def fit(self, resume: str | None = None) -> None:
        """Train to the end; `resume` is the checkpoint to go on from."""
        self.trainer.fit(self.module, self.images, ckpt_path=resume, weights_only=True)


def stored_description(
    config: TrainConfig, denoiser: nn.Module | None = None, space: Space | None = None
) -> dict[str, Mapping[str, Any]]:
    """What is saved with the weights: plain data that rebuild the network.

    denoiser, space: what was built and loaded, for what only the data decide: shape, words, standardisation.
    """
    network = dict(config.denoiser)
    if denoiser is not None and network.get("shape", ()) is None:
        network["shape"] = list(described(denoiser).sample_shape)
    if denoiser is not None:
        network |= {key: described(denoiser).config[key] for key in VOCABULARY if network.get(key, ()) is None}
    description: dict[str, Mapping[str, Any]] = {
        "dataset": config.dataset,
        "denoiser": network,
        "schedule": config.schedule,
    }
    if config.objective.predicts != "eps":
        description[OBJECTIVE] = {"predicts": config.objective.predicts}
    stated = None if space is None else space.stated()
    return description if stated is None else {**description, SPACE: stated}


def build_training(
    config: TrainConfig,
    trainer: pl.Trainer,
    directory: Path,
    *,
    hyperparameters: Mapping[str, Any],
    stop: StopRequest | None = None,
    callbacks: Sequence[Callback] = (),
    stated: Mapping[str, Any] | None = None,
    initial: Pretrained | None = None,
) -> Training:
    """Load the data and build everything; what is random comes from torch's global generator.

    Args:
        trainer: `build_trainer` of the configuration; it is given its callbacks and loggers.
        directory: of the run; checkpoints, pictures and logs go there.
        hyperparameters: for the loggers, to which the number of parameters is added.
        stop: asked after every step whether to leave.
        callbacks: to run before those of the configuration.
        stated: how data that are no images were standardised when the training began (`Space.stated`).
        initial: what the weights are before the first step, and how such data were standardised; None: random weights.

    Raises:
        UserError: the data are not to be had, or something cannot be built or does not fit.
    """
    config = replace(config, dataset=dataset_read_by(config.denoiser, config.dataset))
    images = load_data(
        config.dataset,
        stage="fit",
        seed=config.seed,
        cache_dir=config.cache_dir,
        stated=stated if initial is None else initial.space,
        origin="the checkpoint",
        **asdict(config.loader),
    )
    denoiser = _network(config, images, initial)
    conditional = takes_condition(denoiser)
    module = DenoisingModule(
        denoiser,
        build_schedule(config.schedule),
        optimizer=config.optimizer.with_images_per_step(images_per_step(config, trainer.world_size)),
        predicts=config.objective.predicts,
        times=config.objective.times,
        times_options=config.objective.times_options,
        weighting=config.loss.weighting,
        seed=config.seed,
        config=stored_description(config, denoiser, images.space)
        | ({"condition": images.meaning or {}} if conditional else {}),
        label_dropout=config.objective.label_dropout,
        condition_of=images.condition_of if conditional else None,
        space=images.space,
    )
    here = trainer.strategy.root_device
    built = training_callbacks(config, module, images, directory, here, stop, devices=trainer.world_size)
    numbers = {**hyperparameters, "parameters": _count(module)}
    loggers = build_loggers(config.logger, directory, job_type="train", hyperparameters=numbers)
    attach(trainer, [*callbacks, *built], loggers)
    return Training(trainer, module, images)


def dataset_read_by(denoiser: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the data set with the encoder of a text UNet that has one: captions are in its tokens."""
    # What a parameter of this name means to a network of a user's own is its own affair.
    encoder = denoiser.get("encoder") if denoiser.get("name") == TEXT_UNET else None
    return dict(dataset) if encoder is None else {**dataset, "encoder": encoder}


def _network(config: TrainConfig, images: ImageDataModule, initial: Pretrained | None) -> nn.Module:
    denoiser = new_denoiser(config.denoiser, images.space.shape, images.name, images.meaning)
    check_conditions(denoiser, images.meaning, images.name)
    if initial is not None:
        start_from(initial, denoiser, config, stored_description(config, denoiser)["denoiser"], images.meaning)
    return denoiser


def images_per_step(config: TrainConfig, devices: int) -> int:
    """Images that an optimizer step sees, over all devices and accumulated batches."""
    return config.loader.batch_size * devices * (config.trainer.get("accumulate_grad_batches") or 1)


def _ema(ema: EmaConfig, images: int) -> WeightEma:
    if ema.halflife_images is None:
        return WeightEma(constant_decay(ema.decay), ema.update_every_n_steps)
    every = ema.update_every_n_steps
    return WeightEma(halflife_decay(ema.halflife_images / images / every, ema.ramp), every)


def _count(module: DenoisingModule) -> int:
    return sum(parameter.numel() for parameter in module.denoiser.parameters())


def training_callbacks(
    config: TrainConfig,
    module: DenoisingModule,
    images: ImageDataModule,
    directory: Path,
    device: torch.device,
    stop: StopRequest | None = None,
    *,
    devices: int = 1,
) -> list[Callback]:
    """In the order that matters: what samples must run before the EMA callback swaps the raw weights back."""
    part = config.callbacks
    checkpoints = directory / "checkpoints"
    callbacks: list[Callback] = [TrainingProgress()] if config.trainer.get("enable_progress_bar", True) else []
    every_n_steps = config.trainer.get("log_every_n_steps", 50)
    callbacks += [] if stop is None else [SignalHandlers(stop)]
    callbacks += [StopOnDivergence(every_n_steps, checkpoints / LAST), Throughput(every_n_steps)]
    if part.sample_grid.enabled:
        callbacks.append(
            SampleGrid(
                sample_grid_point(config, module.schedule),
                sampling(config.seed, images.space, config.loader.eval_batch_size),
                directory / "samples",
                num_images=part.sample_grid.num_images,
                every_n_validations=part.sample_grid.every_n_validations,
            )
        )
    if part.evaluation.enabled:
        callbacks.append(_training_evaluation(config, module.schedule, images, device))
    if part.ema.enabled:
        callbacks.append(_ema(part.ema, images_per_step(config, devices)))
    if part.checkpoint.monitor is not None:
        callbacks.append(
            BestCheckpoint(
                checkpoints,
                filename=Path(BEST).stem,
                monitor=part.checkpoint.monitor,
                mode=part.checkpoint.mode,
                enable_version_counter=False,
            )
        )
    callbacks.append(LastCheckpoint(checkpoints / LAST, part.checkpoint.every_n_steps, stop))
    return callbacks


def _training_evaluation(
    config: TrainConfig, schedule: NoiseSchedule, images: ImageDataModule, device: torch.device
) -> TrainingEvaluation:
    part = config.callbacks.evaluation
    key = "callbacks.evaluation"
    extractor = load_extractor(part.features, images, cache_dir=config.cache_dir, device=device, key=key)
    warn_of_few_samples(f"{key}.num_samples", part.num_samples, extractor, part.metrics)
    measure = build_measure(
        extractor,
        part.metrics,
        images,
        cache_dir=config.cache_dir,
        device=device,
        seed=config.seed,
        track=track,
        key=key,
    )
    return TrainingEvaluation(
        training_grid(config, schedule),
        measure,
        sampling(config.seed, images.space, part.batch_size),
        num_samples=part.num_samples,
        every_n_validations=part.every_n_validations,
        seed=config.seed,
    )
