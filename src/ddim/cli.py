"""What the two scripts do around Hydra: small rewrites of the command line, and errors as one sentence.

Light on purpose: nothing here imports torch, so that `--help` and shell completion answer at once.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode

from ddim.errors import UserError
from ddim.processes import say_error

# A list for these is one grid in one process; elsewhere `a,b,c` keeps Hydra's meaning, a multirun.
GRID_KEYS = (
    "sampler.steps",
    "sampler.eta",
    "sampler.tau",
    "evaluation.parts",
    "evaluation.metrics",
    *(f"evaluation.{part}.eta" for part in ("consistency", "trajectory", "diversity")),
    "callbacks.evaluation.steps",
    "callbacks.evaluation.eta",
)
# Groups that take keys no file in conf/ lists: any argument of Lightning's Trainer (checked by name later), and in
# evaluate.py what the checkpoint supplies.
TRAINER = ("trainer",)
MULTIRUN = ("-m", "--multirun")
SUPPLIED = ("dataset", "denoiser", "schedule")


def exit_with_sentence(task: Callable[[], Any]) -> Any:
    """Run `task`; a `UserError` becomes one sentence on stderr and exit status 2 (HYDRA_FULL_ERROR=1: a traceback).

    In a job of a sweep it stays an exception: `ddim.sweep` says it and lets the other jobs go on.
    """
    try:
        return task()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or in_sweep():
            raise
        say_error(error)
        sys.exit(2)


def in_sweep() -> bool:
    """Whether this is a job of a Hydra multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def training_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of train.py as Hydra gets it: grids as lists, and for `resume=` the run's own overrides.

    Raises:
        UserError: `resume=` names nothing that can be resumed.
    """
    rewritten = _additions(_grids_as_lists(arguments), TRAINER)
    resume = _value_of("resume", rewritten)
    if resume in (None, "null"):
        return rewritten
    from ddim.checkpoint import OVERRIDES_FILE, resolve_checkpoint, run_directory  # torch loads only where it is needed

    checkpoint = resolve_checkpoint(resume, Path(_value_of("output_dir", rewritten) or "outputs"), "resume")
    directory = run_directory(checkpoint)
    saved = yaml.safe_load((directory / OVERRIDES_FILE).read_text()) or []
    given = {_key(argument) for argument in rewritten}
    kept = [override for override in saved if _key(override) not in given | {"resume"}]
    rest = [argument for argument in rewritten if _key(argument) != "resume"]
    return [
        *kept,
        *rest,
        f"resume={_quoted(str(checkpoint))}",
        f"hydra.run.dir={_quoted(str(directory))}",
        "hydra.output_subdir=null",  # a resumption that is refused must not change the run
    ]


def evaluation_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of evaluate.py as Hydra gets it: grids as lists, additions allowed."""
    return _additions(_grids_as_lists(arguments), TRAINER + SUPPLIED)


def sweep_arguments(arguments: Sequence[str]) -> list[str]:
    """The same for a multirun: all its jobs take the checkpoint that is the newest now, whenever they start.

    Raises:
        UserError: a sweep has no checkpoint to begin with, or its launcher is not installed.
    """
    _check_launcher(arguments)
    options = [argument for argument in arguments if argument.startswith("-")]
    if not options or not all(option in MULTIRUN for option in options):
        return list(arguments)
    if _value_of("checkpoint", arguments) not in (None, "latest") or _is_swept("checkpoint", arguments):
        return list(arguments)
    from ddim.checkpoint import latest_checkpoint

    newest = latest_checkpoint(Path(_value_of("output_dir", arguments) or "outputs"))
    kept = [argument for argument in arguments if _key(argument) != "checkpoint"]
    return [*kept, f"checkpoint={_quoted(str(newest))}"]


def _check_launcher(arguments: Sequence[str]) -> None:
    """Hydra knows a launcher only where its plugin is installed."""
    launcher = _value_of("hydra/launcher", arguments) or "basic"
    plugin = {"joblib": "joblib", "submitit": "submitit", "slurm": "submitit"}.get(launcher.partition("_")[0])
    module = f"hydra_{plugin}_launcher"
    if plugin is not None and not _installed(f"hydra_plugins.{module}"):
        raise UserError(f"hydra/launcher={launcher} needs the package {module}: pip install -e '.[cluster]'")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def _additions(arguments: Sequence[str], groups: Sequence[str]) -> list[str]:
    """`trainer.max_time=...` -> `++trainer.max_time=...`, so that Hydra accepts keys the group's file does not have."""
    rewritten = []
    for argument in arguments:
        group, dot, _ = (_key(argument) or "").partition(".")
        adds = bool(dot) and group in groups and not argument.startswith(("+", "~"))
        rewritten.append(f"++{argument}" if adds else argument)
    return rewritten


def _grids_as_lists(arguments: Sequence[str]) -> list[str]:
    """`sampler.steps=10,20,50` -> `sampler.steps=[10,20,50]`, unless this is a multirun, whose sweeps these are."""
    if any(argument in MULTIRUN for argument in arguments):
        return list(arguments)
    return [_as_list(argument) if _key(argument) in GRID_KEYS else argument for argument in arguments]


def _as_list(argument: str) -> str:
    override = _parse(argument)
    if override is None or not override.is_choice_sweep():
        return argument
    name, _, values = argument.partition("=")
    return f"{name}=[{values}]"


def _parse(argument: str) -> Override | None:
    if argument.startswith("-") or "=" not in argument:
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None  # Hydra itself says what is wrong with it


def _key(argument: str) -> str | None:
    override = _parse(argument)
    return None if override is None else override.key_or_group


def _value_of(key: str, arguments: Sequence[str]) -> str | None:
    for argument in reversed(arguments):
        override = _parse(argument)
        if override is not None and override.key_or_group == key and not override.is_sweep_override():
            value = override.value()
            return None if value is None else str(value.text if isinstance(value, QuotedString) else value)
    return None


def _is_swept(key: str, arguments: Sequence[str]) -> bool:
    overrides = [_parse(argument) for argument in arguments]
    return any(o is not None and o.key_or_group == key and o.is_sweep_override() for o in overrides)


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()
