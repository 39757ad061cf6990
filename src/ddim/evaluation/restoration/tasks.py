"""One cell of a table of restorations, and its work: draws of all images, divided among the processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion import SAMPLERS, Denoiser, Noise, NoiseSchedule
from ddim.diffusion.grid import GridPoint
from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.restoration.methods.start import sdedit_timesteps
from ddim.diffusion.restoration.methods.table import DENOISER, METHODS, SAMPLER
from ddim.errors import NotFiniteError, UserError
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.subject import Subject
from ddim.runs.gathering import failing_together, gather_objects


@dataclass(frozen=True)
class Task:
    """A method with its options on one operator, along the timesteps of a point.

    Of a method that is a sampler of its own nothing but these enters.
    """

    operator: str
    method: str
    point: GridPoint
    options: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def own_sampler(self) -> bool:
        return METHODS[self.method].kind == SAMPLER

    def going_down(self, schedule: NoiseSchedule) -> GridPoint:
        """The point with the timesteps that are sampled: SDEdit starts below the first ones."""
        method = METHODS[self.method]
        if method.kind in (SAMPLER, DENOISER):
            return self.point
        kept = sdedit_timesteps(schedule, self.point.timesteps_tensor(), **dict(self.options))
        return replace(self.point, timesteps=tuple(kept.tolist()))

    def calls(self, schedule: NoiseSchedule) -> int:
        """How often the network runs for one restoration of an image."""
        down = self.going_down(schedule)
        if self.own_sampler:
            return METHODS[self.method].calls(len(down.timesteps), **dict(self.options))
        return SAMPLERS[down.sampler].calls(schedule, down.timesteps, **down.own_options)


def tasks_of(
    pairs: Sequence[tuple[str, str]], points: Sequence[GridPoint], options: Callable[[str], Mapping[str, Any]]
) -> list[Task]:
    """Every pair of operator and method at every point; one that is its own sampler once for each set of timesteps."""
    found = []
    for operator, method in pairs:
        own = tuple(sorted(options(method).items()))
        seen = set()
        for point in points:
            if METHODS[method].kind == SAMPLER:
                if point.timesteps in seen:
                    continue
                seen.add(point.timesteps)
            found.append(Task(operator, method, point, own))
    return found


def restore(task: Task, subject: Subject, measurement: Measurement, x_T: Tensor, noise: Noise) -> Tensor:
    """x_0 (N, ...) in model space of N measurements, from x_T (N, ...).

    Raises UserError where x_0 is not finite.
    """
    try:
        restored = _restored(task, subject, measurement, x_T, noise)
    except NotFiniteError:
        raise _diverged(task, subject, x_T) from None
    if not bool(torch.isfinite(restored).all()):
        raise _diverged(task, subject, x_T)
    return restored


def _diverged(task: Task, subject: Subject, x_T: Tensor) -> UserError:
    """Whose fault it is: the method's where the network alone gives numbers."""
    first = torch.full((len(x_T),), max(task.point.timesteps), dtype=torch.long, device=x_T.device)
    with subject.arithmetic():
        if not bool(torch.isfinite(subject.denoiser(x_T, first)).all()):
            return subject.diverged()
    smaller = " or a smaller restoration.step_size" if "step_size" in dict(task.options) else ""
    return UserError(
        f"restoration.method={task.method} has diverged with sampler.steps={task.point.steps} on {task.operator}: "
        f"what it restored are not finite numbers; leave it out, or take more steps{smaller}."
    )


def _restored(task: Task, subject: Subject, measurement: Measurement, x_T: Tensor, noise: Noise) -> Tensor:
    """x_0 as it comes, finite or not."""
    method, options, schedule = METHODS[task.method], dict(task.options), subject.schedule
    down = task.going_down(schedule)
    with subject.arithmetic():
        network = _as_it_is_set_now(subject.denoiser, subject.device.type)
    if method.kind == SAMPLER:
        with subject.arithmetic(), _full(subject.device.type):
            restored: Tensor = method.function(
                task.point.scaled(network),
                x_T,
                schedule,
                down.timesteps_tensor(),
                measurement,
                noise=noise,
                **options,
            )
        return restored
    if method.kind == DENOISER:
        guided: Denoiser = method.function(network, measurement, schedule, **options)

        def in_full(x: Tensor, t: Tensor) -> Tensor:
            with _full(x.device.type):
                return guided(x, t)

        return replace(subject, denoiser=in_full).decode(down, x_T, noise=noise)
    started = method.function(x_T, schedule, task.point.timesteps_tensor(), measurement, **options)
    return subject.decode(down, started, noise=noise)


def _full(device_type: str) -> torch.autocast:
    """Without autocast: what is computed with an operator is exact where A x is to be y, whatever the network is in."""
    return torch.autocast(device_type, enabled=False)


def _as_it_is_set_now(denoiser: Denoiser, device_type: str) -> Denoiser:
    """The denoiser in the autocast that is on now, wherever it is called."""
    enabled, dtype = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)

    def eps(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(device_type, dtype=dtype, enabled=enabled):
            return denoiser(x, t)

    return eps


def draw_all(
    task: Task,
    subject: Subject,
    measurement: Measurement,
    numbers: Tensor,
    draws: int,
    available: int,
    advance: Callable[[int], None],
) -> tuple[Tensor, float]:
    """Restorations float32 (draws, N, ...) on the CPU of N measurements, and the seconds of the slowest process.

    numbers: (N,), of the images in their split of `available`. Draw k of image number i starts from the latent of
    sample i + k `available` and has its noise, whatever else is restored with it. A network that knows labels is asked
    without one, since nothing says which label a damaged image has.
    """
    count = len(numbers)

    @failing_together
    def together(subject: Subject) -> list[tuple[Tensor, Tensor, float]]:
        mine = torch.arange(subject.rank, draws * count, subject.world_size)
        parts, seconds = [torch.empty(0, *subject.shape)], 0.0

        def work(places: Tensor) -> tuple[Tensor, float]:
            began = time.perf_counter()
            images = places % count
            samples = numbers[images] + places // count * available
            source = subject.sampling.noise
            x_T = source.initial(samples, subject.shape, subject.device)
            bound = measurement.of_samples(images).to(x_T)
            # Reading the result waits for the device.
            restored = restore(task, subject, bound, x_T, source.bind(samples)).float().cpu()
            return restored, time.perf_counter() - began

        for restored, spent in in_batches(subject.sampling, mine, work):
            parts.append(restored)
            seconds += spent
            advance(len(restored) * subject.world_size)
            subject.check_signals()
        return gather_objects((mine, torch.cat(parts), seconds), subject.world_size)

    everyone = together(subject)
    places = torch.cat([mine for mine, *_ in everyone])
    order = places.argsort()
    if places[order].tolist() != list(range(draws * count)):
        raise RuntimeError(f"{len(places)} images were restored where {draws * count} were asked for")
    restored = torch.cat([part for _, part, _ in everyone])[order]
    return restored.reshape(draws, count, *subject.shape), max(seconds for *_, seconds in everyone)
