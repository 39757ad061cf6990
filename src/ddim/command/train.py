"""`train`: build the objects a configuration describes and hand them to the Trainer."""

from __future__ import annotations

import logging
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ddim.command.config import plain_config, training_config, typed_keys
from ddim.command.ending import closing, leaving_well, quiet_libraries
from ddim.command.from_checkpoint import open_checkpoint
from ddim.command.resuming import as_run, begun_from, begun_with, check_same_network, started_before
from ddim.runs.ending import in_sweep
from ddim.runs.files import remove_unfinished
from ddim.runs.layout import LAST
from ddim.runs.overrides import save_command
from ddim.runs.plugins import load_plugins
from ddim.runs.processes import first_is_ready, one_fate, wait_for_first
from ddim.runs.signals import StopRequest, resume_command
from ddim.tracking.loggers import finish
from ddim.tracking.wandb_run import log_checkpoints
from ddim.training.build import build_training, stored_description
from ddim.training.precision import with_precision
from ddim.training.settings import TrainConfig
from ddim.training.trainer import build_trainer

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train as `conf/train.yaml` describes. Returns the last value of what chooses the best checkpoint.

    That is what a search over settings minimises: `callbacks.checkpoint.monitor`, or the validation loss without one.

    Raises:
        UserError: anything the user can put right, before the first training step; after it, a loss that is no number
            or a disk that takes no more.
        Stopped: SIGTERM or Ctrl-C, with the step at hand saved.
    """
    load_plugins()  # a job of a sweep may be in a process of its own
    config = training_config(cfg)
    directory = Path(HydraConfig.get().runtime.output_dir)

    def how_to_go_on() -> str:
        if (directory / "checkpoints" / LAST).is_file():
            return f"go on with {resume_command('train.py', directory)}"
        return "nothing was saved yet, start anew with the same command"

    with leaving_well(directory, how_to_go_on) as stop:
        return _train(cfg, config, directory, stop)


def _train(cfg: DictConfig, config: TrainConfig, directory: Path, stop: StopRequest) -> float | None:
    quiet_libraries()
    torch.manual_seed(config.seed)
    config.trainer = with_precision(begun_with(directory, config.trainer), config.denoiser)
    trainer = build_trainer(config.trainer, directory, typed=typed_keys(), sweep=in_sweep())
    resume = config.resume or started_before(directory)
    stated, initial, origin = None, None, None
    if resume is not None:
        stated, config.objective.predicts = check_same_network(Path(resume), stored_description(config), typed_keys())
        origin = begun_from(directory)
    elif config.checkpoint is not None:
        initial = open_checkpoint(config.checkpoint, Path(config.output_dir), Path(config.cache_dir))
        origin = initial.origin

    wait_for_first()
    training = build_training(
        *(config, trainer, directory), hyperparameters=plain_config(cfg), stop=stop, stated=stated, initial=initial
    )
    images = training.images
    log.info(
        "Training %s (%s parameters) on %s: %s %s of %s, %s, in %s. Everything goes to %s",
        config.denoiser["name"],
        f"{training.parameters:,}",
        images.name,
        f"{images.num_images('train'):,}",
        images.space.kind,
        "x".join(map(str, images.space.shape)),
        _images_per_step(config, trainer),
        trainer.precision,
        directory,
    )
    if trainer.is_global_zero:
        remove_unfinished(directory)
        settled = {
            "trainer.precision": config.trainer["precision"],
            "objective.predicts": config.objective.predicts,
            "checkpoint": origin,
        }
        save_command(as_run(cfg, settled), directory)
    first_is_ready()
    with closing(trainer, stop), one_fate(trainer):
        training.fit(resume)
    if config.logger.log_model and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        log_checkpoints(trainer, directory, training.module.config)
    finish(trainer)
    last = directory / "checkpoints" / LAST
    log.info("Trained to step %d. Checkpoint: %s", trainer.global_step, last if last.is_file() else "none")
    value = trainer.callback_metrics.get(config.callbacks.checkpoint.monitor or "val/loss")
    return None if value is None else float(value)


def _images_per_step(config: TrainConfig, trainer: pl.Trainer) -> str:
    """ "128 a step", or "1,024 a step (128 on each of 8 devices)"."""
    accumulated = config.trainer.get("accumulate_grad_batches") or 1
    factors = [f"on each of {trainer.world_size} devices"] * (trainer.world_size > 1)
    factors += [f"in each of {accumulated} batches"] * (accumulated > 1)
    total = config.loader.batch_size * accumulated * trainer.world_size
    return f"{total:,} a step" + (f" ({config.loader.batch_size} {' and '.join(factors)})" if factors else "")
