"""What the two scripts do around Hydra: small rewrites of the command line, and errors as one sentence.

Light on purpose: nothing here imports torch, so that `--help` and shell completion answer at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from ddim.command.needed import check_launcher, check_sweeper
from ddim.errors import UserError
from ddim.runs.locate import find_evaluation, latest_checkpoint, resolve_checkpoint, run_directory
from ddim.runs.overrides import GROUPS, SUPPLIED, quoted, read_overrides
from ddim.runs.plugins import load_plugins

# A list for these is one grid in one process; elsewhere `a,b,c` keeps Hydra's meaning, a multirun.
GRID_KEYS = re.compile(
    r"sampler\.(name|steps|nfe|eta|tau)|guidance\.(scale|interval|labels)|evaluation\.(parts|metrics|seeds)"
    r"|evaluation\.\w+\.eta|callbacks\.evaluation\.(steps|eta)|(logger\.)?tags"
    r"|restoration\.(operator|method)"
)
# Options that a sampler has for itself; of several, no preset lists those of all.
OWN_OPTION = re.compile(r"sampler\.(?!(name|steps|nfe|eta|tau|clip_denoised|eps_scale|eps_slope)$)\w+")
# The preset that several samplers in one grid begin from.
COMMON_SAMPLER = "heun"
# Groups that take keys no file in conf/ lists: any argument of Lightning's Trainer (checked by name later), and in
# evaluate.py what the checkpoint supplies.
TRAINER = ("trainer",)
# Its options are those of a rule, and `none` has hardly any: a sentence says which fit.
GUIDANCE = "guidance"
MULTIRUN = ("-m", "--multirun")
# Hydra answers these and stops; nothing is looked up or tried out for them.
QUESTIONS = ("-h", "--help", "--hydra-help", "--version", "-i", "--info", "-sc", "--shell-completion")
PRINTING = ("-c", "--cfg")


def training_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of train.py as Hydra gets it: grids as lists, and for `resume=` the run's own overrides.

    Raises:
        UserError: `resume=` names nothing to resume, a group's option is not a name, nothing can be written where the
            run would be, or a search needs a package that is not installed.
    """
    load_plugins()
    if _is_question(arguments):
        return _as_asked(arguments, TRAINER)
    _check_options(arguments)
    if (search := _search(arguments)) is not None:
        check_sweeper(search)
    rewritten = _additions(_grids_as_lists(arguments), TRAINER)
    resume = _value_of("resume", rewritten)
    if resume in (None, "null"):
        _check_writable(rewritten)
        return [*rewritten, *_directory_under_slurm(rewritten)]
    checkpoint = resolve_checkpoint(resume, _output_dir(rewritten), "resume")
    return _replayed(run_directory(checkpoint), rewritten, str(checkpoint))


def evaluation_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of evaluate.py as Hydra gets it: as in training, and additions to what a checkpoint supplies.

    Raises:
        UserError: `resume=` names no evaluation or stands beside `-m`, a group's option is not a name, or nothing can
            be written where the results would be.
    """
    load_plugins()
    added = (*TRAINER, *SUPPLIED, GUIDANCE, *_own_studies())
    if _is_question(arguments):
        return _as_asked(arguments, added)
    _check_options(arguments)
    rewritten = _additions(_grids_as_lists(arguments), added)
    resume = _value_of("resume", rewritten)
    if resume in (None, "null"):
        _check_writable(rewritten)
        return rewritten
    if _is_multirun(arguments):
        raise UserError(
            f"resume={resume} goes on with one evaluation; a multirun goes on when its command is given again with "
            "hydra.sweep.dir=DIR, the directory of its jobs."
        )
    directory = find_evaluation(resume, _output_dir(rewritten))
    return _replayed(directory, rewritten, str(directory))


def _replayed(directory: Path, arguments: Sequence[str], resume: str) -> list[str]:
    """The saved command line of a run with what is given now on top, in the same directory."""
    _check_writable([f"hydra.run.dir={quoted(str(directory))}"])
    given = {_key(argument) for argument in arguments}
    kept = read_overrides(directory, leave_out=given | {"resume"})
    rest = [argument for argument in arguments if _key(argument) != "resume"]
    # A job of a search goes on alone.
    alone = ["hydra.mode=RUN"] if _search(kept) is not None else []
    return [
        *kept,
        *rest,
        *alone,
        f"resume={quoted(resume)}",
        f"hydra.run.dir={quoted(str(directory))}",
        "hydra.output_subdir=null",  # a resumption that is refused must not change the run
    ]


def _output_dir(arguments: Sequence[str]) -> Path:
    return Path(_value_of("output_dir", arguments) or "outputs")


def _check_writable(arguments: Sequence[str]) -> None:
    """Refuse a directory that Hydra could not make, before it tries and fails with a traceback."""
    folder = "hydra.sweep.dir" if _is_multirun(arguments) else "hydra.run.dir"
    key = next((key for key in (folder, "output_dir") if _value_of(key, arguments)), "output_dir")
    value = _value_of(key, arguments) or "outputs"
    # What an interpolation stands for is not known yet; what comes before it is.
    known = value if "${" not in value else os.path.dirname(value.partition("${")[0])
    try:
        existing = Path(known).absolute()
        while not existing.exists():
            existing = existing.parent
        os.rmdir(tempfile.mkdtemp(dir=existing))
    except OSError as error:
        raise UserError(f"{key}={value} cannot be written to ({error.strerror}); give a directory that can.") from error


def _directory_under_slurm(arguments: Sequence[str]) -> list[str]:
    """A run directory that all tasks of a SLURM job agree on, and in which the job finds itself when it is requeued."""
    job, name = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_JOB_NAME")
    interactive = job is None or "SLURM_NTASKS" not in os.environ or name in ("bash", "interactive")
    if interactive or _is_multirun(arguments) or _value_of("hydra.run.dir", arguments):
        return []
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    # One job may train several times; the command lines tell them apart.
    command = hashlib.sha256("\0".join(arguments).encode()).hexdigest()[:6]
    return [f"hydra.run.dir='${{output_dir}}/train/slurm-{job}-{command}-${{dataset.name}}'"]


def _is_multirun(arguments: Sequence[str]) -> bool:
    return any(argument in MULTIRUN for argument in arguments) or _search(arguments) is not None


def _search(arguments: Sequence[str]) -> str | None:
    """The search over settings that is asked for."""
    return _value_of("hparams_search", arguments)


def _is_question(arguments: Sequence[str]) -> bool:
    return any(argument.partition("=")[0] in QUESTIONS for argument in arguments)


def _as_asked(arguments: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Settings as they would be composed; in a line that the shell wants completed, those before the last word."""
    line = os.environ.get("COMP_LINE")
    if line is not None:
        *words, last = line.split(" ")
        # Hydra would complain about a word that nobody has finished typing.
        usable = [word for word in words if "=" not in word or _parse(word) is not None]
        os.environ["COMP_LINE"] = " ".join([*_additions(_grids_as_lists(usable), groups), last])
    return _additions(_grids_as_lists(arguments), groups)


def _check_options(arguments: Sequence[str]) -> None:
    """Refuse what Hydra answers with a traceback: `dataset=7`, `--cfg hydra --resolve`."""
    if "hydra" in arguments and "--resolve" in arguments and any(name in arguments for name in PRINTING):
        raise UserError("--cfg hydra --resolve lacks the settings that Hydra's refer to; take --cfg all --resolve.")
    for argument in arguments:
        override = _parse(argument)
        if override is None or override.key_or_group not in GROUPS or override.is_sweep_override():
            continue
        value = override.value()
        if isinstance(value, list) and not override.is_delete():
            named = all(isinstance(item, str) for item in value)
        else:
            named = isinstance(value, str)
        if not named:
            raise UserError(f"{argument} names no option of {override.key_or_group}; `--help` lists them.")


def sweep_arguments(arguments: Sequence[str]) -> list[str]:
    """The same for a multirun: all its jobs take the checkpoint that is the newest now, whenever they start.

    Raises:
        UserError: a sweep has no checkpoint to begin with, or its launcher is not installed.
    """
    check_launcher(_value_of("hydra/launcher", arguments) or "basic")
    options = [argument for argument in arguments if argument.startswith("-")]
    if not options or not all(option in MULTIRUN for option in options):
        return list(arguments)
    if _value_of("checkpoint", arguments) not in (None, "latest") or _is_swept("checkpoint", arguments):
        return list(arguments)
    newest = latest_checkpoint(Path(_value_of("output_dir", arguments) or "outputs"))
    kept = [argument for argument in arguments if _key(argument) != "checkpoint"]
    return [*kept, f"checkpoint={quoted(str(newest))}"]


def _own_studies() -> list[str]:
    """`evaluation.NAME` of a user's own studies: their settings, which no file in conf/ lists."""
    registered = ConfigStore.instance().repo.get("evaluation", {})
    return [f"evaluation.{file.removesuffix('.yaml')}" for file in registered]


def _additions(arguments: Sequence[str], groups: Sequence[str]) -> list[str]:
    """`trainer.max_time=...` -> `++trainer.max_time=...`, so that Hydra accepts keys the group's file does not have."""
    rewritten = []
    for argument in arguments:
        key = _key(argument) or ""
        adds = any(key.startswith(f"{group}.") for group in groups) or OWN_OPTION.fullmatch(key)
        rewritten.append(f"++{argument}" if adds and not argument.startswith(("+", "~")) else argument)
    return rewritten


def _grids_as_lists(arguments: Sequence[str]) -> list[str]:
    """`sampler.steps=10,20,50` -> `sampler.steps=[10,20,50]`, unless this is a multirun, whose sweeps these are."""
    arguments = [_one_tag_as_list(argument) for argument in arguments]
    if _is_multirun(arguments):
        return arguments
    several = [part for argument in arguments for part in _several_samplers(argument)]
    return [_as_list(argument) if GRID_KEYS.fullmatch(_key(argument) or "") else argument for argument in several]


def _several_samplers(argument: str) -> list[str]:
    """`sampler=ddim,deis` -> `sampler=heun sampler.name=[ddim,deis]`: one grid of them; anything else as it is.

    Hydra refuses the one way to write it, and of `sampler=[ddim,deis]` takes the last. What they have in common is that
    of a deterministic preset without options of its own, which another sampler would take for its own or not have.
    """
    name, _, values = argument.partition("=")
    override = _parse(argument) if name == "sampler" else None
    value = None if override is None else override.value()
    listed = isinstance(value, list) and len(value) > 1
    if override is None or not (listed or override.is_choice_sweep()):
        return [argument]
    return [f"sampler={COMMON_SAMPLER}", f"sampler.name={values if listed else f'[{values}]'}"]


def _as_list(argument: str) -> str:
    override = _parse(argument)
    if override is None or not override.is_choice_sweep():
        return argument
    name, _, values = argument.partition("=")
    return f"{name}=[{values}]"


def _one_tag_as_list(argument: str) -> str:
    """`tags=nightly` -> `tags=[nightly]`."""
    name, _, value = argument.partition("=")
    override = _parse(argument) if name in ("tags", "logger.tags") else None
    if override is None or override.is_sweep_override() or isinstance(override.value(), list | dict | None):
        return argument
    return f"{name}=[{value}]"


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
        if not argument.lstrip("+").startswith(key):  # parsing takes milliseconds
            continue
        override = _parse(argument)
        if override is not None and override.key_or_group == key and not override.is_sweep_override():
            value = override.value()
            return None if value is None else str(value.text if isinstance(value, QuotedString) else value)
    return None


def _is_swept(key: str, arguments: Sequence[str]) -> bool:
    overrides = [_parse(argument) for argument in arguments]
    return any(o is not None and o.key_or_group == key and o.is_sweep_override() for o in overrides)
