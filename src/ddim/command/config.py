"""Typed schemas of the configuration and the checks that run before any work starts.

Hydra composes `conf/`; the dataclasses here say which keys it may hold, of which type and range.
`training_config` and `evaluation_config` turn a composed configuration into them or raise `UserError`: one sentence.

The `Attributes` of the schemas are the one place that says what a key means: `docs/configuration.md` is made of them by
`python -m tools.configuration_page`. A type in parentheses stands for what an annotation cannot say; "one of NAMES" is
replaced by these names.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ddim.diffusion import SPACINGS, NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.diffusion.guidance.settings import GuidanceConfig
from ddim.diffusion.schedule import build_schedule
from ddim.diffusion.selection import SEARCHED
from ddim.errors import UserError, at_least, one_of
from ddim.evaluation.settings import STUDIES, GeneralSettings, evaluation_schema, plan
from ddim.evaluation.study import Study
from ddim.findings.paper import TABLES, PaperTable
from ddim.findings.parts import GRID
from ddim.tracking.loggers import LoggerConfig, check_tags
from ddim.training.precision import AUTO
from ddim.training.rates import check_length
from ddim.training.settings import TrainConfig, check_monitor, sample_grid_point, training_grid

# What arguments of the Trainer may be, where they are plain values.
PLAIN_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
PRECISIONS = (AUTO, "64-true", "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true")


@dataclass
class EvaluateConfig:
    """Everything of `evaluate.py`.

    Attributes:
        checkpoint: latest, a run directory, a `.ckpt`, or a public checkpoint: a file, a diffusers directory, a hub id.
        resume: latest, or the directory of an evaluation: does what is not finished there; null starts a new one.
        table: set by the group of that name.
        seed: of all noise: sample i is the same for any batch size, device and number of processes.
        tags: words to find the evaluation by, in its configuration and in W&B.
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
    tags: list[str] = field(default_factory=list)
    output_dir: str = "outputs"
    cache_dir: str = "cache"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    evaluation: GeneralSettings = field(default_factory=GeneralSettings)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def training_config(cfg: DictConfig) -> TrainConfig:
    """Check a composed `train` configuration. Raises `UserError` naming the first key that is wrong."""
    config = _typed(TrainConfig, cfg)
    check_tags("tags", config.tags)
    for part in (config.loader, config.loss, config.objective, config.optimizer, config.callbacks, config.logger):
        part.check()
    check_monitor(config.callbacks)
    _check_seed(config.seed)
    _check_trainer(config.trainer)
    check_length(config.optimizer.schedule, config.trainer)
    schedule = build_schedule(config.schedule)
    # Both are read only after hours of training otherwise.
    for point in config.sampler.points(schedule):
        if point.tau in SEARCHED:
            raise UserError(
                f"sampler.tau={point.tau} is searched with a trained network, which evaluate.py does; the pictures of "
                f"training take one of {', '.join(SPACINGS)} or a list of timesteps."
            )
    if config.callbacks.sample_grid.enabled:
        sample_grid_point(config, schedule)
    if config.callbacks.evaluation.enabled:
        training_grid(config, schedule)
    return config


def evaluate_schema() -> type[EvaluateConfig]:
    """`EvaluateConfig` with the settings of every study that is known now."""
    evaluation = evaluation_schema()
    return make_dataclass(
        "EvaluateConfig",
        [
            ("evaluation", evaluation, field(default_factory=evaluation)),
            *((study.group, study.Settings, field(default_factory=study.Settings)) for study in _with_groups()),
        ],
        bases=(EvaluateConfig,),
        namespace={"__doc__": EvaluateConfig.__doc__},
    )


def _with_groups() -> list[type[Study]]:
    """The studies whose settings are a group of their own."""
    return [study for study in STUDIES.values() if study.group]


@dataclass(frozen=True)
class Evaluation:
    """A checked configuration with what was made while it was checked: the schedule, and the points of each part."""

    config: EvaluateConfig
    schedule: NoiseSchedule
    points: Mapping[str, Sequence[GridPoint]]
    table: PaperTable | None


def evaluation_config(cfg: DictConfig) -> Evaluation:
    """Check a composed `evaluate` configuration whose dataset, denoiser and schedule are already filled in."""
    config = _typed(evaluate_schema(), cfg)
    check_tags("tags", config.tags)
    for study in _with_groups():
        # Where a study looks for its settings.
        setattr(config.evaluation, study.name, getattr(config, study.group))
    config.evaluation.check()
    config.logger.check()
    _check_seed(config.seed)
    _check_trainer(config.trainer)
    if config.table is not None:
        one_of("table", config.table, tuple(TABLES))
    table = None if config.table is None else TABLES[config.table]
    schedule = build_schedule(config.schedule)
    points = plan(config.sampler, config.evaluation, schedule, config.guidance)
    if table is not None and GRID in points:
        points[GRID] = table.wanted(points[GRID])
    return Evaluation(config, schedule, points, table)


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
        values["sampler"] = SamplerConfig.with_options(values.get("sampler") or {})
        if "guidance" in known:
            values["guidance"] = GuidanceConfig.with_options(values.get("guidance") or {})
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except (OmegaConfBaseException, OverflowError) as error:
        key = getattr(error, "full_key", None) or _too_large(cfg) or "configuration"
        reason = str(getattr(error, "msg", None) or error).splitlines()[0].rstrip(".")
        if "dataset.channels" in reason or "dataset.resolution" in reason:
            reason = "this network takes images, and the data set has none; take denoiser=mlp or denoiser=unet_1d"
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


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def typed_keys() -> set[str]:
    """The keys on the command line."""
    return {text.lstrip("+").partition("=")[0] for text in HydraConfig.get().overrides.task}
