"""Options of the samplers, held to what they can be: one clear sentence where they are not."""

from __future__ import annotations

import math
from collections.abc import Sequence


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    right = f"in [{low}, {high}]" if high is not None else f">= {low}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be an integer {right}, got {value!r}")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    right = f"in [{low:g}, {high:g}]" if high < math.inf else f"a finite number >= {low:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value == math.inf:
        raise ValueError(f"{name} must be {right}, got {value!r}")
