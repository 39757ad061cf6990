"""Registers a user's own data sets, denoisers, samplers, guidance, schedules, weightings of the loss, operators of
restoration, metrics, features and studies; docs/extending.md shows how.

A registered name is an option of its group, or a value of `loss.weighting`, `restoration.operator`,
`evaluation.metrics`, `evaluation.features` or `evaluation.parts`. The file that registers it is named in the
environment variable DDIM_PLUGINS (`ddim.runs.plugins`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any, TypeVar

from torch import Tensor, nn

from ddim.data.build import SOURCES
from ddim.data.functions import DATASET_DEFAULTS, source_of
from ddim.data.options import Options
from ddim.data.splits import ArraySplit
from ddim.denoisers.build import DENOISERS, OF_THE_DATASET, VERSIONS
from ddim.diffusion import (
    BUILT_IN,
    GUIDANCE,
    OPTIONS,
    SAMPLERS,
    SCHEDULES,
    WEIGHTINGS,
    Guidance,
    NoiseSchedule,
    Sampler,
)
from ddim.diffusion.objectives import check_weighting
from ddim.diffusion.restoration.operators.dense import Function, of_foreign
from ddim.diffusion.restoration.operators.table import OPERATORS
from ddim.errors import UserError
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.settings import STUDIES, GeneralSettings
from ddim.evaluation.study import Study, check_study
from ddim.findings.part import Line, Part
from ddim.findings.parts import PARTS
from ddim.metrics import EXTRACTORS, MEASURES, FeatureExtractor, Features, Metric, ReferenceStatistics
from ddim.runs.hashes import source_version
from ddim.runs.registering import check_name, defaults_of, store_option

__all__ = [
    "ArraySplit",
    "FeatureExtractor",
    "Features",
    "Line",
    "NoiseSchedule",
    "Options",
    "Part",
    "ReferenceStatistics",
    "Study",
    "in_batches",
    "register_dataset",
    "register_denoiser",
    "register_features",
    "register_guidance",
    "register_metric",
    "register_operator",
    "register_sampler",
    "register_schedule",
    "register_study",
    "register_weighting",
]
T = TypeVar("T", bound=Callable[..., Any])
# Options of `evaluation` that are no studies.
SETTINGS_OF_EVALUATION = ("all", "paper")


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
        check_name("dataset", name, SOURCES)
        own = {} if inspect.isclass(source) else defaults_of(source, skip=1)
        values = {"name": name, "channels": channels, "resolution": resolution, **DATASET_DEFAULTS, **own, **settings}
        make: Any = source if inspect.isclass(source) else source_of(source, channels, resolution, own)
        SOURCES[name] = make
        store_option("dataset", name, values)
        store_option("denoiser", f"unet_{name}", {"defaults": [denoiser]})
        store_option("recipe", name, {"defaults": [recipe]}, package="_global_")
        return source

    return register


def register_denoiser(name: str) -> Callable[[T], T]:
    """`denoiser=NAME`, from a class, an `nn.Module` whose forward is (x (N, ...), t (N,)) -> eps of x's shape.

    Parameters of its constructor called `channels` (or `in_channels`) and `resolution` are those of the data set. The
    others, which need defaults, are settings: `denoiser.PARAMETER`. It has the attributes or properties `config`, the
    value of each parameter by its name, and `sample_shape`, that of one x, (channels, resolution, resolution).

    Raises:
        UserError: the name is taken or no name, it is no such class, or a parameter has no default.
    """

    def register(network: T) -> T:
        check_name("denoiser", name, DENOISERS)
        if not (inspect.isclass(network) and issubclass(network, nn.Module)):
            raise UserError(f"the denoiser {name} must be a class that derives torch.nn.Module.")
        settings = {
            key: OF_THE_DATASET.get(key, value) for key, value in defaults_of(network, known=OF_THE_DATASET).items()
        }
        DENOISERS[name], VERSIONS[name] = network, source_version(network)
        store_option("denoiser", name, {"name": name, **settings})
        return network

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
        check_name("sampler", name, SAMPLERS)
        own = {key: value for key, value in defaults_of(function, skip=4, known=OPTIONS).items() if key not in OPTIONS}
        SAMPLERS[name] = Sampler(function, nfe, own, inverse, source_version(function))
        options = {"steps": [5, 10, 20, 50], "nfe": None, "eta": 0.0, "tau": "${oc.select:dataset.tau,'???'}"}
        store_option(
            "sampler",
            name,
            {"name": name, **options, "clip_denoised": False, "eps_scale": 1.0, "eps_slope": 0.0, **own},
        )
        return function

    return register


def register_guidance(name: str) -> Callable[[T], T]:
    """`guidance=NAME`, from a function (model, **options) -> denoiser (x (N, ...), t (N,)) -> eps of x's shape.

    `model` is a `ddim.diffusion.Conditional`: called as (x, t) it is what the network says of each sample's own
    condition, `model.unconditional` says it whatever a sample is of, and `model.schedule` how noisy a timestep is. The
    further parameters, which need defaults, are options: `guidance.PARAMETER`, of which `scale` may be given as a list.

    Raises:
        UserError: the name is taken or no name, or an option has no default.
    """

    def register(function: T) -> T:
        check_name("guidance", name, GUIDANCE)
        own = defaults_of(function, skip=1)
        GUIDANCE[name] = Guidance(function, own, version=source_version(function))
        store_option("guidance", name, {"name": name, **own, "labels": None})
        return function

    return register


def register_schedule(name: str) -> Callable[[T], T]:
    """`schedule=NAME`, from a function (num_timesteps, ...) -> alpha_bar (T,), strictly falling inside (0, 1).

    Its parameters, which need defaults, are `schedule.PARAMETER`.

    Raises:
        UserError: the name is taken or no name, or a parameter has no default.
    """

    def register(function: T) -> T:
        check_name("schedule", name, [*SCHEDULES, *BUILT_IN])
        parameters = defaults_of(function)
        SCHEDULES[name] = function
        store_option("schedule", name, {"name": name, **parameters})
        return function

    return register


def register_weighting(name: str) -> Callable[[T], T]:
    """`loss.weighting=NAME`, from a function of the signal-to-noise ratio ᾱ / (1 - ᾱ), float64 (N,).

    It returns the factors (N,) on the squared errors of eps; what multiplies those of x_0 is divided by the ratio.

    Raises:
        UserError: the name is taken or no name, a parameter has no default, or it does not give one finite number of at
            least 0 for each ratio.
    """

    def register(function: T) -> T:
        check_name("weighting", name, WEIGHTINGS)
        defaults_of(function, skip=1)
        check_weighting(name, function)
        WEIGHTINGS[name] = function
        return function

    return register


def register_operator(name: str) -> Callable[[T], T]:
    """`restoration.operator=NAME`, from a linear function of images x (N, C, H, W) in [-1, 1] to A x (N, ...).

    Its matrix is asked for column by column and decomposed, so that every method that is not for one operator alone
    takes it. Images may have 4096 values.

    Raises:
        UserError: the name is taken or no name, or a parameter has no default.
    """

    def register(function: T) -> T:
        check_name("operator", name, OPERATORS)
        defaults_of(function, skip=1)
        OPERATORS[name] = lambda shape, given: of_foreign(name, Function(function), shape)
        return function

    return register


def register_metric(name: str) -> Callable[[T], T]:
    """A name for `evaluation.metrics`, from a function (generated: Features, reference: ReferenceStatistics) -> number.

    The number is a column of the results and the table, and `val/NAME` where it is measured while training.

    Raises:
        UserError: the name is taken or no name.
    """

    def register(function: T) -> T:
        check_name("metric", name, MEASURES)
        MEASURES[name] = Metric(function, source_version(function))
        return function

    return register


def register_features(name: str) -> Callable[[T], T]:
    """A name for `evaluation.features`, from (channels, resolution) -> FeatureExtractor, a class of it for example.

    Its `provenance` must hold whatever the features depend on besides the images, such as a hash of its weights.

    Raises:
        UserError: the name is taken or no name.
    """

    def register(make: T) -> T:
        check_name("features", name, EXTRACTORS)
        EXTRACTORS[name] = make
        return make

    return register


def register_study(part: Part) -> Callable[[T], T]:
    """`evaluation=NAME`, and NAME in `evaluation.parts`, from a class deriving `Study` and how it is told.

    NAME is that of the part. Its `Settings` is a dataclass whose fields have defaults, `evaluation.NAME.FIELD`, and
    which has check(key), raising `UserError` where one of them is wrong.

    Raises:
        UserError: the name is taken or no name, or the class is no study yet.
    """

    def register(study: T) -> T:
        name, general = part.name, [entry.name for entry in fields(GeneralSettings)]
        files = [known.table_name() for known in PARTS.values()]
        check_name("study", name, [*PARTS, *files, *general, *SETTINGS_OF_EVALUATION])
        checked = check_study(name, study)
        # The part has its name; what the class may say of it would be the same again.
        checked.name = name
        own = {name: asdict(checked.Settings())} if defaults_of(checked.Settings) else {}
        STUDIES[name], PARTS[name] = checked, part
        store_option("evaluation", name, {"defaults": ["grid"], "parts": [name], **own})
        return study

    return register
