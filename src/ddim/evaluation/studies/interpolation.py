"""Interpolation: images along spherical lines between latents, and on a grid between four (DDIM 5.3, appendix D.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion import NoiseSchedule, slerp
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import at_least
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.sampling import in_batches
from ddim.evaluation.study import Bar, Material, OnePointSettings, Progress, Study, suffix
from ddim.evaluation.subject import Subject
from ddim.findings.parts.interpolation import pictures
from ddim.findings.telling import Findings


@dataclass
class InterpolationConfig(OnePointSettings):
    """Spherical interpolation between latents, η = 0 (the paper's Figure 6).

    Attributes:
        steps: S; null takes the largest of `sampler.steps`.
        lines: pairs of latents.
        points: images on each line, ends included.
        corners: side of the square grid between four latents.
    """

    lines: int = 6
    points: int = 11
    corners: int = 7

    def check(self, key: str) -> None:
        super().check(key)
        at_least(f"{key}.lines", self.lines, 1)
        at_least(f"{key}.points", self.points, 3)
        at_least(f"{key}.corners", self.corners, 2)


class Interpolation(Study):
    """Decodes latents between those of the samples, with eta = 0, where the latent alone decides the image.

    Line i joins samples 2i and 2i + 1; the corners of the grid are the four samples after the last line's. A row per
    line says how far the latents' norm strays from those of its ends, and how even the way is: mean squared errors on
    [0, 1] between neighbouring images, and between the ends.

    Args:
        points: what is sampled.
        lines: pairs of latents.
        points_per_line: images on each line, ends included.
        corners: side of the grid between four latents.
    """

    name = "interpolation"
    Settings = InterpolationConfig

    def __init__(self, points: Sequence[GridPoint], *, lines: int, points_per_line: int, corners: int) -> None:
        self.points = list(points)
        self.lines = lines
        self.points_per_line = points_per_line
        self.corners = corners

    @classmethod
    def grid(cls, settings: InterpolationConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        return settings.at(0.0, sampler, schedule, cls.name)

    @classmethod
    def of(cls, settings: InterpolationConfig, points: Sequence[GridPoint], material: Material) -> Interpolation:
        return cls(points, lines=settings.lines, points_per_line=settings.points, corners=settings.corners)

    def plan(self) -> str:
        return f"{self.lines} lines of {self.points_per_line} images and a grid of {self.corners}x{self.corners}"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        rows: list[dict[str, Any]] = []
        with progress([point.nfe for point in self.points]) as bar:
            for point in self.points:
                bar.start_point(f"S {point.steps}", self.lines * self.points_per_line + self.corners**2)
                rows += self._run_point(subject, point, say, bar)
                bar.finish_point(f"interpolation, S {point.steps}: {self.plan()}")
        say.row(*rows)
        if subject.first:
            say.end()

    def _run_point(self, subject: Subject, point: GridPoint, say: Findings, bar: Bar) -> list[dict[str, Any]]:
        """The rows of the lines; the pictures are said."""
        ends = subject.sampling.noise.initial(torch.arange(2 * self.lines + 4), subject.shape)
        lines = line_latents(ends[: 2 * self.lines : 2], ends[1 : 2 * self.lines : 2], self.points_per_line)
        square = grid_latents(ends[2 * self.lines :], self.corners)
        # What has labels has one along a line, that of its first sample, and one on the whole grid.
        numbers = torch.arange(0, 2 * self.lines, 2).repeat_interleave(self.points_per_line)
        numbers = torch.cat([numbers, torch.full((self.corners**2,), 2 * self.lines)])
        latents = torch.cat([lines.flatten(0, 1), square.flatten(0, 1)])
        images = _decode(subject, point, latents, numbers, bar)
        on_lines = images[: self.lines * self.points_per_line].unflatten(0, (self.lines, self.points_per_line))
        on_grid = images[self.lines * self.points_per_line :].unflatten(0, (self.corners, self.corners))
        if subject.first:
            data = str(subject.identity.get("dataset", "samples"))
            for what, picture, caption in pictures(point, on_lines, on_grid, data, suffix(point, self.points)):
                say.picture(what, picture, caption)
        columns = {**subject.columns(point), **subject.told_in()}
        return [
            {
                **columns,
                **{"line": number, "first_sample": 2 * number, "last_sample": 2 * number + 1},
                **measure_norms(latents),
                **measure_jumps(subject.sampling.space.told(along)),
            }
            for number, (latents, along) in enumerate(zip(lines, on_lines, strict=True))
        ]


def _decode(subject: Subject, point: GridPoint, latents: Tensor, numbers: Tensor, bar: Bar) -> Tensor:
    """Images (N, C, H, W) of latents (N, C, H, W), on the CPU; numbers (N,): of the samples whose labels they have."""

    def work(places: Tensor) -> Tensor:
        x_0 = subject.decode(point, latents[places], indices=numbers[places])
        return subject.sampling.space.to_stored(x_0).cpu()

    parts = []
    for images in in_batches(subject.sampling, torch.arange(len(latents)), work):
        parts.append(images)
        bar.advance(len(images))
    return torch.cat(parts)


def line_latents(first: Tensor, last: Tensor, count: int) -> Tensor:
    """(N, count, ...): for each pair of first, last (N, ...) latents at weights 0 ... 1, ends included, by slerp.

    Slerp is the paper's, of the latents as they are: it turns from one to the other at an even rate. The norm is kept
    where both ends have it. Ends of norms a and b at a right angle, which Gaussian latents are close to, have
    a² cos² + b² sin² between, so that the norm goes from one to the other; at other angles it may leave that range, by
    an amount that falls with the difference of the norms and with the cosine of the angle.
    """
    weights = torch.linspace(0, 1, count, dtype=torch.float64).tolist()
    return torch.stack([slerp(first, last, weight) for weight in weights], dim=1)


def grid_latents(corners: Tensor, side: int) -> Tensor:
    """(side, side, ...) latents between four (4, ...): slerp down both edges, then across (DDIM appendix D.5).

    The corners stand at upper left, upper right, lower left and lower right.
    """
    edges = line_latents(corners[:2], corners[2:], side)
    return line_latents(edges[0], edges[1], side)


def measure_norms(latents: Tensor) -> dict[str, float]:
    """Angle between the ends in degrees and norms along a line of latents (n, ...).

    `norm_excess` is how far any norm is outside the range of the ends' norms, relative to the larger one.
    """
    flat = latents.flatten(1).double()
    norms = flat.norm(dim=1)
    low, high = sorted((norms[0].item(), norms[-1].item()))
    cosine = torch.nn.functional.cosine_similarity(flat[:1], flat[-1:]).clamp(-1, 1)
    return {
        "angle": torch.rad2deg(cosine.acos()).item(),
        "norm_first": norms[0].item(),
        "norm_last": norms[-1].item(),
        "norm_min": norms.min().item(),
        "norm_max": norms.max().item(),
        "norm_excess": max(low - norms.min().item(), norms.max().item() - high) / high,
    }


def measure_jumps(told: Tensor) -> dict[str, float | None]:
    """Mean squared errors along a line of samples, float64 (n, D) in the unit that errors are told in.

    Between its ends, and between neighbours.

    `largest_jump_share` is the largest jump in terms of the ends' error: 1 is a line that changes at one place only, a
    straight and even one has 1/(n - 1)². None where the ends are equal.
    """
    jumps = (told[1:] - told[:-1]).square().mean(dim=1)
    ends = (told[-1] - told[0]).square().mean().item()
    return {
        "mse_ends": ends,
        "mse_mean_jump": jumps.mean().item(),
        "mse_largest_jump": jumps.max().item(),
        "largest_jump_share": jumps.max().item() / ends if ends > 0 else None,
    }
