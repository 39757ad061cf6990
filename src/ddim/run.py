"""`train` and `evaluate`: build the objects a configuration describes and hand them to the Trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

import ddim
from ddim.callbacks import (
    EvaluationGrid,
    LastCheckpoint,
    Measure,
    SampleGrid,
    Throughput,
    TrainingEvaluation,
    TrainingProgress,
    WeightEma,
    features_name,
    track,
)
from ddim.checkpoint import BEST, CHECKPOINT_KEY, LAST, OVERRIDES_FILE, read_config, resolve_checkpoint
from ddim.config import (
    EvaluateConfig,
    TrainConfig,
    build_schedule,
    evaluation_config,
    sample_grid_point,
    training_config,
    training_grid,
)
from ddim.data import ImageDataModule, build_datamodule
from ddim.denoisers import UNet, build_denoiser
from ddim.denoisers.pretrained import denoiser_from_checkpoint, read_checkpoint
from ddim.diffusion import NoiseSource
from ddim.errors import UserError
from ddim.lit_module import DenoisingModule
from ddim.loggers import build_loggers
from ddim.metrics import (
    Features,
    ReferenceStatistics,
    build_extractor,
    compute_metrics,
    load_published_statistics,
    reference_statistics,
)
from ddim.results import Floor, render_table

log = logging.getLogger(__name__)

# What Lightning refuses on a machine that lacks it.
DEVICE_ARGUMENTS = ("accelerator", "devices", "strategy", "precision", "num_nodes")
# What a dataset's configuration says of the sampler and the evaluation, not of the images.
DATASET_DEFAULTS = ("features", "tau")


def train(cfg: DictConfig) -> float | None:
    """Train as `conf/train.yaml` describes. Returns the last validation loss (what a Hydra sweeper would minimise).

    Raises:
        UserError: anything the user can put right, before the first training step.
    """
    config = training_config(cfg)
    directory = Path(HydraConfig.get().runtime.output_dir)
    _quiet()
    pl.seed_everything(config.seed, verbose=False)
    _trainer(config.trainer, directory, logger=False)  # refuses bad arguments before any work

    datamodule = _datamodule(config.dataset, config, **asdict(config.loader))
    schedule = build_schedule(config.schedule)
    denoiser = _denoiser(config.denoiser, datamodule)
    description = {"dataset": config.dataset, "denoiser": config.denoiser, "schedule": config.schedule}
    if config.resume is not None:
        _check_same_network(Path(config.resume), description)
    module = DenoisingModule(
        denoiser,
        schedule,
        optimizer=asdict(config.optimizer),
        weighting=config.loss.weighting,
        seed=config.seed,
        config=description,
    )
    callbacks = _training_callbacks(config, module, datamodule, directory)
    trainer = _trainer(
        config.trainer,
        directory,
        callbacks=callbacks,
        logger=build_loggers(
            config.logger, directory, job_type="train", hyperparameters=_plain(cfg) | {"parameters": _count(denoiser)}
        ),
    )
    log.info(
        "Training %s (%s parameters) on %s: %s images of %sx%sx%s. Everything goes to %s",
        config.denoiser["name"],
        f"{_count(denoiser):,}",
        datamodule.name,
        f"{datamodule.num_images('train'):,}",
        datamodule.channels,
        datamodule.resolution,
        datamodule.resolution,
        directory,
    )
    if trainer.is_global_zero:
        _save_command(cfg, directory)
    trainer.fit(module, datamodule, ckpt_path=config.resume, weights_only=True)
    _finish(trainer)
    last = directory / "checkpoints" / LAST
    log.info("Trained to step %d. Checkpoint: %s", trainer.global_step, last if last.is_file() else "none")
    loss = trainer.callback_metrics.get("val/loss")
    return None if loss is None else float(loss)


def evaluate(cfg: DictConfig) -> None:
    """Evaluate a checkpoint as `conf/evaluate.yaml` describes and print the table.

    Raises:
        UserError: anything the user can put right, before the first sample.
    """
    path = resolve_checkpoint(cfg.checkpoint, Path(cfg.output_dir))
    checkpoint = read_checkpoint(path)
    OmegaConf.set_struct(cfg, False)
    for group, stored in read_config(checkpoint, path).items():
        cfg[group] = _overlaid(group, stored, cfg.get(group))
    config = evaluation_config(cfg)
    part = config.evaluation
    directory = Path(HydraConfig.get().runtime.output_dir)
    _quiet()
    pl.seed_everything(config.seed, verbose=False)
    show_progress = config.trainer.pop("enable_progress_bar", True)
    _trainer(
        config.trainer, directory, logger=False, enable_progress_bar=False
    )  # refuses bad arguments before any work

    datamodule = _datamodule(
        config.dataset,
        config,
        batch_size=1,
        eval_batch_size=part.batch_size,
        num_workers=0,
    )
    datamodule.test_limit = part.loss_images
    # The command line may have changed what the weights do not decide, such as the resolution.
    checkpoint[CHECKPOINT_KEY]["config"]["denoiser"] = config.denoiser
    denoiser = denoiser_from_checkpoint(checkpoint, part.weights, origin=path)
    _check_shape(denoiser, datamodule)
    schedule = build_schedule(config.schedule)
    measure = _measure(
        part.features,
        part.metrics,
        config,
        datamodule,
        split=part.reference_split,
        published=part.reference,
        with_floor=part.floor,
    )
    module = DenoisingModule(denoiser, schedule, optimizer={}, seed=config.seed)
    points = config.sampler.points(schedule)
    grid = EvaluationGrid(
        points,
        measure,
        NoiseSource(config.seed),
        shape=_shape(datamodule),
        num_samples=part.num_samples,
        batch_size=part.batch_size,
        directory=directory,
        identity={
            "dataset": datamodule.name,
            "checkpoint": str(path),
            "weights": part.weights,
            "seed": config.seed,
        },
        keep_images=part.grid_images,
        show_progress=show_progress,
        context={
            "config": _plain(cfg),
            "reference": measure.reference.provenance,
            "versions": {"ddim": ddim.__version__, "torch": torch.__version__, "pytorch_lightning": pl.__version__},
            "torch_threads": torch.get_num_threads(),
        },
    )
    trainer = _trainer(
        config.trainer,
        directory,
        callbacks=[grid],
        enable_progress_bar=False,
        logger=build_loggers(config.logger, directory, job_type="evaluate", hyperparameters=_plain(cfg)),
    )
    log.info(
        "Evaluating %s (%s weights): %d grid points of %s images. Everything goes to %s",
        path,
        part.weights,
        len(points),
        f"{part.num_samples:,}",
        directory,
    )
    trainer.test(module, datamodule, verbose=False)
    _finish(trainer)
    if trainer.is_global_zero:
        render_table(grid.results, measure.floor)
        print(f"\nTable     {directory / 'results.csv'}")
        print(f"Pictures  {directory / 'samples.png'}, {directory / 'distance.png'}")


def _save_command(cfg: DictConfig, directory: Path) -> None:
    overrides = [text for text in HydraConfig.get().overrides.task if not text.startswith("resume=")]
    OmegaConf.save(OmegaConf.create(overrides), directory / OVERRIDES_FILE)
    OmegaConf.save(cfg, directory / "config.yaml")


def _datamodule(dataset: Mapping[str, Any], config: TrainConfig | EvaluateConfig, **loader: int) -> ImageDataModule:
    settings = {key: value for key, value in dataset.items() if key not in DATASET_DEFAULTS}
    datamodule = build_datamodule(settings, seed=config.seed, cache_dir=Path(config.cache_dir) / "data", **loader)
    datamodule.prepare_data()
    datamodule.setup("fit" if isinstance(config, TrainConfig) else "test")
    return datamodule


def _denoiser(config: Mapping[str, Any], datamodule: ImageDataModule) -> UNet:
    try:
        denoiser = build_denoiser(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"denoiser cannot be built: {error}") from error
    _check_shape(denoiser, datamodule)
    return denoiser


def _check_shape(denoiser: UNet, datamodule: ImageDataModule) -> None:
    if denoiser.config["in_channels"] != datamodule.channels:
        raise UserError(
            f"denoiser.in_channels={denoiser.config['in_channels']} does not fit dataset {datamodule.name} with "
            f"dataset.channels={datamodule.channels}; they must be the same."
        )
    if denoiser.config["resolution"] != datamodule.resolution:
        raise UserError(
            f"denoiser.resolution={denoiser.config['resolution']} does not fit dataset {datamodule.name} with "
            f"dataset.resolution={datamodule.resolution}; they must be the same."
        )


def _training_callbacks(
    config: TrainConfig, module: DenoisingModule, datamodule: ImageDataModule, directory: Path
) -> list[Callback]:
    """In the order that matters: what samples must run before the EMA callback swaps the raw weights back."""
    part = config.callbacks
    checkpoints = directory / "checkpoints"
    callbacks: list[Callback] = [TrainingProgress()] if config.trainer.get("enable_progress_bar", True) else []
    callbacks.append(Throughput(config.trainer.get("log_every_n_steps", 50)))
    if part.sample_grid.enabled:
        callbacks.append(
            SampleGrid(
                sample_grid_point(config, module.schedule),
                _shape(datamodule),
                directory / "samples",
                num_images=part.sample_grid.num_images,
                batch_size=config.loader.eval_batch_size,
                every_n_validations=part.sample_grid.every_n_validations,
                seed=config.seed,
            )
        )
    if part.evaluation.enabled:
        callbacks.append(
            TrainingEvaluation(
                training_grid(config, module.schedule),
                _measure(part.evaluation.features, part.evaluation.metrics, config, datamodule),
                NoiseSource(config.seed),
                shape=_shape(datamodule),
                num_samples=part.evaluation.num_samples,
                batch_size=part.evaluation.batch_size,
                every_n_validations=part.evaluation.every_n_validations,
                seed=config.seed,
            )
        )
    if part.ema.enabled:
        callbacks.append(WeightEma(decay=part.ema.decay, update_every_n_steps=part.ema.update_every_n_steps))
    if part.checkpoint.monitor is not None:
        callbacks.append(
            ModelCheckpoint(
                checkpoints,
                filename=Path(BEST).stem,
                monitor=part.checkpoint.monitor,
                mode=part.checkpoint.mode,
                enable_version_counter=False,
            )
        )
    callbacks.append(LastCheckpoint(checkpoints / LAST, part.checkpoint.every_n_steps))
    return callbacks


def _measure(
    features: str,
    metrics: list[str],
    config: TrainConfig | EvaluateConfig,
    datamodule: ImageDataModule,
    *,
    split: str = "train",
    published: str | None = None,
    with_floor: bool = False,
) -> Measure:
    extractor = build_extractor(
        features,
        channels=datamodule.channels,
        resolution=datamodule.resolution,
        weights_dir=Path(config.cache_dir) / "weights",
        device=_device(config.trainer),
    )

    def statistics(of: str) -> ReferenceStatistics:
        count = datamodule.num_images(of)
        return reference_statistics(
            extractor,
            lambda: track(
                datamodule.images(of, batch_size=500), f"{features} statistics of {count:,} {of} images", count
            ),
            datamodule.provenance(of),
            Path(config.cache_dir) / "reference",
        )

    reference = _published(Path(published), extractor.dim) if published else statistics(split)
    floor = None
    if with_floor:
        real = statistics("test" if split == "train" else "train")
        assert real.features is not None
        values = compute_metrics(Features(real.features), reference, metrics, seed=config.seed)
        floor = Floor(len(real.features), values, features_name(extractor), reference.digest)
    return Measure(extractor, reference, tuple(metrics), floor)


def _published(path: Path, dim: int) -> ReferenceStatistics:
    try:
        return load_published_statistics(path, dim)
    except UserError as error:
        raise UserError(f"evaluation.reference={path}: {error}") from error


def _check_same_network(checkpoint: Path, description: Mapping[str, Any]) -> None:
    stored = read_config(read_checkpoint(checkpoint), checkpoint)
    for group in ("denoiser", "schedule"):
        for key in sorted({*stored[group], *description[group]}, key=lambda key: (key != "name", key)):
            then, now = stored[group].get(key), description[group].get(key)
            if then != now:
                raise UserError(
                    f"{group}.{key}={now} differs from {then} in {checkpoint}; a resumed run keeps its {group}."
                )


def _overlaid(group: str, stored: Mapping[str, Any], given: DictConfig | None) -> DictConfig:
    """A checkpoint's group with what the command line said of it.

    Another option replaces the group. The checkpoint's own option, named once more, changes nothing by itself: its
    file's defaults are not what the checkpoint was trained with.
    """
    base = OmegaConf.create(dict(stored))
    if given is None:
        return base
    if given.get("name", stored.get("name")) != stored.get("name"):
        return given
    typed = [text.lstrip("+").partition("=")[0] for text in HydraConfig.get().overrides.task]
    for key in given:
        if f"{group}.{key!s}" in typed:
            base[str(key)] = given[key]
    return base


def _trainer(arguments: Mapping[str, Any], directory: Path, **managed: Any) -> pl.Trainer:
    try:
        trainer = pl.Trainer(
            **{"enable_model_summary": False, **arguments},
            **managed,
            default_root_dir=directory,
            # The data room splits by index; Lightning's own sampler repeats images to fill the ranks.
            use_distributed_sampler=False,
        )
    except (ValueError, TypeError, pl.utilities.exceptions.MisconfigurationException) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        given = ", ".join(f"trainer.{key}={value}" for key, value in arguments.items() if key in DEVICE_ARGUMENTS)
        raise UserError(f"{given} cannot be used here: {reason}; trainer.accelerator=cpu works anywhere.") from error
    local_processes = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
    if local_processes and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"trainer.devices={arguments.get('devices')} with -m: every process would run the whole sweep; "
            "take one device per job, or leave -m out (lists are then one grid)."
        )
    return trainer


def _finish(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        logger.finalize("success")
        if isinstance(logger, pl.loggers.WandbLogger):
            logger.experiment.finish()


def _quiet() -> None:
    """Messages that repeat what is configured or recommend what does not apply here."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for pattern in (
        ".*LeafSpec.* is deprecated.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*does not have many workers.*",
        ".*The number of training batches.*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed from.*",
        ".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ):
        warnings.filterwarnings("ignore", pattern)


def _device(trainer: Mapping[str, Any]) -> str:
    """Where features of the real images are extracted, before there is a Trainer to ask."""
    return "cuda" if torch.cuda.is_available() and trainer.get("accelerator") in ("auto", "gpu", "cuda") else "cpu"


def _shape(datamodule: ImageDataModule) -> tuple[int, int, int]:
    return datamodule.channels, datamodule.resolution, datamodule.resolution


def _count(denoiser: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in denoiser.parameters())


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
