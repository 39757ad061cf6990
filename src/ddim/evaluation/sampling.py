"""Samples of a grid point, divided among the processes and put together again in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ddim.diffusion.grid import GridPoint
from ddim.errors import UserError
from ddim.evaluation.kept.partial import Known, Partial, PartialWriter, Samples
from ddim.evaluation.subject import Sampling, Subject
from ddim.metrics import BlockMoments, FeatureExtractor, Features
from ddim.runs.gathering import failing_together, from_first, gather_objects

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Generation:
    """The samples of one grid point, as far as they are kept.

    moments: of the features, where these are not kept and `features` are those of no image.
    """

    features: Features
    first_images: Tensor
    seconds: float
    moments: BlockMoments | None = None

    @property
    def measured(self) -> Features | BlockMoments:
        """What metrics are computed from."""
        return self.features if self.moments is None else self.moments


def in_batches(sampling: Sampling, items: Tensor, work: Callable[[Tensor], T]) -> Iterator[T]:
    """`work` on items (N, ...), a batch at a time and in order; a batch that does not fit into memory is halved.

    Raises:
        UserError: a single item does not fit.
    """
    start, refused = 0, None
    while start < len(items):
        batch = items[start : start + sampling.batch_size]
        result, reason = _attempt(work, batch)
        if reason is not None:
            if len(batch) == 1:
                raise UserError(
                    f"Out of memory even with evaluation.batch_size=1 for {sampling.space.kind} of "
                    f"{'x'.join(map(str, sampling.space.shape))} ({reason}): free memory of the device, or take "
                    "trainer.precision=bf16-mixed or a device with more of it."
                )
            refused = refused or sampling.batch_size
            sampling.batch_size = min(len(batch), sampling.batch_size) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        if refused is not None:
            log.warning(
                "Out of memory with evaluation.batch_size=%d: it goes on with %d, which changes no sample.",
                refused,
                sampling.batch_size,
            )
            refused = None
        start += len(batch)
        yield result


def _attempt(work: Callable[[Tensor], T], batch: Tensor) -> tuple[Any, str | None]:
    """The result, or why memory ran out. On return nothing refers to what had been allocated, as an exception does."""
    try:
        return work(batch), None
    except torch.OutOfMemoryError as error:
        return None, str(error).partition("\n")[0].partition(". ")[0]


@failing_together
def generate(
    subject: Subject,
    extractor: FeatureExtractor,
    point: GridPoint,
    *,
    num_samples: int,
    keep_images: int,
    advance: Callable[[int], None] = lambda images: None,
    partial: Partial | None = None,
    keep_features: bool = True,
) -> Generation:
    """Samples 0 ... num_samples - 1 of a grid point, exactly those, split over the processes by their number.

    partial: where finished batches are kept while the point is not finished, and taken from.
    keep_features: where it is false, the moments of the features are all that is kept of them.

    Returns on every process: the features in the order of the samples, the first `keep_images` images (uint8), and
    the seconds spent sampling (feature extraction apart) by the slowest process, those of earlier attempts included.
    """
    drawn = _Drawn(None if keep_features else BlockMoments(extractor.dim))
    known, done, writer = _taken_up(partial, subject, num_samples, keep_images)

    def work(indices: Tensor) -> tuple[int, Samples | None, float]:
        # Batches are the same ones as if nothing were known, so that rounding is the same as well.
        missing = indices[~done[indices]]
        if not len(missing):
            return len(indices), None, 0.0
        _synchronise(subject.device)
        began = time.perf_counter()
        images = subject.draw(point, missing)
        _synchronise(subject.device)
        seconds = time.perf_counter() - began
        return len(indices), Samples(missing, extractor(images).cpu(), images[missing < keep_images].cpu()), seconds

    mine = torch.tensor(range(subject.rank, num_samples, subject.world_size), dtype=torch.long)
    if known.samples is not None:
        drawn.add(known.samples, 0.0)
        known = replace(known, samples=None)
    with nullcontext() if writer is None else writer:
        for count, samples, spent in in_batches(subject.sampling, mine, work):
            if samples is not None:
                drawn.add(samples, spent)
                if writer is not None:
                    writer.add(samples, spent)
            advance(count * subject.world_size)
            subject.check_signals()
    return _gather(drawn.taken(), drawn.moments, drawn.seconds, known.seconds, num_samples, subject.world_size)


class _Drawn:
    """What one process has drawn: all samples, or with `moments` these of the features, and the pictures."""

    def __init__(self, moments: BlockMoments | None) -> None:
        self.moments = moments
        self.parts: list[Samples] = []
        self.seconds = 0.0

    def add(self, samples: Samples, seconds: float) -> None:
        self.seconds += seconds
        if self.moments is not None:
            self.moments.update(samples.features.features, samples.indices)
            samples = samples.without_features()
        self.parts.append(samples)

    def taken(self) -> Samples | None:
        """All of it, which is not kept here any longer; None where there is nothing."""
        parts, self.parts = self.parts, []
        return Samples.cat(parts) if parts else None


def _taken_up(
    partial: Partial | None, subject: Subject, num_samples: int, keep_images: int
) -> tuple[Known, Tensor, PartialWriter | None]:
    """What earlier attempts have left, which samples these are, (num_samples,), and what writes down the others."""
    done = torch.zeros(num_samples, dtype=torch.bool)
    if partial is None:
        return Known(), done, None
    # One process decides what there is: a shared folder may look different from another machine.
    known = partial.read(num_samples, keep_images) if subject.first else Known()
    numbers = None if known.samples is None else known.samples.indices
    numbers, attempt = from_first((numbers, known.attempts), subject.world_size)
    if numbers is not None:
        done[numbers] = True
    return known, done, partial.writer(attempt, subject.rank, keep_images)


def _gather(
    samples: Samples | None,
    moments: BlockMoments | None,
    seconds: float,
    earlier: float,
    num_samples: int,
    world_size: int,
) -> Generation:
    """Everybody's samples in order, on every process. `earlier` are the seconds of other attempts."""
    everyone = gather_objects((samples, moments, seconds, earlier), world_size)
    # One process has them in order: no copy.
    given = [part for part, *_ in everyone if part is not None]
    whole = given[0] if len(given) == 1 else Samples.cat(given)
    order = whole.indices.argsort()
    if not torch.equal(whole.indices[order], torch.arange(num_samples)):
        raise RuntimeError(f"{len(order)} samples were made where the first {num_samples} were asked for, once each")
    if moments is not None:
        moments = _merged([others for _, others, *_ in everyone])
        if len(moments) != num_samples:
            raise RuntimeError(f"{len(moments)} images entered the moments where {num_samples} were asked for")
    features = whole.features
    if moments is None and not torch.equal(order, torch.arange(num_samples)):
        features = Features(features.features[order], None if features.logits is None else features.logits[order])
    # Pictures are those of the smallest numbers, in the order in which these stand in `indices`.
    pictured = whole.indices[whole.indices < len(whole.images)].argsort()
    return Generation(
        features,
        whole.images[pictured],
        max(spent for *_, spent, _ in everyone) + sum(before for *_, before in everyone),
        moments,
    )


def _merged(parts: Sequence[BlockMoments]) -> BlockMoments:
    whole = BlockMoments(parts[0].dim, parts[0].blocks)
    for part in parts:
        whole.merge(part)
    return whole


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
