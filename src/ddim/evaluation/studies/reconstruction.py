"""Reconstruction: test images encoded to x_T and decoded again with the same steps (DDIM section 5.4, Table 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddim.diffusion import SAMPLERS, NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import UserError, at_least
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.study import IMAGES, Bar, Material, Progress, Study, recall
from ddim.evaluation.subject import Subject
from ddim.findings.labels import significant
from ddim.findings.parts.reconstruction import pictures
from ddim.findings.telling import Findings
from ddim.metrics import preprocessing_hash
from ddim.runs.gathering import failing_together, gather_objects

Images = Callable[[int], Iterator[Tensor]]


@dataclass
class ReconstructionConfig:
    """Test images encoded to x_T and decoded with the same S (the paper's Table 2).

    Attributes:
        num_images: of the test split, evenly over it; null takes all.
        shown: images in the picture.
    """

    num_images: int | None = None
    shown: int = 10

    def check(self, key: str) -> None:
        if self.num_images is not None:
            at_least(f"{key}.num_images", self.num_images, 1)
        at_least(f"{key}.shown", self.shown, 1)


@dataclass(frozen=True)
class RoundTrip:
    """Some images after encoding and decoding.

    numbers: (N,) of the images. errors: float64 (N,), mean squared error per dimension of each. shown: uint8 images of
    the numbers below the count that is shown. seconds: of this process.
    """

    numbers: Tensor
    errors: Tensor
    shown: Tensor
    seconds: float


class Reconstruction(Study):
    """How much of an image is left after encoding it to x_T and decoding it with the same S steps.

    The error is the paper's: per dimension, on [0, 1], of the decoder's floats as they are, neither clipped nor rounded
    to pixel values (which would make it smaller). Clipping the predicted x_0 is not part of the inverse of encoding,
    so points must not ask for it.

    Args:
        points: what is sampled.
        images: batch size -> uint8 batches (B, C, H, W) of the images in a fixed order.
        num_images: exactly this many are in `images` and enter the error.
        split: where they come from, for the rows.
        shown: images of the picture, at most.
        source: what identifies the images; without it no finished point is recalled.
        subset: whether the images are a part of their split, which is spread evenly over it.

    Raises ValueError for a point that is not eta = 0 without clipping.
    """

    name = "reconstruction"
    guided = False
    Settings = ReconstructionConfig
    needs: ClassVar[frozenset[str]] = frozenset({IMAGES})

    def __init__(
        self,
        points: Sequence[GridPoint],
        *,
        images: Images,
        num_images: int,
        split: str = "test",
        shown: int = 10,
        source: Mapping[str, Any] | None = None,
        subset: bool = False,
    ) -> None:
        self.points = list(points)
        if any(point.eta != 0 or point.clip_denoised for point in self.points):
            raise ValueError("reconstruction needs points with eta=0 and clip_denoised=False: encoding has no others")
        self.images = images
        self.num_images = num_images
        self.split = split
        self.shown = min(shown, num_images)
        self.source = source
        self.subset = subset

    @classmethod
    def grid(cls, settings: ReconstructionConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        for name in sampler.names:
            if SAMPLERS[name].inverse is None:
                known = ", ".join(able for able, rule in SAMPLERS.items() if rule.inverse is not None)
                raise UserError(
                    f"sampler.name={name} has no inverse, which evaluation=reconstruction needs; take "
                    f"sampler.name=ddim (or another of {known}) or leave reconstruction out of evaluation.parts."
                )
        # The inverse of encoding is the deterministic sampler, which must not clip: encoding did not.
        return replace(sampler, eta=0.0, clip_denoised=False).points(schedule)

    @classmethod
    def of(cls, settings: ReconstructionConfig, points: Sequence[GridPoint], material: Material) -> Reconstruction:
        images, wanted = material.images, settings.num_images
        available = images.num_images("test")
        if wanted is not None and wanted > available:
            raise UserError(
                f"evaluation.reconstruction.num_images={wanted} is more than the {available} images of the test split "
                f"of {images.name}; take at most {available}, or null for all."
            )
        count = available if wanted is None else wanted
        return cls(
            points,
            images=partial(images.images, "test", limit=count),
            num_images=count,
            shown=settings.shown,
            source=images.provenance("test"),
            subset=count < available,
        )

    def plan(self) -> str:
        steps = ", ".join(map(str, sorted({point.steps for point in self.points})))
        return f"reconstruction of {self.num_images:,} {self.split} images with S = {steps}"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        shown: list[Tensor] = []
        wanted = {point: self._depends_on(point, subject) for point in self.points}
        finished = {} if self.source is None else recall(self.name, wanted, subject, kept)
        # Batches that were halved later must not change what is read.
        read_at_once = subject.sampling.batch_size
        say.begin(self.points)
        with progress([point.nfe for point in self.points]) as bar:
            for point in self.points:
                known = finished.get(point)
                if known is None:
                    bar.start_point(f"S {point.steps}", self.num_images)
                    trip = self._together(subject, point, read_at_once, bar)
                    known = Finished(_measured(trip, subject), trip.shown)
                    if self.source is not None and subject.first:
                        kept.save(self.name, wanted[point], known)
                shown.append(known.images)
                row = self._row(point, known, subject)
                say.row(row, point=point)
                bar.finish_point(
                    f"reconstruction, S {point.steps}: MSE {significant(row['mse_per_dimension'], 3)}, "
                    f"{self.num_images} images in {row['seconds']:.1f} s"
                    f"{', finished before' if point in finished else ''}"
                )
        if subject.first:
            # Points of an earlier attempt may have kept fewer pictures than are asked for now.
            count = min(len(images) for images in shown)
            originals = next(self.images(self.shown))[:count]
            for what, picture, caption in pictures(say.rows, originals, [images[:count] for images in shown]):
                say.picture(what, picture, caption)
            say.end()

    def _row(self, point: GridPoint, known: Finished, subject: Subject) -> dict[str, Any]:
        return {
            **subject.columns(point),
            **subject.told_in(),
            "encode_nfe": point.nfe,
            "num_images": self.num_images,
            "split": self.split,
            "preprocessing": None if self.source is None else preprocessing_hash(self.source),
            **known.row,
        }

    def _depends_on(self, point: GridPoint, subject: Subject) -> dict[str, Any]:
        return {
            **subject.depends_on(point),
            "split": self.split,
            "num_images": self.num_images,
            "images": self.source,
            # Earlier versions took the first images; all of them are the same ones.
            **({"subset": "spread"} if self.subset else {}),
        }

    def _together(self, subject: Subject, point: GridPoint, read_at_once: int, bar: Bar) -> RoundTrip:
        @failing_together
        def together(subject: Subject) -> RoundTrip:
            return self._gather(self._round_trip(subject, point, read_at_once, bar), subject.world_size)

        return together(subject)

    def _round_trip(self, subject: Subject, point: GridPoint, read_at_once: int, bar: Bar) -> RoundTrip:
        """This process's share of the images: those whose number leaves its rank when divided by the processes."""
        numbers, errors, shown, seconds, done = [], [], [], 0.0, 0
        space = subject.sampling.space
        # Every process reads the same batches, whatever size fits into the memory of its device.
        for batch in self.images(read_at_once * subject.world_size):
            everyone = torch.arange(done, done + len(batch))
            done += len(batch)
            mine = everyone % subject.world_size == subject.rank
            if mine.any():
                x_0 = space.to_model(batch[mine])
                parts = list(in_batches(subject.sampling, x_0, lambda part: _again(subject, point, part)))
                again = torch.cat([part for part, _ in parts])
                seconds += sum(spent for _, spent in parts)
                numbers.append(everyone[mine])
                errors.append(space.errors(again, x_0))
                shown.append(space.to_stored(again[everyone[mine] < self.shown]))
            bar.advance(len(batch))
        if not numbers:
            return RoundTrip(torch.empty(0, dtype=torch.long), torch.empty(0).double(), space.empty(), 0.0)
        return RoundTrip(torch.cat(numbers), torch.cat(errors), torch.cat(shown), seconds)

    def _gather(self, local: RoundTrip, world_size: int) -> RoundTrip:
        """All images in order, on every process; the seconds are those of the slowest."""
        everyone = gather_objects(local, world_size)
        numbers = torch.cat([part.numbers for part in everyone])
        order = numbers.argsort()
        if numbers[order].tolist() != list(range(self.num_images)):
            raise RuntimeError(f"{len(numbers)} images were reconstructed where {self.num_images} were asked for")
        drawn = torch.cat([part.numbers[part.numbers < self.shown] for part in everyone]).argsort()
        return RoundTrip(
            numbers[order],
            torch.cat([part.errors for part in everyone])[order],
            torch.cat([part.shown for part in everyone])[drawn],
            max(part.seconds for part in everyone),
        )


def _measured(trip: RoundTrip, subject: Subject) -> dict[str, Any]:
    return {
        "mse_per_dimension": trip.errors.mean().item(),
        "seconds": trip.seconds,
        "device": subject.device_name(),
    }


def _again(subject: Subject, point: GridPoint, x_0: Tensor) -> tuple[Tensor, float]:
    """Images after encoding and decoding, on the CPU, and the seconds that took."""
    began = time.perf_counter()
    # Reading the result waits for the device.
    again = subject.decode(point, subject.encode(point, x_0)).cpu()
    return again, time.perf_counter() - began
