"""From a checked configuration to the objects of a run: data, network, callbacks, measure, Trainer."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher
from pytorch_lightning.utilities import rank_zero_only

from ddim.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    Measure,
    SampleGrid,
    Sampling,
    SignalHandlers,
    StopOnDivergence,
    Throughput,
    TrainingEvaluation,
    TrainingProgress,
    WeightEma,
    features_name,
    track,
)
from ddim.checkpoint import BEST, LAST
from ddim.checkpoint_io import AtomicCheckpointIO
from ddim.config import EvaluateConfig, TrainConfig, sample_grid_point, training_grid
from ddim.data import ImageDataModule, build_datamodule
from ddim.denoisers import UNet, build_denoiser
from ddim.diffusion import NoiseSource
from ddim.errors import UserError
from ddim.lit_module import DenoisingModule
from ddim.metrics import (
    NEIGHBOURS,
    FeatureExtractor,
    ReferenceStatistics,
    build_extractor,
    compute_floor,
    load_published_statistics,
    reference_statistics,
)
from ddim.processes import place
from ddim.results import Floor
from ddim.signals import StopRequest

log = logging.getLogger(__name__)

# What Lightning refuses on a machine that lacks it.
DEVICE_ARGUMENTS = ("accelerator", "devices", "strategy", "precision", "num_nodes")
# Pixels sampled at once. On two CPU cores the CIFAR-10 network takes 17% longer per image in batches of 128 than of 32.
CPU_PIXELS, GPU_PIXELS = 32 * 32**2, 1024 * 32**2
MOST_AT_ONCE = 4096
# What a dataset's configuration says of the sampler and the evaluation, not of the images.
DATASET_DEFAULTS = ("features", "tau", "table")
MAX_BLOCKS = 100
# Processes on the CPU are for trying things out; two of them may share a core.
FEWEST_CPU_PROCESSES = 2


def load_data(dataset: Mapping[str, Any], config: TrainConfig | EvaluateConfig, **loader: int) -> ImageDataModule:
    """The data set, downloaded and checked. Raises `UserError` where it is not to be had."""
    settings = {key: value for key, value in dataset.items() if key not in DATASET_DEFAULTS}
    datamodule = build_datamodule(settings, seed=config.seed, cache_dir=Path(config.cache_dir) / "data", **loader)
    datamodule.prepare_data()
    datamodule.setup("fit" if isinstance(config, TrainConfig) else "test")
    return datamodule


def new_denoiser(config: Mapping[str, Any], datamodule: ImageDataModule) -> UNet:
    """An untrained network for these images. Raises `UserError` where it cannot be built or does not fit."""
    try:
        _check_size(config)
        denoiser = build_denoiser(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"denoiser cannot be built: {error}") from error
    check_shape(denoiser, datamodule)
    return denoiser


def _check_size(config: Mapping[str, Any]) -> None:
    blocks = config.get("num_res_blocks", 1)
    if isinstance(blocks, int) and blocks > MAX_BLOCKS:
        raise ValueError(f"num_res_blocks must be at most {MAX_BLOCKS}, got {blocks}")
    try:
        with torch.device("meta"):
            weights = sum(weight.numel() for weight in build_denoiser(config).parameters())
    except RuntimeError as error:  # more than can be counted
        raise ValueError(f"denoiser.base_channels={config.get('base_channels')} is too large: {error}") from error
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * weights > memory:
        raise ValueError(
            f"its {weights:,} parameters need {4 * weights / 1e9:,.0f} GB, this machine has {memory / 1e9:,.0f} GB; "
            "lower denoiser.base_channels or denoiser.channel_mult"
        )


def check_shape(denoiser: UNet, datamodule: ImageDataModule) -> None:
    """Refuse (`UserError`) a denoiser of other channels or resolution than the images."""
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


def training_callbacks(
    config: TrainConfig,
    module: DenoisingModule,
    datamodule: ImageDataModule,
    directory: Path,
    stop: StopRequest | None = None,
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
                sampling(config.seed, datamodule, config.loader.eval_batch_size),
                directory / "samples",
                num_images=part.sample_grid.num_images,
                every_n_validations=part.sample_grid.every_n_validations,
            )
        )
    if part.evaluation.enabled:
        extractor = load_extractor(part.evaluation.features, config, datamodule)
        warn_of_few_samples(
            "callbacks.evaluation.num_samples", part.evaluation.num_samples, extractor, part.evaluation.metrics
        )
        callbacks.append(
            TrainingEvaluation(
                training_grid(config, module.schedule),
                build_measure(
                    extractor,
                    part.evaluation.metrics,
                    config,
                    datamodule,
                ),
                sampling(config.seed, datamodule, part.evaluation.batch_size),
                num_samples=part.evaluation.num_samples,
                every_n_validations=part.evaluation.every_n_validations,
                seed=config.seed,
            )
        )
    if part.ema.enabled:
        callbacks.append(WeightEma(decay=part.ema.decay, update_every_n_steps=part.ema.update_every_n_steps))
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


@rank_zero_only
def warn_of_few_samples(key: str, num_samples: int, extractor: FeatureExtractor, metrics: Sequence[str]) -> None:
    """Say what a Fréchet distance of so few samples is worth."""
    if "frechet_distance" in metrics and num_samples <= extractor.dim:
        log.warning(
            "%s=%d is no more than the %d dimensions of %s: the covariance of the samples is singular and the Fréchet "
            "distance biased upwards; compare it only with distances of as many samples, or take more.",
            key,
            num_samples,
            extractor.dim,
            extractor.name,
        )


def sampling_batch(batch_size: int | None, resolution: int, trainer: Mapping[str, Any]) -> int:
    """`evaluation.batch_size`, or how many images of resolution x resolution are sampled at once where it is null.

    On a CPU what the caches hold, on a GPU what keeps it busy; `in_batches` halves what memory does not hold.
    """
    if batch_size is not None:
        return batch_size
    pixels = GPU_PIXELS if _device(trainer) == "cuda" else CPU_PIXELS
    return min(MOST_AT_ONCE, max(1, pixels // resolution**2))


def sampling(seed: int, datamodule: ImageDataModule, batch_size: int) -> Sampling:
    """Samples of the size of these images."""
    shape = (datamodule.channels, datamodule.resolution, datamodule.resolution)
    return Sampling(NoiseSource(seed), shape, batch_size)


def load_extractor(
    features: str, config: TrainConfig | EvaluateConfig, datamodule: ImageDataModule
) -> FeatureExtractor:
    """The feature extractor for these images. Raises `UserError` where its weights are not to be had."""
    return build_extractor(
        features,
        channels=datamodule.channels,
        resolution=datamodule.resolution,
        weights_dir=Path(config.cache_dir) / "weights",
        device=_device(config.trainer),
    )


def build_measure(
    extractor: FeatureExtractor,
    metrics: list[str],
    config: TrainConfig | EvaluateConfig,
    datamodule: ImageDataModule,
    *,
    split: str = "train",
    published: str | None = None,
    with_floor: bool = False,
) -> Measure:
    """Reference statistics: of `split`, or of a `published` file; the floor is the other split's."""

    def statistics(of: str) -> ReferenceStatistics:
        count = datamodule.num_images(of)
        return reference_statistics(
            extractor,
            lambda: track(
                datamodule.images(of, batch_size=500), f"{extractor.name} statistics of {count:,} {of} images", count
            ),
            datamodule.provenance(of),
            Path(config.cache_dir) / "reference",
        )

    reference = _published(Path(published), extractor.dim) if published else statistics(split)
    device = _device(config.trainer)
    if "precision_recall" in metrics and reference.features is not None and len(reference.features) > NEIGHBOURS:
        # Here, while other processes wait: they find them in the cache.
        reference.radii(NEIGHBOURS, device)
    floor = None
    if with_floor:
        real = statistics("test" if split == "train" else "train")
        assert real.features is not None
        values = compute_floor(real, reference, metrics, config.seed, device)
        floor = Floor(len(real.features), values, features_name(extractor), reference.digest)
    return Measure(extractor, reference, tuple(metrics), floor, None if published else split)


def _published(path: Path, dim: int) -> ReferenceStatistics:
    try:
        return load_published_statistics(path, dim)
    except UserError as error:
        raise UserError(f"evaluation.reference={path}: {error}") from error


def build_trainer(arguments: Mapping[str, Any], directory: Path, **managed: Any) -> pl.Trainer:
    """Lightning's Trainer with the user's arguments. Raises `UserError` where this machine cannot do them."""
    arguments = _for_processes(arguments)
    try:
        trainer = pl.Trainer(
            **{"enable_model_summary": False, **arguments},
            **managed,
            default_root_dir=directory,
            plugins=[AtomicCheckpointIO()],
            # The data room splits by index; Lightning's own sampler repeats images to fill the ranks.
            use_distributed_sampler=False,
        )
    except (
        ValueError,
        TypeError,
        RuntimeError,
        OverflowError,
        pl.utilities.exceptions.MisconfigurationException,
    ) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        named = [key for key in arguments if re.search(rf"\b{key}\b", reason) and key not in DEVICE_ARGUMENTS]
        if named:
            raise UserError(f"trainer.{named[0]}={arguments[named[0]]} cannot be used: {reason}.") from error
        given = ", ".join(f"trainer.{key}={value}" for key, value in arguments.items() if key in DEVICE_ARGUMENTS)
        raise UserError(f"{given} cannot be used here: {reason}; trainer.accelerator=cpu works anywhere.") from error
    most = max(os.cpu_count() or 1, FEWEST_CPU_PROCESSES)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise UserError(
            f"trainer.devices={arguments.get('devices')} would start {trainer.num_devices} processes on a CPU with "
            f"{os.cpu_count()} cores; take at most trainer.devices={most}."
        )
    local_processes = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
    if local_processes and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"trainer.devices={arguments.get('devices')} with -m: every process would run the whole sweep; "
            "take one device per job, or leave -m out (lists are then one grid)."
        )
    return trainer


def _for_processes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments with as many devices as torchrun or srun started processes.

    Without them each process would do all the work, as if it were alone.
    """
    here = place()
    if not here.started_alike:
        return dict(arguments)
    counts = {"devices": here.world_size // here.num_nodes, "num_nodes": here.num_nodes}
    typed = {text.lstrip("+").partition("=")[0] for text in HydraConfig.get().overrides.task}
    for key, count in counts.items():
        if f"trainer.{key}" in typed and arguments[key] not in (count, "auto"):
            raise UserError(
                f"trainer.{key}={arguments[key]} does not fit the {here.world_size} processes on {here.num_nodes} "
                f"machines that {here.started_by} started; leave it out or take trainer.{key}={count}."
            )
    return {**arguments, **counts}


def _device(trainer: Mapping[str, Any]) -> str:
    """Where features of the real images are extracted, before there is a Trainer to ask."""
    return "cuda" if torch.cuda.is_available() and trainer.get("accelerator") in ("auto", "gpu", "cuda") else "cpu"
