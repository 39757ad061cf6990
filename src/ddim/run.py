"""`train` and `evaluate`: build the objects a configuration describes and hand them to the Trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import ddim
from ddim.build import build_trainer, check_shape, load_data, sampling_batch
from ddim.callbacks import Resumption, SignalHandlers
from ddim.checkpoint import LAST
from ddim.cli import in_sweep
from ddim.closing import closing, finish, leaving_well, quiet_libraries
from ddim.comparison import compare, render_comparison, show_comparison, write_comparison
from ddim.config import TrainConfig, build_schedule, evaluation_config, training_config
from ddim.continuing import check_same_network, started_before
from ddim.data.locking import locked
from ddim.denoisers.pretrained import UNSTATED
from ddim.errors import UserError
from ddim.files import remove_unfinished
from ddim.fingerprint import tensors_sha256
from ddim.lit_module import DenoisingModule
from ddim.loggers import build_loggers
from ddim.paper import TABLES
from ddim.plugins import load_plugins
from ddim.precision import with_precision
from ddim.processes import first_is_ready, one_fate, wait_for_first
from ddim.replay import begun_with, save_command
from ddim.report import write_report
from ddim.signals import StopRequest, resume_command
from ddim.studies import build_studies
from ddim.subject import open_subject
from ddim.terminal import Terminal
from ddim.training import build_training, stored_description
from ddim.wandb_logger import DashboardLogger, artifact_of

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train as `conf/train.yaml` describes. Returns the last validation loss (what a Hydra sweeper would minimise).

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
    # Refuses bad arguments before any work.
    build_trainer(config.trainer, directory, logger=False)
    resume = config.resume or started_before(directory)
    if resume is not None:
        check_same_network(Path(resume), stored_description(config))

    wait_for_first()
    training = build_training(config, directory, hyperparameters=_plain(cfg), stop=stop)
    trainer, datamodule = training.trainer, training.datamodule
    log.info(
        "Training %s (%s parameters) on %s: %s images of %sx%sx%s, %s, in %s. Everything goes to %s",
        config.denoiser["name"],
        f"{training.parameters:,}",
        datamodule.name,
        f"{datamodule.num_images('train'):,}",
        datamodule.channels,
        datamodule.resolution,
        datamodule.resolution,
        _images_per_step(config, trainer),
        trainer.precision,
        directory,
    )
    if trainer.is_global_zero:
        remove_unfinished(directory)
        save_command(_as_run(cfg, config.trainer), directory)
    first_is_ready()
    with closing(trainer, stop), one_fate(trainer):
        training.fit(resume)
    if config.logger.log_model and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        _log_checkpoints(trainer, directory, stored_description(config))
    finish(trainer)
    last = directory / "checkpoints" / LAST
    log.info("Trained to step %d. Checkpoint: %s", trainer.global_step, last if last.is_file() else "none")
    loss = trainer.callback_metrics.get("val/loss")
    return None if loss is None else float(loss)


def evaluate(cfg: DictConfig) -> None:
    """Evaluate a checkpoint as `conf/evaluate.yaml` describes and print the table.

    Raises:
        UserError: anything the user can put right, before the first sample; after it, a disk that takes no more.
        Stopped: SIGTERM or Ctrl-C.
    """
    load_plugins()
    directory = Path(HydraConfig.get().runtime.output_dir)
    kept = f"what was finished is kept, go on with {resume_command('evaluate.py', directory)}"
    with leaving_well(directory, lambda: kept) as stop:
        _evaluate(cfg, stop)


def _evaluate(cfg: DictConfig, stop: StopRequest) -> None:
    subject = open_subject(cfg)
    config = evaluation_config(cfg)
    part = config.evaluation
    weights = subject.select(part.weights, "evaluation.weights")
    if weights == UNSTATED:
        log.warning(
            "%s does not say whether its weights are averaged (EMA); they are taken as they are.", subject.origin
        )
    directory = Path(HydraConfig.get().runtime.output_dir)
    quiet_libraries()
    torch.manual_seed(config.seed)
    show_progress = config.trainer.pop("enable_progress_bar", True)
    config.trainer = with_precision(begun_with(directory, config.trainer), config.denoiser)
    # Refuses bad arguments before any work.
    build_trainer(config.trainer, directory, logger=False, enable_progress_bar=False)

    wait_for_first()
    datamodule = load_data(
        config.dataset,
        config,
        batch_size=1,
        eval_batch_size=1,
        num_workers=0,
    )
    datamodule.eval_batch_size = sampling_batch(part.batch_size, datamodule.resolution, config.trainer)
    datamodule.test_limit = part.loss_images
    # The command line may have changed what the weights do not decide, such as the resolution.
    denoiser = subject.build(part.weights, denoiser=config.denoiser)
    check_shape(denoiser, datamodule)
    schedule = build_schedule(config.schedule)
    # Before any precision plugin changes them.
    weights_hash = tensors_sha256(denoiser.state_dict())
    module = DenoisingModule(denoiser, schedule, optimizer={}, seed=config.seed)
    identity = {
        "dataset": datamodule.name,
        "checkpoint": subject.origin,
        "weights": weights,
        "weights_hash": weights_hash[:16],
        "seed": config.seed,
    }
    artifact = artifact_of(Path(subject.origin))
    studies = build_studies(
        config,
        schedule,
        datamodule,
        directory,
        identity=identity,
        resumption=Resumption(
            directory,
            {"weights_sha256": weights_hash, "denoiser": denoiser.config},
            part.partial_every_seconds,
        ),
        show_progress=show_progress,
        context={
            "config": _plain(cfg),
            "versions": {"ddim": ddim.__version__, "torch": torch.__version__, "pytorch_lightning": pl.__version__},
            "torch_threads": torch.get_num_threads(),
        },
    )
    trainer = build_trainer(
        config.trainer,
        directory,
        callbacks=[SignalHandlers(stop), *studies],
        enable_progress_bar=False,
        logger=build_loggers(
            config.logger,
            directory,
            job_type="evaluate",
            hyperparameters=_plain(cfg) | {"subject": {**identity, "artifact": artifact}},
            group=_training_run(subject.origin),
        ),
    )
    log.info(
        "Evaluating %s (%s weights) in %s: %s. Everything goes to %s",
        subject.origin,
        weights,
        trainer.precision,
        ", ".join(study.plan() for study in studies),
        directory,
    )
    first_is_ready()
    alone = locked(directory, wait=False) if trainer.is_global_zero else nullcontext()
    try:
        with alone, closing(trainer, stop), one_fate(trainer):
            if trainer.is_global_zero:
                save_command(_as_run(cfg, config.trainer), directory, checkpoint=subject.origin)
                _use_artifact(trainer, artifact)
            trainer.test(module, datamodule, verbose=False)
    except BlockingIOError as error:
        raise UserError(
            f"hydra.run.dir={directory}: another evaluation is writing there; wait for it, or take another directory."
        ) from error
    table = None if config.table is None else TABLES[config.table]
    records = [] if table is None else compare(table, [row for study in studies for row in study.records()])
    if table is not None and trainer.is_global_zero:
        write_comparison(directory, table, records)
        show_comparison(trainer, table, records)
    finish(trainer)
    if trainer.is_global_zero:
        for study in studies:
            study.forget_partial()
        terminal = Terminal()
        for study in studies:
            # The grids of a sweep's jobs make one table in the end.
            if not (in_sweep() and study.name == "grid"):
                study.report(terminal)
        if table is not None:
            render_comparison(table, records, terminal)
            terminal.say(f"Table     {directory / f'{table.name}.csv'}")
        terminal.say(f"Report    {write_report([directory])}")
        pictures = [str(path.relative_to(directory)) for study in studies for path in study.pictures]
        terminal.say(f"Pictures  in {directory}: {', '.join(pictures)}")


def _log_checkpoints(trainer: pl.Trainer, directory: Path, description: Mapping[str, Any]) -> None:
    names = {group: values["name"] for group, values in description.items()}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger):
            logger.log_checkpoints(directory, trainer.global_step, {**names, **metrics})


def _use_artifact(trainer: pl.Trainer, artifact: str | None) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, DashboardLogger) and artifact is not None:
            logger.use_checkpoint(artifact)


def _training_run(origin: str) -> str:
    """What a checkpoint's training run is called: the name of its directory, or what a public checkpoint is called."""
    path = Path(origin)
    return path.parent.parent.name if path.parent.name == "checkpoints" else origin


def _images_per_step(config: TrainConfig, trainer: pl.Trainer) -> str:
    """ "128 a step", or "1,024 a step (128 on each of 8 devices)"."""
    accumulated = config.trainer.get("accumulate_grad_batches") or 1
    factors = [f"on each of {trainer.world_size} devices"] * (trainer.world_size > 1)
    factors += [f"in each of {accumulated} batches"] * (accumulated > 1)
    total = config.loader.batch_size * accumulated * trainer.world_size
    return f"{total:,} a step" + (f" ({config.loader.batch_size} {' and '.join(factors)})" if factors else "")


def _as_run(cfg: DictConfig, trainer: Mapping[str, Any]) -> DictConfig:
    """The configuration with what `auto` was: a run that goes on elsewhere keeps the arithmetic it began with."""
    stated = cfg.copy()
    OmegaConf.update(stated, "trainer.precision", trainer["precision"], force_add=True)
    return stated


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
