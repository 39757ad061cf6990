"""`evaluate`: build the objects a configuration describes, hand them to the Trainer, and say what was found."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import nn

import ddim
from ddim.command.config import Evaluation, evaluation_config, plain_config, typed_keys
from ddim.command.ending import closing, leaving_well, quiet_libraries
from ddim.command.from_checkpoint import open_subject
from ddim.command.guiding import guided_module
from ddim.command.resuming import as_run, begun_with
from ddim.command.without_images import Statistics
from ddim.data import ImageDataModule
from ddim.data.build import load_data
from ddim.denoisers.build import VERSIONS, check_shape, identifying_config
from ddim.denoisers.pretrained import UNSTATED, Pretrained
from ddim.display.page.write import write_report
from ddim.display.presenter import Pictures
from ddim.display.progress import GridProgress, track
from ddim.display.terminal import Terminal
from ddim.errors import UserError
from ddim.evaluation.build import build_studies, sampling, sampling_batch, studies_at
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.kept.hashes import tensors_sha256
from ddim.evaluation.running import Running
from ddim.evaluation.searching import Search, any_searched
from ddim.evaluation.study import Material, Study
from ddim.evaluation.subject import Subject
from ddim.findings.files import Files
from ddim.findings.paper import PaperTable
from ddim.findings.paper.comparison import compare, render_comparison, write_comparison
from ddim.findings.parts import GRID
from ddim.runs.ending import in_sweep
from ddim.runs.locking import locked
from ddim.runs.overrides import save_command
from ddim.runs.plugins import load_plugins
from ddim.runs.processes import first_is_ready, one_fate, wait_for_first
from ddim.runs.signals import StopRequest, resume_command
from ddim.tracking.loggers import build_loggers, finish
from ddim.tracking.presenter import Tracked
from ddim.tracking.show import show_comparison
from ddim.tracking.wandb_run import artifact_of, use_artifact
from ddim.training.callbacks.stopping import SignalHandlers
from ddim.training.precision import with_precision
from ddim.training.trainer import attach, build_trainer

log = logging.getLogger(__name__)


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
        _evaluate(cfg, directory, stop)


def _evaluate(cfg: DictConfig, directory: Path, stop: StopRequest) -> None:
    opened, statistics = open_subject(cfg)
    evaluation = evaluation_config(cfg)
    config = evaluation.config
    if statistics is not None:
        statistics.take_the_place_of_images(config.evaluation, evaluation.points)
    weights = _stated_weights(opened, config.evaluation.weights)
    quiet_libraries()
    torch.manual_seed(config.seed)
    show_progress = config.trainer.pop("enable_progress_bar", True)
    config.trainer = with_precision(begun_with(directory, config.trainer), config.denoiser)
    trainer = build_trainer(config.trainer, directory, typed=typed_keys(), sweep=in_sweep())

    wait_for_first()
    images = _images(evaluation, opened, trainer.strategy.root_device, statistics)
    # The command line may have changed what the weights do not decide, such as the resolution.
    denoiser = opened.build(config.evaluation.weights, denoiser=config.denoiser)
    check_shape(denoiser, images.space.shape, images.name)
    module = guided_module(evaluation, opened, denoiser, images)
    running, pictures = _running(evaluation, opened, denoiser, weights, images, trainer, directory, show_progress)
    running.context |= {"config": plain_config(cfg)}
    artifact = artifact_of(Path(opened.origin))
    loggers = build_loggers(
        config.logger,
        directory,
        job_type="evaluate",
        hyperparameters=plain_config(cfg) | {"subject": {**running.identity, "artifact": artifact}},
        group=_training_run(opened.origin),
    )
    attach(trainer, [SignalHandlers(stop), running], loggers)
    if statistics is not None:
        log.info("%s", statistics.said())
    plans = ", ".join(study.plan() for study in running.studies)
    log.info(
        "Evaluating %s (%s weights) in %s: %s. Everything goes to %s",
        *(opened.origin, weights, trainer.precision, plans, directory),
    )
    first_is_ready()
    alone = locked(directory, wait=False) if trainer.is_global_zero else nullcontext()
    try:
        with alone, closing(trainer, stop), one_fate(trainer):
            if trainer.is_global_zero:
                settled = {
                    "trainer.precision": config.trainer["precision"],
                    "evaluation.parts": config.evaluation.parts,
                }
                save_command(as_run(cfg, settled), directory, checkpoint=opened.origin)
                use_artifact(trainer, artifact)
            trainer.test(module, images, verbose=False)
    except BlockingIOError as error:
        raise UserError(
            f"hydra.run.dir={directory}: another evaluation is writing there; wait for it, or take another directory."
        ) from error
    _say(running, pictures, evaluation.table, trainer, directory)


def _stated_weights(opened: Pretrained, wanted: str) -> str:
    """What the weights are that are sampled. Raises `UserError` where the checkpoint has none of that kind."""
    weights = opened.select(wanted, "evaluation.weights")
    if weights == UNSTATED:
        log.warning(
            "%s does not say whether its weights are averaged (EMA); they are taken as they are.", opened.origin
        )
    return weights


def _images(
    evaluation: Evaluation, opened: Pretrained, device: torch.device, statistics: Statistics | None
) -> ImageDataModule:
    config, part = evaluation.config, evaluation.config.evaluation
    if statistics is not None:
        return statistics.images(sampling_batch(part.batch_size, statistics.shape, device))
    return load_data(
        config.dataset,
        stage="test",
        seed=config.seed,
        cache_dir=config.cache_dir,
        batch_size=1,
        eval_batch_size=lambda shape: sampling_batch(part.batch_size, shape, device),
        num_workers=0,
        test_limit=part.loss_images,
        stated=opened.space,
        origin=f"checkpoint={opened.origin}",
    )


def _running(
    evaluation: Evaluation,
    opened: Pretrained,
    denoiser: nn.Module,
    weights: str,
    images: ImageDataModule,
    trainer: pl.Trainer,
    directory: Path,
    show_progress: bool,
) -> tuple[Running, Pictures]:
    """The callback that asks the studies, and who draws what they find."""
    config = evaluation.config
    # Before any precision plugin changes them.
    weights_hash = tensors_sha256(denoiser.state_dict())
    identity = {
        "dataset": images.name,
        "checkpoint": opened.origin,
        "weights": weights,
        "weights_hash": weights_hash[:16],
        "seed": config.seed,
    }
    network = {"weights_sha256": weights_hash, "denoiser": identifying_config(denoiser)}
    if opened.predicts != "eps":
        network["predicts"] = opened.predicts
    if config.denoiser["name"] in VERSIONS:
        network["denoiser_version"] = VERSIONS[config.denoiser["name"]]
    studies, material = build_studies(
        config.evaluation,
        evaluation.points,
        images,
        seed=config.seed,
        cache_dir=config.cache_dir,
        device=trainer.strategy.root_device,
        track=track,
    )
    context: dict[str, Any] = {
        "versions": {"ddim": ddim.__version__, "torch": torch.__version__, "pytorch_lightning": pl.__version__},
        "torch_threads": torch.get_num_threads(),
        # Tells a killed evaluation from a finished one.
        "planned": {name: len(points) for name, points in evaluation.points.items()},
    }
    if material.measure is not None:
        context["reference"] = material.measure.reference.provenance
    search = Search(network, images, Path(config.cache_dir))
    pictures = Pictures(directory)
    running = Running(
        studies,
        sampling(config.seed, images.space, images.eval_batch_size),
        identity,
        Kept(directory, network, config.evaluation.partial_every_seconds),
        [Files(directory), pictures, Tracked(trainer, pictures)],
        partial(GridProgress, enabled=show_progress and trainer.is_global_zero),
        context,
        partial(_searched, evaluation, material, search) if any_searched(evaluation.points) else None,
    )
    return running, pictures


def _searched(evaluation: Evaluation, material: Material, search: Search, subject: Subject) -> list[Study]:
    """The studies at the timesteps that a search has found, in place of those that stood in for them."""
    points = search.searched(evaluation.points, subject)
    # What there was to say of their settings was said when they were first made.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return studies_at(evaluation.config.evaluation, points, material)
    finally:
        logging.disable(before)


def _say(running: Running, pictures: Pictures, table: PaperTable | None, trainer: pl.Trainer, directory: Path) -> None:
    """What was found, on the first process, beside the paper's numbers where a table was asked for."""
    records: Sequence[Mapping[str, Any]] = []
    if table is not None and trainer.is_global_zero:
        records = compare(table, running.rows)
        write_comparison(directory, table, records)
        show_comparison(trainer, table, records)
    finish(trainer)
    if not trainer.is_global_zero:
        return
    running.kept.forget_partials()
    terminal = Terminal()
    # The grids of a sweep's jobs make one table in the end.
    pictures.say(terminal, silent=(GRID,) if in_sweep() else ())
    if table is not None:
        render_comparison(table, records, terminal)
        terminal.say(f"Table     {directory / f'{table.name}.csv'}")
    terminal.say(f"Report    {write_report([directory])}")
    terminal.say(f"Pictures  in {directory}: {pictures.listed()}")


def _training_run(origin: str) -> str:
    """What a checkpoint's training run is called: the name of its directory, or what a public checkpoint is called."""
    path = Path(origin)
    return path.parent.parent.name if path.parent.name == "checkpoints" else origin
