"""How Lightning writes checkpoints here: whole or not at all, and straight to the disk that keeps them.

Lightning's own writing goes through a file in the system's temporary folder, which is moved: across file systems that
is a copy, and a copy can be killed half way. It also holds the whole file in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ddim.runs.files import replacing


class AtomicCheckpointIO(TorchCheckpointIO):
    """`torch.save` to a temporary file beside the checkpoint, which then takes its place.

    Raises OSError naming the checkpoint when the disk is full; the previous checkpoint is then still there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with replacing(Path(path)) as file:
            stream = _Stream(file)
            torch.save(checkpoint, stream)  # type: ignore[arg-type]
            if stream.error is not None:
                raise stream.error


class _Stream:
    """Keeps what a write raises for after `torch.save`, whose archive writer in C++ must not be thrown through."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except BaseException as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """`replacing` flushes, where an error can be raised."""
