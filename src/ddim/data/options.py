"""Reads the `dataset.*` settings one by one and refuses what is wrong in one sentence that names the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddim.errors import UserError
from ddim.paths import usable_path


class Options:
    """The settings of one dataset; each is taken once, :meth:`finish` refuses those that nobody took.

    All methods raise :class:`~ddim.errors.UserError`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values = {str(key): value for key, value in config.items()}
        self._known: list[str] = []

    def _take(self, key: str, default: Any) -> Any:
        self._known.append(key)
        return self._values.pop(key, default)

    def choice(self, key: str, default: Any, choices: Sequence[Any]) -> Any:
        value = self._take(key, default)
        # True == 1, so types are compared too
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            known = ", ".join(str(choice) for choice in choices)
            raise UserError(f"dataset.{key}={value} is not one of: {known}")
        return value

    def integer(self, key: str, default: int, minimum: int = 1) -> int:
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise UserError(f"dataset.{key}={value} must be a whole number of at least {minimum}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise UserError(f"dataset.{key}={value} must be true or false")
        return value

    def fraction(self, key: str, default: float) -> float:
        """A number strictly between 0 and 1."""
        value = self._take(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < 1:
            raise UserError(f"dataset.{key}={value} must be a number between 0 and 1, both excluded")
        return float(value)

    def text(self, key: str, default: str | None) -> str | None:
        value = self._take(key, default)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise UserError(f"dataset.{key}={value} must be a short text or null")
        return value

    def folder(self, key: str, default: Path | None) -> Path:
        """A path with ~ expanded; whether it exists is checked when the data are prepared."""
        value = self._take(key, None)
        if value is None and default is not None:
            return default
        if not isinstance(value, str | Path) or not str(value).strip():
            raise UserError(f"dataset.{key} is not set: give the folder that holds the images, as dataset.{key}=DIR")
        return usable_path(value, f"dataset.{key}")

    def finish(self) -> None:
        """Refuse keys that no dataset of this name knows."""
        if self._values:
            unknown = ", ".join(f"dataset.{key}" for key in sorted(self._values))
            raise UserError(f"{unknown} is not a setting of this dataset; it has: {', '.join(sorted(self._known))}")
