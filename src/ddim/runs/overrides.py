"""Command lines that are kept with a run, and an evaluation that is found again to go on with it."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ddim.errors import UserError
from ddim.runs.files import write_atomically
from ddim.runs.layout import CONFIG_FILE, OVERRIDES_FILE

SUPPLIED = ("dataset", "denoiser", "schedule")
# The folders of conf/.
GROUPS = (
    *SUPPLIED,
    *("sampler", "guidance", "objective", "optimizer", "evaluation", "trainer", "logger", "callbacks", "recipe"),
    *("experiment", "debug", "restoration", "table", "hparams_search"),
)


def save_command(cfg: DictConfig, directory: Path, **resolved: str) -> None:
    """Keep the configuration and the overrides of this command in `directory`.

    resolved: keys whose value today need not be their value at a resumption, such as `checkpoint=latest`.
    """
    dropped = {"resume", *resolved}
    kept = [text for text in HydraConfig.get().overrides.task if text.lstrip("+").partition("=")[0] not in dropped]
    kept += [f"{key}={quoted(value)}" for key, value in resolved.items()]
    # The overrides come last: a directory that has them has the configuration.
    write_atomically((directory / CONFIG_FILE, OmegaConf.to_yaml(cfg).encode()))
    write_atomically((directory / OVERRIDES_FILE, OmegaConf.to_yaml(OmegaConf.create(kept)).encode()))


# `${seed}` is another setting; `${oc.env:HOME}` asks a resolver.
SETTING = re.compile(r"\$\{[\w.]+\}")


def read_overrides(directory: Path, leave_out: Collection[str | None] = ()) -> list[str]:
    """The overrides in a run directory, without those whose key is in `leave_out`.

    Raises:
        UserError: there are none, they cannot be read, or one of them does more than to choose a setting.
    """
    path = directory / OVERRIDES_FILE
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"resume={directory}: {OVERRIDES_FILE} cannot be read ({type(error).__name__}).") from error
    if not isinstance(stored, list) or not all(isinstance(text, str) for text in stored):
        raise UserError(f"resume={directory}: {OVERRIDES_FILE} is not the command line of a run.")
    kept = []
    for text in stored:
        override = _parse(text)
        if override is None or (override.key_or_group not in leave_out and _does_more(override)):
            raise UserError(
                f"resume={directory}: {text[:100]!r} in {OVERRIDES_FILE} does more than to choose a setting and is not "
                "replayed; give that setting again on the command line, or take the line out."
            )
        if override.key_or_group not in leave_out:
            kept.append(text)
    return kept


def _parse(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _does_more(override: Override) -> bool:
    key, value = override.key_or_group, override.value()
    if key.partition(".")[0] == "hydra" or "/" in key or override.package is not None:
        return True
    if "${" in SETTING.sub("", override.input_line or ""):
        return True
    return key in GROUPS and not all(_is_option(item) for item in (value if isinstance(value, list) else [value]))


def _is_option(value: Any) -> bool:
    """Whether a value is the bare name of a file in the group's folder, or none."""
    text = value.text if isinstance(value, QuotedString) else value
    return text is None or text == "" or (isinstance(text, str) and re.fullmatch(r"\w[\w-]*", text) is not None)


def raw_overrides(directory: Path) -> list[str]:
    """The command line that a run was started with, for showing it; `read_overrides` checks what is replayed."""
    try:
        stored = yaml.safe_load((directory / OVERRIDES_FILE).read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        stored = None
    return [str(text) for text in stored] if isinstance(stored, list) else []


def quoted(text: str) -> str:
    """A value as an override may hold it, whatever characters it has."""
    return QuotedString(text=text, quote=Quote.single).with_quotes()
