"""Plain data as it is hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def plain_data(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it is after a journey through JSON: tuples are lists. Raises TypeError for what JSON cannot hold."""
    plain: dict[str, Any] = json.loads(json.dumps(value, sort_keys=True))
    return plain


def data_sha256(value: Mapping[str, Any]) -> str:
    """Hex sha256 of plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
