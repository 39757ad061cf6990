"""Interpolation: images along spherical lines between latents, and on a grid between four (DDIM 5.3, appendix D.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ddim.callbacks.generation import Sampling, in_batches, sampling_context
from ddim.callbacks.progress import GridProgress
from ddim.callbacks.study import Study
from ddim.data import to_uint8
from ddim.diffusion import slerp
from ddim.grid import GridPoint
from ddim.labelled_rows import labelled_rows
from ddim.lit_module import DenoisingModule
from ddim.records import point_key, significant
from ddim.rows import write_rows
from ddim.show import show_summary, show_table
from ddim.terminal import Terminal


class Interpolation(Study):
    """Decodes latents between those of the samples, with eta = 0, where the latent alone decides the image.

    Line i joins samples 2i and 2i + 1; the corners of the grid are the four samples after the last line's. A row per
    line says how far the latents' norm strays from those of its ends, and how even the way is: mean squared errors on
    [0, 1] between neighbouring images, and between the ends.

    Args (besides those of `Study`):
        lines: pairs of latents.
        points_per_line: images on each line, ends included.
        corners: side of the grid between four latents.
    """

    name = "interpolation"

    def __init__(
        self,
        points: Sequence[GridPoint],
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        lines: int,
        points_per_line: int,
        corners: int,
        **more: Any,
    ) -> None:
        super().__init__(points, sampling, directory, identity, **more)
        self.lines = lines
        self.points_per_line = points_per_line
        self.corners = corners
        self.rows: list[dict[str, Any]] = []

    def plan(self) -> str:
        return f"{self.lines} lines of {self.points_per_line} images and a grid of {self.corners}x{self.corners}"

    def records(self) -> list[dict[str, Any]]:
        return self.rows

    def report(self, terminal: Terminal) -> None:
        headers = ["line", "norm of ends", "norm between", "MSE of ends", "mean jump", "largest jump", "largest/ends"]
        several = len(self.points) > 1
        rows = [
            [
                *([row["tau"]] if several else []),
                f"{row['first_sample']}-{row['last_sample']}",
                f"{row['norm_first']:.2f}, {row['norm_last']:.2f}",
                f"{row['norm_min']:.2f} to {row['norm_max']:.2f}",
                *(significant(row[name], 3) for name in ("mse_ends", "mse_mean_jump", "mse_largest_jump")),
                significant(row["largest_jump_share"], 3),
            ]
            for row in self.rows
        ]
        terminal.say("\nInterpolation: norms of latents along the line; MSE of images on [0, 1]")
        terminal.table(["τ", *headers] if several else headers, rows)
        terminal.say(f"\nTable     {self.directory / 'interpolation.csv'}")

    def run(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        with GridProgress(
            [point.nfe for point in self.points], enabled=self.show_progress and trainer.is_global_zero
        ) as progress:
            for point in self.points:
                progress.start_point(f"S {point.steps}", self.lines * self.points_per_line + self.corners**2)
                self._run_point(trainer, module, point, progress)
                progress.finish_point(f"interpolation, S {point.steps}: {self.plan()}")
        if trainer.is_global_zero:
            write_rows(self.directory, self.name, self.rows, self.context)
            columns = list(dict.fromkeys(key for row in self.rows for key in row if key != "timesteps"))
            show_table(trainer, f"{self.name}/results", columns, [[row[key] for key in columns] for row in self.rows])
            show_summary(trainer, self._summary())

    def _run_point(
        self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, progress: GridProgress
    ) -> None:
        ends = self.sampling.noise.initial(torch.arange(2 * self.lines + 4), self.sampling.shape)
        lines = line_latents(ends[: 2 * self.lines : 2], ends[1 : 2 * self.lines : 2], self.points_per_line)
        square = grid_latents(ends[2 * self.lines :], self.corners)
        images = self._decode(trainer, module, point, torch.cat([lines.flatten(0, 1), square.flatten(0, 1)]), progress)
        on_lines = images[: self.lines * self.points_per_line].unflatten(0, (self.lines, self.points_per_line))
        on_grid = images[self.lines * self.points_per_line :].unflatten(0, (self.corners, self.corners))
        columns = self.columns(point, trainer, module)
        for number, (latents, pictures) in enumerate(zip(lines, on_lines, strict=True)):
            samples = {"line": number, "first_sample": 2 * number, "last_sample": 2 * number + 1}
            self.rows.append({**columns, **samples, **measure_norms(latents), **measure_jumps(pictures)})
        if trainer.is_global_zero:
            self._draw(trainer, point, on_lines, on_grid)

    def _decode(
        self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, latents: Tensor, progress: GridProgress
    ) -> Tensor:
        def work(part: Tensor) -> Tensor:
            with sampling_context(trainer, module):
                return to_uint8(module.decode(point, part.to(module.device))).cpu()

        parts = []
        for images in in_batches(self.sampling, latents, work):
            parts.append(images)
            progress.advance(len(images))
        return torch.cat(parts)

    def _draw(self, trainer: pl.Trainer, point: GridPoint, on_lines: Tensor, on_grid: Tensor) -> None:
        about = f"{self.identity.get('dataset', 'samples')}, η = 0, S = {point.steps}"
        weights = [f"{weight:.2f}" for weight in torch.linspace(0, 1, self.points_per_line).tolist()]
        lines = labelled_rows(
            [(f"{2 * number} – {2 * number + 1}", images) for number, images in enumerate(on_lines)],
            f"Between the latents of two samples: {about}",
            weights,
        )
        self.show(trainer, f"lines{self.suffix(point)}", lines, f"S {point.steps}")
        sides = [f"{weight:.2f}" for weight in torch.linspace(0, 1, self.corners).tolist()]
        first = 2 * self.lines
        grid = labelled_rows(
            list(zip(sides, on_grid, strict=True)),
            f"Between the latents of samples {first} to {first + 3} in the corners: {about}",
            sides,
        )
        self.show(trainer, f"corners{self.suffix(point)}", grid, f"S {point.steps}")

    def _summary(self) -> dict[str, float]:
        values = {}
        for point in self.points:
            rows = [row for row in self.rows if (row["tau"], row["steps"]) == (point.tau, point.steps)]
            shares = [row["largest_jump_share"] for row in rows if row["largest_jump_share"] is not None]
            if shares:
                values[f"interpolation/largest_jump_share/{point_key(point)}"] = max(shares)
            values[f"interpolation/norm_excess/{point_key(point)}"] = max(row["norm_excess"] for row in rows)
        return values


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


def measure_jumps(images: Tensor) -> dict[str, float | None]:
    """Mean squared errors on [0, 1] of a line of uint8 images (n, C, H, W): between its ends, and between neighbours.

    `largest_jump_share` is the largest jump in terms of the ends' error: 1 is a line that changes at one place only, a
    straight and even one has 1/(n - 1)². None where the ends are equal.
    """
    pixels = images.flatten(1).double() / 255
    jumps = (pixels[1:] - pixels[:-1]).square().mean(dim=1)
    ends = (pixels[-1] - pixels[0]).square().mean().item()
    return {
        "mse_ends": ends,
        "mse_mean_jump": jumps.mean().item(),
        "mse_largest_jump": jumps.max().item(),
        "largest_jump_share": jumps.max().item() / ends if ends > 0 else None,
    }
