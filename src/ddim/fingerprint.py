"""Short names for long things: a hash of tensors, and of plain data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 over the names, types, shapes and bytes of tensors, in the order of their names.

    Neither the device nor the layout in memory matters, nor the order of the mapping.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def plain_data(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it is after a journey through JSON: tuples are lists. Raises TypeError for what JSON cannot hold."""
    plain: dict[str, Any] = json.loads(json.dumps(value, sort_keys=True))
    return plain


def data_sha256(value: Mapping[str, Any]) -> str:
    """Hex sha256 of plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
