"""What an evaluation has finished, recognised by what it depends on, so that a restarted one does not do it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddim.callbacks.partial import Partial
from ddim.checked_file import DamagedFileError, read_checked, write_checked
from ddim.fingerprint import data_sha256, plain_data

log = logging.getLogger(__name__)

# To be raised whenever the same settings come to mean other numbers.
FORMAT = 1
FINISHED, PARTIAL = "finished", "partial"


@dataclass(frozen=True)
class Finished:
    """The row of a finished point, JSON-able, and its first images, uint8 (n, C, H, W)."""

    row: dict[str, Any]
    images: Tensor


@dataclass(frozen=True)
class Resumption:
    """The memory of an evaluation, in its own directory.

    What is asked for names everything that a number depends on (`depends_on`, JSON-able), and finds only what was
    made with exactly that. Batch size, device and number of processes are nothing that samples depend on.

    Attributes:
        directory: of the evaluation.
        network: what all samples depend on: the hash of the weights and the architecture.
        every_seconds: how often samples of an unfinished point are written.
    """

    directory: Path
    network: Mapping[str, Any]
    every_seconds: float = 30.0

    def load(self, study: str, depends_on: Mapping[str, Any]) -> Finished | None:
        """A finished point; None where there is none, or, with a warning, where its file is damaged."""
        asked, path = self._asked(study, depends_on)
        if not path.is_file():
            return None
        try:
            tensors, about = read_checked(path)
            if about["depends_on"] != asked:
                raise DamagedFileError("it is of something else")
            return Finished(about["row"], tensors["images"])
        except (DamagedFileError, KeyError) as error:
            log.warning("%s is damaged, its point is done again: %s", path, error)
            return None

    def save(self, study: str, depends_on: Mapping[str, Any], finished: Finished) -> None:
        """From here on the point is finished: one file, which is there whole or not at all."""
        asked, path = self._asked(study, depends_on)
        write_checked(path, {"images": finished.images}, {"depends_on": asked, "row": finished.row})

    def partial(self, depends_on: Mapping[str, Any]) -> Partial:
        """Samples of an unfinished point: of any study, as `depends_on` says all that samples depend on."""
        asked = self._full(depends_on)
        return Partial(self.directory / PARTIAL / data_sha256(asked)[:16], self.every_seconds)

    def tidy(self) -> None:
        """Remove what a process that was killed while it wrote a file has left of it. Nobody else may be at work."""
        for pattern in (".*.tmp", f"{FINISHED}/.*.tmp", f"{PARTIAL}/*/.*.tmp"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def _asked(self, study: str, depends_on: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
        asked = self._full(depends_on)
        return asked, self.directory / FINISHED / f"{study}-{data_sha256(asked)[:16]}.safetensors"

    def _full(self, depends_on: Mapping[str, Any]) -> dict[str, Any]:
        return plain_data({"format": FORMAT, **self.network, **depends_on})
