"""Images of a split, divided among the processes by their number, as `sampling` divides samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ddim.diffusion import Noise
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.subject import Subject
from ddim.runs.gathering import failing_together, gather_objects

# Batch size -> batches of what is stored (B, ...), in a fixed order.
Images = Callable[[int], Iterator[Tensor]]
T = TypeVar("T")


class Share(NamedTuple):
    """The numbers (N,) that some images have in their split, and what is stored of them (N, ...)."""

    numbers: Tensor
    stored: Tensor


def share_of(images: Images, numbers: Sequence[int], subject: Subject) -> Share:
    """Every `world_size`-th of the images, whose numbers these are. Raises RuntimeError where there are fewer."""
    every, parts, done = torch.tensor(numbers), [subject.sampling.space.empty()], 0
    for batch in images(subject.sampling.batch_size):
        places = torch.arange(done, done + len(batch))
        parts.append(batch[places % subject.world_size == subject.rank])
        done += len(batch)
    if done != len(numbers):
        raise RuntimeError(f"{done} images were read where {len(numbers)} were asked for")
    return Share(every[subject.rank :: subject.world_size], torch.cat(parts))


def together(subject: Subject, share: Share, work: Callable[[Tensor, Noise], T]) -> tuple[list[T], float]:
    """What `work` gives for images in model space (N, ...) and noise that goes with their numbers, batch by batch.

    Returns on every process the results of all of them, and the seconds of the slowest.
    """

    @failing_together
    def gathered(subject: Subject) -> list[tuple[list[T], float]]:
        def on(places: Tensor) -> T:
            x_0 = subject.sampling.space.to_model(share.stored[places]).to(subject.device)
            with subject.arithmetic():
                return work(x_0, subject.sampling.noise.bind(share.numbers[places], "validation"))

        began = time.perf_counter()
        mine = list(in_batches(subject.sampling, torch.arange(len(share.numbers)), on))
        return gather_objects((mine, time.perf_counter() - began), subject.world_size)

    everyone = gathered(subject)
    return [part for parts, _ in everyone for part in parts], max(seconds for _, seconds in everyone)
