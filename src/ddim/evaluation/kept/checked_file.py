"""Tensors with plain data in one file that is whole or recognised as damaged (a safetensors file with a checksum)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddim.evaluation.kept.hashes import tensors_sha256
from ddim.runs.files import write_atomically
from ddim.runs.hashes import data_sha256


class DamagedFileError(Exception):
    """A file that cannot be read, or does not hold what was written; the message says why, without the file's name."""


def write_checked(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and `about` (JSON-able) so that the file is at any time whole, old or new."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"about": json.dumps(about, sort_keys=True), "sha256": _checksum(contiguous, about)}
    write_atomically((path, safetensors.torch.save(contiguous, metadata)))


def read_checked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `write_checked`. Raises DamagedFileError for anything that it did not write."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: the file may be removed while they are in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, no mapping
        about = json.loads(metadata["about"])
        if metadata["sha256"] != _checksum(tensors, about):
            raise DamagedFileError("its checksum does not fit")
        return tensors, about
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(" ".join(str(error).split()) or type(error).__name__) from error


def _checksum(tensors: Mapping[str, Tensor], about: Any) -> str:
    return data_sha256({"about": about, "tensors": tensors_sha256(tensors)})
