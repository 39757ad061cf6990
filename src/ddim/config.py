"""Typed schemas of the configuration and the checks that run before any work starts.

Hydra composes `conf/`; the dataclasses here say which keys it may hold, of which type and range.
`training_config` and `evaluation_config` turn a composed configuration into them or raise `UserError`: one sentence.

The `Attributes` of the schemas are the one place that says what a key means: `docs/configuration.md` is made of them by
`python -m tools.configuration_page`. A type in parentheses stands for what an annotation cannot say; "one of NAMES" is
replaced by these names.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddim.checks import at_least, one_of, some_of
from ddim.diffusion import NoiseSchedule
from ddim.errors import UserError
from ddim.evaluation_config import EvaluationConfig, SamplerConfig, plan
from ddim.grid import GridPoint
from ddim.metrics import FEATURES, MEASURES, METRICS
from ddim.paper import TABLES
from ddim.precision import AUTO

OPTIMIZERS = ("adam", "adamw")
LOGGERS = ("wandb", "csv", "tensorboard", "none")
WANDB_MODES = ("auto", "online", "offline")
WEIGHTINGS = ("simple", "min_snr", "snr_truncated")
# The one number of a metric that a best checkpoint may be chosen by.
MONITORED = {"frechet_distance": "frechet_distance", "kid": "kid_mean", "inception_score": "inception_score_mean"}
# W&B refuses anything else, but only after the data are loaded.
WANDB_NAME = re.compile(r"[^/\\#?%:\n\r]+")
# What arguments of the Trainer may be, where they are plain values.
PLAIN_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
PRECISIONS = (AUTO, "64-true", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")


@dataclass
class LoaderConfig:
    """How images are put into batches.

    Attributes:
        batch_size: images per device and step.
        eval_batch_size: images per device in validation, and in the sampling that goes on while training.
        num_workers: decoding processes, used only when the images do not fit into memory.
    """

    batch_size: int = 128
    eval_batch_size: int = 500
    num_workers: int = 2

    def check(self) -> None:
        at_least("loader.batch_size", self.batch_size, 1)
        at_least("loader.eval_batch_size", self.eval_batch_size, 1)
        at_least("loader.num_workers", self.num_workers, 0)


@dataclass
class LossConfig:
    """What is minimised.

    Attributes:
        weighting: of the timesteps, one of WEIGHTINGS: L_simple of Ho et al. 2020, or weights by
            the signal-to-noise ratio.
    """

    weighting: str = "simple"

    def check(self) -> None:
        one_of("loss.weighting", self.weighting, WEIGHTINGS)


@dataclass
class OptimizerConfig:
    """How the weights follow the gradient.

    Attributes:
        name: one of OPTIMIZERS.
        lr: learning rate after the warm-up.
        betas (two numbers in [0, 1)): decay of Adam's running averages.
        weight_decay: L2 penalty for adam, decoupled decay for adamw.
        warmup_steps: steps over which the learning rate rises linearly.
    """

    name: str = "adam"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 5000

    def check(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"optimizer.lr={self.lr} must be a positive number.")
        if len(self.betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1).")
        if not self.weight_decay >= 0:
            raise UserError(f"optimizer.weight_decay={self.weight_decay} must not be negative.")
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)


@dataclass
class EmaConfig:
    """The average of the weights that is validated, sampled and saved beside the raw weights.

    Attributes:
        enabled: false trains and samples the raw weights alone.
        decay (number in [0, 1)): of the exponential moving average.
        update_every_n_steps: steps between updates of the average.
    """

    enabled: bool = True
    decay: float = 0.9999
    update_every_n_steps: int = 1

    def check(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"callbacks.ema.decay={self.decay} must lie in [0, 1).")
        at_least("callbacks.ema.update_every_n_steps", self.update_every_n_steps, 1)


@dataclass
class CheckpointConfig:
    """What is kept of a training.

    Attributes:
        every_n_steps: optimizer steps between two states of `last.ckpt`; what a killed run may lose.
        monitor: the logged value whose best state is kept as `best.ckpt`; null keeps none.
        mode (min, max): whether the lowest or the highest value of `monitor` is the best.
    """

    every_n_steps: int = 1000
    monitor: str | None = "val/loss"
    mode: str = "min"

    def check(self) -> None:
        at_least("callbacks.checkpoint.every_n_steps", self.every_n_steps, 1)
        one_of("callbacks.checkpoint.mode", self.mode, ("min", "max"))


@dataclass
class SampleGridConfig:
    """A picture of the same latents again and again while training, from the validated (EMA) weights.

    Attributes:
        enabled: whether there are pictures.
        every_n_validations: 1 draws at every validation, 2 at every second one.
        num_images: in the picture.
        steps: S of the sampler.
        eta (0 ... 1, sigma_hat, sigma_hat_official): η of the sampler.
    """

    enabled: bool = True
    every_n_validations: int = 1
    num_images: int = 64
    steps: int = 20
    eta: Any = 0.0

    def check(self) -> None:
        at_least("callbacks.sample_grid.every_n_validations", self.every_n_validations, 1)
        at_least("callbacks.sample_grid.num_images", self.num_images, 1)


@dataclass
class TrainingEvaluationConfig:
    """A small evaluation grid while training, with the validated (EMA) weights.

    Attributes:
        enabled: whether anything is measured.
        every_n_validations: 1 measures at every validation, 3 at every third one.
        num_samples: images per point.
        batch_size: images that are sampled at once.
        steps (whole number, or a list): S of the points.
        eta (as sampler.eta, or a list): η of the points; `val/frechet_distance` is that of the first point.
        features: what distances are measured on, one of FEATURES.
        metrics (name, or a list): of METRICS.
    """

    enabled: bool = True
    every_n_validations: int = 5
    num_samples: int = 1000
    batch_size: int = 500
    steps: Any = field(default_factory=lambda: [10])
    eta: Any = field(default_factory=lambda: [0.0])
    features: str = "pixels"
    metrics: Any = field(default_factory=lambda: ["frechet_distance"])

    def check(self) -> None:
        prefix = "callbacks.evaluation"
        at_least(f"{prefix}.every_n_validations", self.every_n_validations, 1)
        at_least(f"{prefix}.num_samples", self.num_samples, 2)
        at_least(f"{prefix}.batch_size", self.batch_size, 1)
        one_of(f"{prefix}.features", self.features, FEATURES)
        self.metrics = some_of(f"{prefix}.metrics", self.metrics, METRICS)


@dataclass
class CallbacksConfig:
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample_grid: SampleGridConfig = field(default_factory=SampleGridConfig)
    evaluation: TrainingEvaluationConfig = field(default_factory=TrainingEvaluationConfig)

    def check(self) -> None:
        for part in (self.ema, self.checkpoint, self.sample_grid, self.evaluation):
            part.check()


@dataclass
class LoggerConfig:
    """Where numbers and pictures go, besides the files of the run.

    Attributes:
        name: one of LOGGERS.
        project: of W&B.
        entity: the W&B team or user; null is your default.
        group: W&B runs to show together; null is the training run's name, for it and all that evaluates it.
        tags: of the W&B run.
        notes: of the W&B run.
        mode (online, offline, auto): auto is offline where nobody is logged in.
        log_model: whether the checkpoints of a finished training become a W&B artifact.
    """

    name: str = "wandb"
    project: str = "ddim"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    mode: str = "auto"
    log_model: bool = False

    def check(self) -> None:
        one_of("logger.name", self.name, LOGGERS)
        one_of("logger.mode", self.mode, WANDB_MODES)
        for key in ("project", "entity", "group"):
            value = getattr(self, key)
            if value is not None and not (0 < len(value) <= 128 and WANDB_NAME.fullmatch(value)):
                raise UserError(rf"logger.{key}={value!r} must be 1 to 128 characters, none of them / \ # ? % or :.")
        for tag in self.tags:
            if not 0 < len(tag) <= 64:
                raise UserError(f"logger.tags={self.tags} must be texts of 1 to 64 characters.")


@dataclass
class TrainConfig:
    """Everything of `train.py`.

    Attributes:
        seed: of the weights, of the order of the images, and of all noise; 0 to 2^63 - 1.
        resume: latest, a run directory or a `.ckpt`: goes on in the same directory and W&B run; null starts anew.
        output_dir: where the directory of each run is made.
        cache_dir: downloads, weights and reference statistics, shared by all runs.
    """

    dataset: dict[str, Any]
    denoiser: dict[str, Any]
    schedule: dict[str, Any]
    trainer: dict[str, Any]
    seed: int = 0
    resume: str | None = None
    output_dir: str = "outputs"
    cache_dir: str = "cache"
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)


@dataclass
class EvaluateConfig:
    """Everything of `evaluate.py`.

    Attributes:
        checkpoint: latest, a run directory, a `.ckpt`, or a public checkpoint: a file, a diffusers directory, a hub id.
        resume: latest, or the directory of an evaluation: does what is not finished there; null starts a new one.
        table: set by the group of that name.
        seed: of all noise: sample i is the same for any batch size, device and number of processes.
        output_dir: where the directory of each evaluation is made, and where latest looks for runs.
        cache_dir: downloads, weights and reference statistics, shared by all runs.
    """

    dataset: dict[str, Any]
    denoiser: dict[str, Any]
    schedule: dict[str, Any]
    trainer: dict[str, Any]
    checkpoint: str = "latest"
    resume: str | None = None
    table: str | None = None
    seed: int = 0
    output_dir: str = "outputs"
    cache_dir: str = "cache"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def training_config(cfg: DictConfig) -> TrainConfig:
    """Check a composed `train` configuration. Raises `UserError` naming the first key that is wrong."""
    config = _typed(TrainConfig, cfg)
    for part in (config.loader, config.loss, config.optimizer, config.callbacks, config.logger):
        part.check()
    _check_monitor(config.callbacks)
    _check_seed(config.seed)
    _check_trainer(config.trainer)
    schedule = build_schedule(config.schedule)
    # Both are read only after hours of training otherwise.
    config.sampler.points(schedule)
    if config.callbacks.sample_grid.enabled:
        sample_grid_point(config, schedule)
    if config.callbacks.evaluation.enabled:
        training_grid(config, schedule)
    return config


def evaluation_config(cfg: DictConfig) -> EvaluateConfig:
    """Check a composed `evaluate` configuration whose dataset, denoiser and schedule are already filled in."""
    config = _typed(EvaluateConfig, cfg)
    config.evaluation.check()
    config.logger.check()
    _check_seed(config.seed)
    _check_trainer(config.trainer)
    if config.table is not None:
        one_of("table", config.table, tuple(TABLES))
    plan(config.sampler, config.evaluation, build_schedule(config.schedule))
    return config


def _check_monitor(callbacks: CallbacksConfig) -> None:
    """Lightning looks for the monitored value after the first validation, hours later."""
    monitor, part = callbacks.checkpoint.monitor, callbacks.evaluation
    losses = ("val/loss", *(f"val/loss_q{quartile}" for quartile in range(1, 5)))
    if monitor is None or monitor in losses:
        return
    one_number = MONITORED | {name: name for name, own in MEASURES.items() if own is not None}
    measured = [f"val/{one_number[name]}" for name in part.metrics if name in one_number] if part.enabled else []
    if monitor not in measured:
        known = ", ".join((*losses, *measured))
        raise UserError(f"callbacks.checkpoint.monitor={monitor} is not measured while training; known are {known}.")
    if part.every_n_validations != 1:
        raise UserError(
            f"callbacks.checkpoint.monitor={monitor} needs callbacks.evaluation.every_n_validations=1, "
            f"not {part.every_n_validations}: the best checkpoint is chosen at every validation."
        )


def build_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule that `{name: ..., **parameters}` describes."""
    parameters = dict(config)
    name = parameters.pop("name", None)
    try:
        return NoiseSchedule.from_name(name, **parameters)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"schedule={dict(config)} cannot be built: {error}") from error


def sample_grid_point(config: TrainConfig, schedule: NoiseSchedule) -> GridPoint:
    """Where the sample pictures of training are taken."""
    part = config.callbacks.sample_grid
    sampler = SamplerConfig(part.steps, part.eta, config.sampler.tau, config.sampler.clip_denoised)
    points = sampler.points(schedule, prefix="callbacks.sample_grid")
    if len(points) != 1:
        raise UserError(f"callbacks.sample_grid.eta={part.eta} must be one value, not a list.")
    return points[0]


def training_grid(config: TrainConfig, schedule: NoiseSchedule) -> list[GridPoint]:
    """The small grid that is measured while training."""
    part = config.callbacks.evaluation
    sampler = SamplerConfig(part.steps, part.eta, config.sampler.tau, config.sampler.clip_denoised)
    return sampler.points(schedule, prefix="callbacks.evaluation")


def _typed(schema: type, cfg: DictConfig) -> Any:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(plain, dict)
        # Of the resolved values: what refers to a key that a checkpoint does not state has none either.
        missing = sorted(OmegaConf.missing_keys(OmegaConf.create(plain)))
        if missing:
            raise UserError(f"{missing[0]} has no value; give one, for example {missing[0]}=VALUE.")
        known = {item.name for item in fields(schema)}
        for key in sorted(set(plain) - known, key=str):
            raise UserError(f"{key}={plain[key]} is not a setting; there are {', '.join(sorted(known))}.")
        for item in fields(schema):
            if plain.get(item.name, item) is None and "None" not in str(item.type):
                raise UserError(f"{item.name}=null is not possible here; leave it out or choose an option.")
        values = {key: value for key, value in plain.items() if key in known}
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except (OmegaConfBaseException, OverflowError) as error:
        key = getattr(error, "full_key", None) or _too_large(cfg) or "configuration"
        reason = str(getattr(error, "msg", None) or error).splitlines()[0].rstrip(".")
        raise UserError(f"{key}: {reason}.") from error


def _too_large(values: Any, key: str = "") -> str | None:
    """The first key whose whole number no float can hold; the error of that does not name it."""
    if isinstance(values, DictConfig):
        found = (_too_large(values[name], f"{key}.{name!s}".lstrip(".")) for name in values)
        return next((name for name in found if name is not None), None)
    return key if isinstance(values, int) and abs(values) > sys.float_info.max else None


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    known = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    managed = {"callbacks", "logger", "plugins", "default_root_dir", "use_distributed_sampler", "enable_checkpointing"}
    hints = typing.get_type_hints(pl.Trainer.__init__)
    for key, value in trainer.items():
        if key not in known:
            raise UserError(f"trainer.{key}={value} is not an argument of pytorch_lightning.Trainer.")
        if key in managed:
            raise UserError(f"trainer.{key}={value} is set by this program and cannot be given.")
        allowed = typing.get_args(hints[key]) or (hints[key],)
        if set(allowed) <= set(PLAIN_TYPES) and not _is_one_of(value, allowed):
            kinds = " or ".join(PLAIN_TYPES[kind] for kind in allowed)
            raise UserError(f"trainer.{key}={value} must be {kinds}.")
    for key in ("max_steps", "max_epochs"):
        value = trainer.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UserError(f"trainer.{key}={value} must be a whole number, or -1 for no limit.")
    for key, least in (("log_every_n_steps", 0), ("accumulate_grad_batches", 1), ("val_check_interval", 1)):
        value = trainer.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"trainer.{key}={value} must be a whole number of at least {least}.")
        at_least(f"trainer.{key}", value, least)
    duration = trainer.get("max_time")
    if isinstance(duration, str) and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", duration):
        raise UserError(f"trainer.max_time={duration} must have the form DD:HH:MM:SS.")
    clip = trainer.get("gradient_clip_val")
    if clip is not None and not clip >= 0:
        raise UserError(f"trainer.gradient_clip_val={clip} must be a number of at least 0; 0 or null is off.")
    precision = trainer.get("precision", AUTO)
    one_of("trainer.precision", str(precision), PRECISIONS)


def _is_one_of(value: Any, types: Sequence[type]) -> bool:
    """isinstance, but true and false are no numbers, and whole numbers are numbers."""
    return type(value) in types or (type(value) is int and float in types)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={seed} must be a whole number from 0 to 2^63 - 1.")
