"""Convergence: how far samples are from what very many calls of the network make of the same latents."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig, grid_points
from ddim.errors import UserError, at_least
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.study import Bar, Material, Progress, Study, recall
from ddim.evaluation.subject import Subject
from ddim.findings.labels import point_key, significant
from ddim.findings.parts.convergence import pictures
from ddim.findings.telling import Findings
from ddim.runs.gathering import failing_together, gather_objects


@dataclass
class ConvergenceConfig:
    """Samples of every point against those of very many calls, from the same x_T.

    Attributes:
        num_images: latents.
        eta (as sampler.eta): the values of η that are compared; a sampler that draws noise never comes close.
        reference_steps: S of what is compared with, DDIM with η = 0 and linear τ; all timesteps where there are fewer.
        shown: images in the picture.
    """

    num_images: int = 100
    eta: Any = 0.0
    reference_steps: int = 1000
    shown: int = 8

    def check(self, key: str) -> None:
        # One image has no standard error.
        at_least(f"{key}.num_images", self.num_images, 2)
        at_least(f"{key}.reference_steps", self.reference_steps, 1)
        at_least(f"{key}.shown", self.shown, 1)

    def reference(self, schedule: NoiseSchedule) -> GridPoint:
        """Where every deterministic sampler arrives with more and more calls; it does not clip, as no equation does."""
        steps = min(self.reference_steps, schedule.num_timesteps)
        (point,) = grid_points(schedule, steps=steps, etas=0.0, tau="linear", prefix="evaluation.convergence")
        return point


@dataclass(frozen=True)
class Share:
    """Some of a point's samples.

    numbers: (N,). errors: float64 (N,), mean squared error on [0, 1] of each to the reference. shown: uint8 images of
    the numbers below the count that is shown. seconds: of this process. draws_noise: whether the sampler asked for any.
    """

    numbers: Tensor
    errors: Tensor
    shown: Tensor
    seconds: float
    draws_noise: bool


class Convergence(Study):
    """The error of each point's solver: pixel RMSE of its samples to those of the reference from the same latents.

    All deterministic samplers follow one differential equation, so the distance goes to 0 with the calls whatever the
    network has learnt. It has no floor, as samples are compared as floats, neither clipped nor rounded to pixel values;
    what it does not see is how good the images are at which they all arrive. Two things set an end to it: the reference
    has an error of its own, DDIM's of as many calls, below which solvers are not told apart; and a tau whose last
    timestep is below the reference's takes x_T for a state of less noise, and keeps that error.

    Points that draw noise are compared where they are asked for: how far they stay away is how much of an image the
    latent does not decide. That is no solver's error, and their rows say `draws_noise`.

    Args:
        points: what is sampled; the last one is the reference.
        num_images: samples 0 ... num_images - 1 are compared, at least 2.
        shown: samples of the picture, at most.

    Raises ValueError where there is nothing to compare.
    """

    name = "convergence"
    Settings = ConvergenceConfig

    def __init__(self, points: Sequence[GridPoint], *, num_images: int, shown: int = 8) -> None:
        if num_images < 2 or len(points) < 2:
            raise ValueError("convergence compares at least two images of at least one point beside the reference")
        self.points = list(points)
        *self.compared, self.reference = self.points
        self.num_images = num_images
        self.shown = min(shown, num_images)

    @classmethod
    def grid(cls, settings: ConvergenceConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        reference = settings.reference(schedule)
        points = replace(sampler, eta=settings.eta).points(schedule, "evaluation.convergence")
        compared = [point for point in points if point != reference]
        if not compared:
            raise UserError(
                f"evaluation.convergence.reference_steps={settings.reference_steps} is all that is sampled; compare "
                "other numbers of steps with it, for example sampler.steps=5,10,20,50."
            )
        return [*compared, reference]

    @classmethod
    def of(cls, settings: ConvergenceConfig, points: Sequence[GridPoint], material: Material) -> Convergence:
        return cls(points, num_images=settings.num_images, shown=settings.shown)

    def plan(self) -> str:
        return (
            f"convergence of {self.num_images:,} samples of {len(self.compared)} points "
            f"to those of {self.reference.nfe:,} calls"
        )

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        order = [self.reference, *self.compared]
        wanted = {point: self._depends_on(point, subject) for point in order}
        found = recall(self.name, wanted, subject, kept)
        if len(found) < len(order):
            # The others need all of its samples, of which no more is kept than is shown.
            found.pop(self.reference, None)
        before = set(found)
        say.begin(self.points)
        target: Tensor | None = None
        with progress([point.nfe for point in order]) as bar:
            for point in order:
                known = found.get(point)
                if known is None:
                    x_0, known = self._together(subject, point, target, bar)
                    target = x_0 if target is None else target
                    found[point] = known
                    if subject.first:
                        kept.save(self.name, wanted[point], known)
                if point != self.reference:
                    say.row(self._row(point, known, subject), point=point)
                bar.finish_point(self._caption(point, known) + (", finished before" if point in before else ""))
        if subject.first:
            # Points of an earlier attempt may have kept fewer pictures than are asked for now.
            count = min(len(known.images) for known in found.values())
            images = [found[point].images[:count] for point in self.compared]
            for what, picture, caption in pictures(say.rows, images, found[self.reference].images[:count]):
                say.picture(what, picture, caption)
            say.end()

    def _caption(self, point: GridPoint, known: Finished) -> str:
        if point == self.reference:
            return f"convergence, {point_key(point)}: {self.num_images} images to compare with"
        return f"convergence, {point_key(point)}: RMSE {significant(known.row['rmse'], 3)}, {point.nfe} calls"

    def _row(self, point: GridPoint, known: Finished, subject: Subject) -> dict[str, Any]:
        return {
            **subject.columns(point),
            **subject.told_in(),
            "num_images": self.num_images,
            "reference_steps": self.reference.steps,
            **known.row,
        }

    def _depends_on(self, point: GridPoint, subject: Subject) -> dict[str, Any]:
        return {
            **subject.depends_on(point),
            "num_images": self.num_images,
            "reference": subject.depends_on(self.reference),
        }

    def _together(self, subject: Subject, point: GridPoint, target: Tensor | None, bar: Bar) -> tuple[Tensor, Finished]:
        """This process's samples, float (N, ...) on the CPU, and what all of them give."""

        @failing_together
        def together(subject: Subject) -> tuple[Tensor, list[Share]]:
            x_0, share = self._sample(subject, point, target, bar)
            return x_0, gather_objects(share, subject.world_size)

        bar.start_point(point_key(point), self.num_images)
        x_0, shares = together(subject)
        return x_0, self._measured(shares, subject)

    def _sample(self, subject: Subject, point: GridPoint, target: Tensor | None, bar: Bar) -> tuple[Tensor, Share]:
        """The samples whose number leaves this process's rank when divided by the processes, and their errors."""
        mine = torch.arange(subject.rank, self.num_images, subject.world_size)
        parts, seconds, asked = [torch.empty(0, *subject.shape)], 0.0, False

        def work(numbers: Tensor) -> tuple[Tensor, float, bool]:
            began = time.perf_counter()
            x_0, noisy = _draw(subject, point, numbers)
            # Reading the result waits for the device.
            return x_0.cpu(), time.perf_counter() - began, noisy

        for x_0, spent, noisy in in_batches(subject.sampling, mine, work):
            parts.append(x_0)
            seconds, asked = seconds + spent, asked or noisy
            bar.advance(len(x_0) * subject.world_size)
            subject.check_signals()
        x_0 = torch.cat(parts)
        space = subject.sampling.space
        errors = space.errors(x_0, x_0 if target is None else target)
        shown = space.to_stored(x_0[mine < self.shown])
        return x_0, Share(mine, errors, shown, seconds, asked)

    def _measured(self, shares: Sequence[Share], subject: Subject) -> Finished:
        numbers = torch.cat([share.numbers for share in shares])
        order = numbers.argsort()
        if numbers[order].tolist() != list(range(self.num_images)):
            raise RuntimeError(f"{len(numbers)} samples were compared where {self.num_images} were asked for")
        errors = torch.cat([share.errors for share in shares])[order]
        drawn = torch.cat([share.numbers[share.numbers < self.shown] for share in shares]).argsort()
        rmse, standard_error = root_mean(errors)
        row = {
            "rmse": rmse,
            "rmse_standard_error": standard_error,
            "draws_noise": any(share.draws_noise for share in shares),
            "seconds": max(share.seconds for share in shares),
            "device": subject.device_name(),
        }
        return Finished(row, torch.cat([share.shown for share in shares])[drawn])


def root_mean(errors: Tensor) -> tuple[float, float]:
    """The root of the mean of squared errors (N,), N >= 2, and its standard error by the root's derivative."""
    mean = errors.mean().item()
    of_mean = errors.std().item() / math.sqrt(len(errors))
    root = math.sqrt(mean)
    return root, of_mean / (2 * root) if root > 0 else 0.0


def _draw(subject: Subject, point: GridPoint, numbers: Tensor) -> tuple[Tensor, bool]:
    """Samples in model space, before they are rounded to what is stored, and whether they needed noise."""
    source, asked = subject.sampling.noise, False
    bound = source.bind(numbers)

    def noise(step: int, like: Tensor) -> Tensor:
        nonlocal asked
        asked = True
        return bound(step, like)

    x_T = source.initial(numbers, subject.shape, subject.device)
    return subject.decode(point, x_T, indices=numbers, noise=noise), asked
