"""Checks of single configuration values: one sentence that names the key, its value and what would be right."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{key}={value} must be a whole number of at least {least}.")


def one_of(key: str, value: Any, known: Collection[str]) -> None:
    if value not in list(known):  # a mapping that was typed in its place cannot be hashed
        raise UserError(f"{key}={value} is not known; choose one of {', '.join(known)}.")


def some_of(key: str, values: Any, known: Collection[str]) -> list[str]:
    """One name or several, as a list."""
    names = list(values) if isinstance(values, list | tuple) else [values]
    if not names:
        raise UserError(f"{key}=[] is empty; choose from {', '.join(known)}.")
    for name in names:
        one_of(key, name, known)
    return names


class UserError(Exception):
    """A problem a user can solve.

    The message is one sentence that names the setting or file, its value and what would be right. The command-line
    scripts print it without a traceback and leave with exit status 2.
    """


class SharedError(UserError):
    """A problem that all processes of a run have learnt of; the first one tells the user."""


class NotFiniteError(UserError):
    """Samples that are not finite numbers."""
