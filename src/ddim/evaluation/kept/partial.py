"""Samples of a point that is not finished yet, kept as files so that a killed process does not lose hours."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddim.evaluation.kept.checked_file import DamagedFileError, read_checked, write_checked
from ddim.metrics import Features

log = logging.getLogger(__name__)
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Samples:
    """Some samples, in any order: their numbers, their features, and the pictures of those that are kept.

    indices: int64 (n,). features: of all n, or of none. images: uint8 (m, C, H, W), of those numbers that are below the
    count that is kept, in the order of `indices`.
    """

    indices: Tensor
    features: Features
    images: Tensor

    def without_features(self) -> Samples:
        """The same samples, with features of none of them: what is left of a set of which moments are kept."""
        return Samples(
            self.indices, Features(self.features.features.new_empty(0, self.features.features.shape[1])), self.images
        )

    @classmethod
    def cat(cls, parts: Sequence[Samples]) -> Samples:
        """All parts, one after the other; at least one."""
        return cls(
            torch.cat([part.indices for part in parts]),
            Features.cat([part.features for part in parts]),
            torch.cat([part.images for part in parts]),
        )


@dataclass(frozen=True)
class Known:
    """What earlier attempts have left of a point.

    samples: each number at most once; None where there is nothing. seconds: the time that they took, the slowest
    process of each attempt. attempts: how many there were.
    """

    samples: Samples | None = None
    seconds: float = 0.0
    attempts: int = 0


class Partial:
    """A folder of finished batches of one point, each under the numbers of its samples.

    It knows nothing of batches or processes: whoever goes on takes what is there and makes the rest.

    Args:
        folder: of this point alone, and of everything that its samples depend on.
        every_seconds: a process writes at most this often, so what is sampled faster leaves no file.
    """

    def __init__(self, folder: Path, every_seconds: float) -> None:
        self.folder = folder
        self.every_seconds = every_seconds

    def read(self, num_samples: int, keep_images: int) -> Known:
        """The samples 0 ... num_samples - 1 that are there, with the pictures of the first `keep_images`.

        A damaged file costs a warning, and its samples are made again.
        """
        known = torch.zeros(num_samples, dtype=torch.bool)
        parts: list[Samples] = []
        seconds: dict[tuple[int, int], float] = {}
        attempts = 0
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                attempt, rank, _ = map(int, path.name.removesuffix(SUFFIX).split("-"))
                attempts = max(attempts, attempt + 1)
                tensors, about = read_checked(path)
            except (DamagedFileError, ValueError) as error:
                log.warning("%s is damaged, its samples are made again: %s", path, error)
                continue
            indices = tensors["indices"]
            pictured = indices < about["keep_images"]
            wanted = (indices < num_samples) & (pictured | (indices >= keep_images))
            wanted &= ~known[indices.clamp(max=num_samples - 1)]
            known[indices[wanted]] = True
            logits = tensors.get("logits")
            parts.append(
                Samples(
                    indices[wanted],
                    Features(tensors["features"][wanted], None if logits is None else logits[wanted]),
                    tensors["images"][(wanted & (indices < keep_images))[pictured]],
                )
            )
            share = wanted.sum().item() / len(indices)
            seconds[attempt, rank] = seconds.get((attempt, rank), 0.0) + about["seconds"] * share
        if not known.any():
            return Known(attempts=attempts)
        slowest = {attempt: max(s for (a, _), s in seconds.items() if a == attempt) for attempt, _ in seconds}
        return Known(Samples.cat(parts), sum(slowest.values()), attempts)

    def writer(self, attempt: int, rank: int, keep_images: int) -> PartialWriter:
        return PartialWriter(self, attempt, rank, keep_images)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class PartialWriter:
    """Writes what one process has finished, in one attempt at a point."""

    def __init__(self, partial: Partial, attempt: int, rank: int, keep_images: int) -> None:
        self.partial = partial
        self.attempt = attempt
        self.rank = rank
        self.keep_images = keep_images
        self.pending: list[tuple[Samples, float]] = []
        self.written = 0
        self.last = time.monotonic()
        self.warned = False

    def add(self, samples: Samples, seconds: float) -> None:
        """Take note of a finished batch and of the seconds that sampling it took."""
        self.pending.append((samples, seconds))
        if time.monotonic() - self.last >= self.partial.every_seconds:
            self.flush()

    def __enter__(self) -> PartialWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What an error or a kill interrupts is written down.
        if kind is None:
            self.close()
        else:
            self.flush()

    def close(self) -> None:
        """The last batches of a point that has files go to a file as well: measuring it may take long."""
        if self.written:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet. A folder that cannot be written costs a warning: nothing but time is lost."""
        self.last = time.monotonic()
        if not self.pending:
            return
        samples = Samples.cat([samples for samples, _ in self.pending])
        tensors = {"indices": samples.indices, "features": samples.features.features, "images": samples.images}
        if samples.features.logits is not None:
            tensors["logits"] = samples.features.logits
        about = {"keep_images": self.keep_images, "seconds": sum(seconds for _, seconds in self.pending)}
        name = f"{self.attempt:04d}-{self.rank:04d}-{self.written:06d}{SUFFIX}"
        try:
            write_checked(self.partial.folder / name, tensors, about)
        except OSError as error:
            if not self.warned:
                log.warning("Finished samples cannot be kept in %s: %s", self.partial.folder, error)
            self.warned = True
            return
        self.pending.clear()
        self.written += 1
