"""What an evaluation has finished, recognised by what it depends on, so that a restarted one does not do it again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ddim.evaluation.kept.checked_file import DamagedFileError, read_checked, write_checked
from ddim.evaluation.kept.partial import Partial
from ddim.runs.files import remove_unfinished
from ddim.runs.gathering import from_first
from ddim.runs.hashes import data_sha256, plain_data

log = logging.getLogger(__name__)
P = TypeVar("P")
# To be raised whenever the same settings come to mean other numbers.
FORMAT = 1
FINISHED, PARTIAL = "finished", "partial"


@dataclass(frozen=True)
class Finished:
    """The row of a finished point, JSON-able, and its first images, uint8 (n, C, H, W)."""

    row: dict[str, Any]
    images: Tensor


@dataclass(frozen=True)
class Kept:
    """The memory of an evaluation, in its own directory.

    What is asked for names everything that a number depends on (`depends_on`, JSON-able), and finds only what was
    made with exactly that. Batch size, device and number of processes are nothing that samples depend on.

    Attributes:
        directory: of the evaluation; None remembers and recalls nothing.
        network: what all samples depend on: the hash of the weights and the architecture.
        every_seconds: how often samples of an unfinished point are written.
    """

    directory: Path | None
    network: Mapping[str, Any]
    every_seconds: float = 30.0
    # Folders of samples that were not measured, for `forget_partials`.
    partials: list[Partial] = field(default_factory=list, compare=False, repr=False)

    def load(self, study: str, depends_on: Mapping[str, Any]) -> Finished | None:
        """A finished point; None where there is none, or, with a warning, where its file is damaged."""
        if self.directory is None:
            return None
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
        if self.directory is None:
            return
        asked, path = self._asked(study, depends_on)
        write_checked(path, {"images": finished.images}, {"depends_on": asked, "row": finished.row})

    def recall(
        self, study: str, wanted: Mapping[P, Mapping[str, Any]], *, first: bool, world_size: int
    ) -> dict[P, Finished]:
        """Those of the points, given with all that their rows depend on, that are finished; the same on all processes.

        first: whether this is the process that looks, as a shared folder may look different from another machine.
        """
        found: dict[P, Finished] = {}
        if self.directory is None:
            return found
        if first:
            self.tidy()
            every = {point: self.load(study, what) for point, what in wanted.items()}
            found = {point: finished for point, finished in every.items() if finished is not None}
        return from_first(found, world_size)

    def partial(self, depends_on: Mapping[str, Any]) -> Partial | None:
        """Samples of an unfinished point: of any study, as `depends_on` says all that samples depend on."""
        if self.directory is None:
            return None
        asked = self._full(depends_on)
        partial = Partial(self.directory / PARTIAL / data_sha256(asked)[:16], self.every_seconds)
        self.partials.append(partial)
        return partial

    def forget_partials(self) -> None:
        """What was kept of unfinished points is not needed any longer."""
        for partial in self.partials:
            partial.remove()

    def tidy(self) -> None:
        """Remove what a process that was killed while it wrote a file has left of it. Nobody else may be at work."""
        assert self.directory is not None
        remove_unfinished(self.directory)

    def _asked(self, study: str, depends_on: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
        assert self.directory is not None
        asked = self._full(depends_on)
        return asked, self.directory / FINISHED / f"{study}-{data_sha256(asked)[:16]}.safetensors"

    def _full(self, depends_on: Mapping[str, Any]) -> dict[str, Any]:
        return plain_data({"format": FORMAT, **self.network, **depends_on})
