"""Plain data as it is hashed, and what stands for a piece of code."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def plain_data(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it is after a journey through JSON: tuples are lists. Raises TypeError for what JSON cannot hold."""
    plain: dict[str, Any] = json.loads(json.dumps(value, sort_keys=True))
    return plain


def data_sha256(value: Mapping[str, Any]) -> str:
    """Hex sha256 of plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def source_version(code: Callable[..., Any]) -> str:
    """Changes with the file that a function or class is from, so that what an earlier version has finished is done
    again."""
    try:
        text = Path(inspect.getsourcefile(code) or "").read_bytes()
    except (OSError, TypeError):  # typed into an interpreter
        typed = filter(inspect.isfunction, vars(code).values()) if inspect.isclass(code) else [code]
        text = repr([(function.__code__.co_code, function.__code__.co_consts) for function in typed]).encode()
    return hashlib.sha256(text).hexdigest()[:16]
