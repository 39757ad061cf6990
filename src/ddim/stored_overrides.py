"""The command line that a run was started with, read back when it is resumed.

It lies in the run's directory, which may come from somebody else: what it holds is replayed only as far as it chooses
settings. It cannot configure Hydra, which instantiates classes by name, load other configuration files, or read the
environment.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from ddim.checkpoint import OVERRIDES_FILE
from ddim.cli import GROUPS
from ddim.errors import UserError

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
