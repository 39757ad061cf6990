"""What the two scripts do around Hydra: small rewrites of the command line, and errors as one sentence.

Light on purpose: nothing here imports torch, so that `--help` and shell completion answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from ddim.errors import UserError

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
SUPPLIED = ("dataset", "denoiser", "schedule")


def exit_with_sentence(task: Callable[[], Any]) -> Any:
    """Run `task`; a `UserError` becomes one sentence on stderr and exit status 2 (HYDRA_FULL_ERROR=1: a traceback)."""
    try:
        return task()
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def training_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of train.py as Hydra gets it: grids as lists, and for `resume=` the run's own overrides.

    Raises:
        UserError: `resume=` names nothing that can be resumed.
    """
    rewritten = _additions(_grids_as_lists(arguments), TRAINER)
    resume = _value_of("resume", rewritten)
    if resume in (None, "null"):
        return rewritten
    from ddim.checkpoint import resolve_checkpoint, run_directory  # torch loads only where it is needed

    checkpoint = resolve_checkpoint(resume, _output_dir(rewritten), "resume")
    return _replayed(run_directory(checkpoint), rewritten, str(checkpoint))


def evaluation_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of evaluate.py as Hydra gets it: as in training, and additions to what a checkpoint supplies.

    Raises:
        UserError: `resume=` names no evaluation, or stands beside `-m`.
    """
    rewritten = _additions(_grids_as_lists(arguments), TRAINER + SUPPLIED)
    resume = _value_of("resume", rewritten)
    if resume in (None, "null"):
        return rewritten
    if _is_multirun(arguments):
        raise UserError(
            f"resume={resume} goes on with one evaluation; a multirun goes on when its command is given again with "
            "hydra.sweep.dir=DIR, the directory of its jobs."
        )
    from ddim.replay import find_evaluation  # loads torch

    directory = find_evaluation(resume, _output_dir(rewritten))
    return _replayed(directory, rewritten, str(directory))


def _replayed(directory: Path, arguments: Sequence[str], resume: str) -> list[str]:
    """The saved command line of a run with what is given now on top, in the same directory."""
    from ddim.replay import quoted, saved_command

    given = {_key(argument) for argument in arguments}
    kept = [override for override in saved_command(directory) if _key(override) not in given | {"resume"}]
    rest = [argument for argument in arguments if _key(argument) != "resume"]
    return [
        *kept,
        *rest,
        f"resume={quoted(resume)}",
        f"hydra.run.dir={quoted(str(directory))}",
        "hydra.output_subdir=null",  # a resumption that is refused must not change the run
    ]


def _output_dir(arguments: Sequence[str]) -> Path:
    return Path(_value_of("output_dir", arguments) or "outputs")


def _is_multirun(arguments: Sequence[str]) -> bool:
    return any(argument in ("-m", "--multirun") for argument in arguments)


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
    if _is_multirun(arguments):
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
        if override is not None and override.key_or_group == key:
            value = override.value()
            return None if value is None else str(value.text if isinstance(value, QuotedString) else value)
    return None
