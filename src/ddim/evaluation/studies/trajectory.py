"""Trajectories: the predicted x_0 along the way from noise to image, as a strip, an animation and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddim.data import ImageDataModule
from ddim.diffusion import SAMPLERS, NoiseSchedule, StepState
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import UserError, at_least
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.study import Bar, Material, OnePointSettings, Progress, Study, suffix
from ddim.evaluation.subject import Subject
from ddim.findings.labels import eta_label
from ddim.findings.parts.trajectory import flow, pictures
from ddim.findings.telling import Findings

# More frames than this would neither fit into memory nor be watched to their end.
FRAMES = 100
# Points of the plane that are followed for the picture of the flow.
FLOWING = 400


@dataclass
class TrajectoryConfig(OnePointSettings):
    """The predicted x_0 along the way, as a strip and an animation.

    Attributes:
        steps: S; null takes the largest of `sampler.steps`.
        eta (as sampler.eta): the values of η that are followed.
        num_images: samples that are followed.
        shown: steps in the strip; the animation has all, of more than 100 an even choice.
        frame_milliseconds: how long a frame of the animation is shown.
    """

    eta: Any = field(default_factory=lambda: [0.0, 1.0])
    num_images: int = 6
    shown: int = 10
    frame_milliseconds: int = 150

    def check(self, key: str) -> None:
        super().check(key)
        at_least(f"{key}.num_images", self.num_images, 1)
        at_least(f"{key}.shown", self.shown, 2)
        at_least(f"{key}.frame_milliseconds", self.frame_milliseconds, 20)


class Trajectory(Study):
    """What the network takes for the final image after each step, for the first samples and each eta.

    A row per step: the mean squared error on [0, 1] between the predicted x_0, as a picture, and the final image. It
    tells how early an image is decided.

    Args:
        points: what is sampled.
        num_images: samples 0 ... num_images - 1.
        shown: columns of the strip; the animation has every step, or 100 evenly chosen ones.
        frame_milliseconds: of the animation.
        real: held-out points of the plane (N, 2), as they are stored, on whose density the ways of samples are drawn.
    """

    name = "trajectory"
    Settings = TrajectoryConfig

    def __init__(
        self,
        points: Sequence[GridPoint],
        *,
        num_images: int,
        shown: int,
        frame_milliseconds: int,
        real: Callable[[], Tensor] | None = None,
    ) -> None:
        self.real = real
        self.points = list(points)
        self.num_images = num_images
        self.shown = shown
        self.frame_milliseconds = frame_milliseconds

    @classmethod
    def grid(cls, settings: TrajectoryConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        for name in sampler.names:
            if not SAMPLERS[name].takes("on_step"):
                raise UserError(
                    f"sampler.name={name} does not show its steps (it takes no on_step), which "
                    "evaluation=trajectory needs; leave trajectory out of evaluation.parts."
                )
        return settings.at(settings.eta, sampler, schedule, cls.name)

    @classmethod
    def of(cls, settings: TrajectoryConfig, points: Sequence[GridPoint], material: Material) -> Trajectory:
        return cls(
            points,
            num_images=settings.num_images,
            shown=settings.shown,
            frame_milliseconds=settings.frame_milliseconds,
            real=_points_of(material.images) if material.images.space.shape == (2,) else None,
        )

    def plan(self) -> str:
        return f"{len(self.points)} trajectories of {self.num_images} images"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        rows: list[dict[str, Any]] = []
        with progress([point.nfe for point in self.points]) as bar:
            for point in self.points:
                name = f"trajectory, eta {eta_label(point)}, S {point.steps}"
                bar.start_point(name, self.num_images)
                strip, frames = evenly(len(point.timesteps), self.shown), evenly(len(point.timesteps), FRAMES)
                seen_at = sorted({*strip, *frames})
                errors, seen = self._follow(subject, point, seen_at, bar)
                columns = {**subject.columns(point), **subject.told_in()}
                # A row has its own timestep; a thousand rows with a thousand each would be no table.
                del columns["timesteps"]
                timesteps = point.timesteps[::-1]
                rows += [
                    {**columns, "step": step, "timestep": t, "num_images": self.num_images, "mse_to_final": error}
                    for step, (t, error) in enumerate(zip(timesteps, errors.tolist(), strict=True))
                ]
                if subject.first:
                    by_step = dict(zip(seen_at, seen, strict=True))
                    data = _data(subject)
                    where = suffix(point, self.points)
                    milliseconds = self.frame_milliseconds
                    for what, picture, caption in pictures(
                        point, timesteps, by_step, strip, frames, milliseconds, data, where
                    ):
                        say.picture(what, picture, caption)
                bar.finish_point(f"{name}: {self.num_images} images")
        say.row(*rows)
        if subject.first:
            if self.real is not None:
                ways = [(point, _way(subject, point)) for point in self.points]
                say.picture(*flow(ways, subject.sampling.space.to_model(self.real()), _data(subject)))
            say.end()

    def _follow(self, subject: Subject, point: GridPoint, seen_at: Sequence[int], bar: Bar) -> tuple[Tensor, Tensor]:
        """Mean squared errors (steps,) and the pictures (len(seen_at), num_images, C, H, W) of these steps."""
        errors, parts = torch.zeros(len(point.timesteps), dtype=torch.float64), []
        for squared, seen in in_batches(
            subject.sampling,
            torch.arange(self.num_images),
            lambda indices: follow(subject, point, indices, seen_at),
        ):
            errors += squared
            parts.append(seen)
            bar.advance(seen.shape[1])
        return errors / self.num_images, torch.cat(parts, dim=1)


def follow(subject: Subject, point: GridPoint, indices: Tensor, seen_at: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The predicted x_0 of samples `indices` (N,) at every step.

    Returns, on the CPU, float64 (steps,): the mean squared error on [0, 1] to the final image, summed over the
    samples; and uint8 (len(seen_at), N, C, H, W): the pictures at the steps `seen_at`.

    It samples twice, the first time for the final images: to keep a thousand large predictions until the final image
    is known would take more memory than there may be.
    """
    source, space = subject.sampling.noise, subject.sampling.space
    x_T = source.initial(indices, subject.shape, subject.device)
    noise = source.bind(indices)
    final = space.told(space.to_stored(subject.decode(point, x_T, indices=indices, noise=noise)).cpu())
    errors, pictures = torch.zeros(len(point.timesteps), dtype=torch.float64), {}

    def look(state: StepState) -> None:
        picture = space.to_stored(state.x_0).cpu()
        errors[state.step] = (space.told(picture) - final).square().mean(dim=1).sum()
        if state.step in seen_at:
            pictures[state.step] = picture

    subject.decode(point, x_T, indices=indices, noise=noise, on_step=look)
    return errors, torch.stack([pictures[step] for step in seen_at])


def _way(subject: Subject, point: GridPoint) -> Tensor:
    """The states of the first samples from x_T on, in the model's space: (FLOWING, steps + 1, ...), on the CPU."""
    numbers = torch.arange(FLOWING)
    x_T = subject.sampling.noise.initial(numbers, subject.shape, subject.device)
    states = [x_T.cpu()]
    noise = subject.sampling.noise.bind(numbers)
    subject.decode(point, x_T, indices=numbers, noise=noise, on_step=lambda state: states.append(state.x.cpu()))
    return torch.stack(states, dim=1)


def _points_of(images: ImageDataModule) -> Callable[[], Tensor]:
    return lambda: torch.cat(list(images.images("test", 500)))


def _data(subject: Subject) -> str:
    return str(subject.identity.get("dataset", "samples"))


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the numbers 0 ... total - 1, as evenly as possible, the first and the last included."""
    if count >= total:
        return list(range(total))
    return [round(number * (total - 1) / (count - 1)) for number in range(count)]
