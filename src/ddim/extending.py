"""Registers a user's own data sets, samplers, schedules, metrics and features; docs/extending.md shows how.

A registered name is an option of its group, and a value of `sampler.name`, `evaluation.metrics` or
`evaluation.features`. The file that registers it is named in the environment variable DDIM_PLUGINS (`ddim.plugins`).
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from torch import Tensor

from ddim.data.build import SOURCES
from ddim.data.datamodule import Source
from ddim.data.options import Options
from ddim.data.splits import ArraySplit
from ddim.diffusion import BUILT_IN, OPTIONS, SAMPLERS, SCHEDULES, NoiseSchedule, Sampler
from ddim.errors import UserError
from ddim.metrics import EXTRACTORS, MEASURES, FeatureExtractor, Features, Metric, ReferenceStatistics

__all__ = [
    "ArraySplit",
    "FeatureExtractor",
    "Features",
    "NoiseSchedule",
    "Options",
    "ReferenceStatistics",
    "register_dataset",
    "register_features",
    "register_metric",
    "register_sampler",
    "register_schedule",
]
T = TypeVar("T", bound=Callable[..., Any])
# What a data set's option says besides the arguments of its function.
DATASET_DEFAULTS: dict[str, Any] = {"random_flip": False, "label": None, "features": "pixels", "tau": "linear"}


def register_dataset(
    name: str, *, channels: int, resolution: int, denoiser: str = "unet_small", recipe: str = "digits", **settings: Any
) -> Callable[[T], T]:
    """`dataset=NAME`, from a function (split, **settings) -> images.

    The function returns uint8 images (N, channels, resolution, resolution) of the split "train" or "test", as a tensor
    or an array, the same at every call. Its further parameters, which need defaults, are settings: `dataset.PARAMETER`.

    Instead of a function, a class (options, cache_dir) with `channels`, `resolution`, `prepare()`, `open(split)` and
    `details()` may read images from disk, as `ddim.data.image_folder.ImageFolder` does.

    Args:
        denoiser, recipe: the options of these groups that are the default with this data set.
        settings: further values of the option, such as features="pixels", tau="quadratic"; of a class, its settings.

    Raises:
        UserError: the name is taken or no name, or a parameter has no default.
    """

    def register(source: T) -> T:
        _check_name("dataset", name, SOURCES)
        own = {} if inspect.isclass(source) else _defaults(source, skip=1)
        values = {"name": name, "channels": channels, "resolution": resolution, **DATASET_DEFAULTS, **own, **settings}
        make: Any = source if inspect.isclass(source) else _source_of(source, channels, resolution, own)
        SOURCES[name] = make
        _store("dataset", name, values)
        _store("denoiser", f"unet_{name}", {"defaults": [denoiser]})
        _store("recipe", name, {"defaults": [recipe]}, package="_global_")
        return source

    return register


def register_sampler(
    name: str, *, nfe: Callable[..., int] = lambda steps: steps, inverse: Callable[..., Tensor] | None = None
) -> Callable[[T], T]:
    """`sampler=NAME`, from a function (denoiser, x_T, schedule, timesteps, **options) -> x_0 of x_T's shape.

    It has parameters for those options that it knows, of eta, variance, clip_denoised, noise and on_step, whose
    meanings are those of `ddim.diffusion.sample`; what it has no parameter for cannot be asked of it. Any further
    parameters, which need defaults, are options of its own: `sampler.PARAMETER`, a column of the results.

    Args:
        nfe: number of timesteps -> how often it calls the denoiser; it is given those of the own options that it has
            parameters for. Results say so, and it is checked.
        inverse: (denoiser, x_0, schedule, timesteps, **own options) -> x_T, for `evaluation=reconstruction`.

    Raises:
        UserError: the name is taken or no name, or an option has no default.
    """

    def register(function: T) -> T:
        _check_name("sampler", name, SAMPLERS)
        own = {key: value for key, value in _defaults(function, skip=4, known=OPTIONS).items() if key not in OPTIONS}
        SAMPLERS[name] = Sampler(function, nfe, own, inverse, _version(function))
        options = {"steps": [5, 10, 20, 50], "eta": 0.0, "tau": "${oc.select:dataset.tau,'???'}"}
        _store("sampler", name, {"name": name, **options, "clip_denoised": False, **own})
        return function

    return register


def register_schedule(name: str) -> Callable[[T], T]:
    """`schedule=NAME`, from a function (num_timesteps, ...) -> alpha_bar (T,), strictly falling inside (0, 1).

    Its parameters, which need defaults, are `schedule.PARAMETER`.

    Raises:
        UserError: the name is taken or no name, or a parameter has no default.
    """

    def register(function: T) -> T:
        _check_name("schedule", name, [*SCHEDULES, *BUILT_IN])
        parameters = _defaults(function)
        SCHEDULES[name] = function
        _store("schedule", name, {"name": name, **parameters})
        return function

    return register


def register_metric(name: str) -> Callable[[T], T]:
    """A name for `evaluation.metrics`, from a function (generated: Features, reference: ReferenceStatistics) -> number.

    The number is a column of the results and the table, and `val/NAME` where it is measured while training.

    Raises:
        UserError: the name is taken or no name.
    """

    def register(function: T) -> T:
        _check_name("metric", name, MEASURES)
        MEASURES[name] = Metric(function, _version(function))
        return function

    return register


def register_features(name: str) -> Callable[[T], T]:
    """A name for `evaluation.features`, from (channels, resolution) -> FeatureExtractor, a class of it for example.

    Its `provenance` must hold whatever the features depend on besides the images, such as a hash of its weights.

    Raises:
        UserError: the name is taken or no name.
    """

    def register(make: T) -> T:
        _check_name("features", name, EXTRACTORS)
        EXTRACTORS[name] = make
        return make

    return register


def _source_of(function: Callable[..., Any], channels: int, resolution: int, own: Mapping[str, Any]) -> Any:
    class FunctionSource:
        def __init__(self, options: Options, cache_dir: Path) -> None:
            self.channels = options.choice("channels", channels, (channels,))
            self.resolution = options.choice("resolution", resolution, (resolution,))
            self.settings = {key: options.like(key, value) for key, value in own.items()}

        def prepare(self) -> None:
            """The function makes its images when they are asked for."""

        def open(self, split: str) -> ArraySplit:
            images = _tensor(function(split, **self.settings))
            if images.dtype != torch.uint8 or images.shape[1:] != (self.channels, self.resolution, self.resolution):
                raise UserError(
                    f"{function.__name__} must give uint8 images of shape "
                    f"(N, {self.channels}, {self.resolution}, {self.resolution}), "
                    f"not {images.dtype} {tuple(images.shape)}."
                )
            return ArraySplit(images)

        def details(self) -> dict[str, Any]:
            return {"split_rule": function.__name__, "settings": self.settings}

    source: type[Source] = FunctionSource
    return source


def _defaults(function: Callable[..., Any], skip: int = 0, known: Collection[str] = ()) -> dict[str, Any]:
    """{name: default} of the parameters after the first `skip`; those that are `known` need no default."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    for parameter in parameters:
        if parameter.name in known:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise UserError(f"the parameter {parameter.name} of {function.__name__} needs a default.")
    return {parameter.name: parameter.default for parameter in parameters}


def _check_name(kind: str, name: str, taken: Any) -> None:
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"the {kind} {name!r} needs a name of letters, digits and underscores.")
    if name in taken:
        raise UserError(f"there is a {kind} {name} already; take another name.")


def _store(group: str, name: str, node: dict[str, Any], package: str | None = None) -> None:
    ConfigStore.instance().store(group=group, name=name, node=node, package=package or group, provider="ddim")


def _version(function: Callable[..., Any]) -> str:
    """Changes with the file that a function is from, so that what an earlier version has finished is done again."""
    try:
        text = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):  # typed into an interpreter
        text = repr((function.__code__.co_code, function.__code__.co_consts)).encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _tensor(images: Any) -> Tensor:
    return images if isinstance(images, Tensor) else torch.as_tensor(np.asarray(images))
