"""Trajectories: the predicted x_0 along the way from noise to image, as a strip, an animation and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ddim.callbacks.generation import Sampling, in_batches, sampling_context
from ddim.callbacks.progress import GridProgress
from ddim.callbacks.study import Study
from ddim.data import to_uint8
from ddim.diffusion import StepState
from ddim.files import save_picture
from ddim.grid import GridPoint
from ddim.image_grids import font, image_grid
from ddim.labelled_rows import labelled_rows
from ddim.lit_module import DenoisingModule
from ddim.records import eta_label, eta_title, point_key, significant
from ddim.rows import write_rows
from ddim.show import show_animation, show_summary
from ddim.terminal import Terminal

# More frames than this would neither fit into memory nor be watched to their end.
FRAMES = 100
LAST_FRAME_MILLISECONDS = 1500
# Shares of the way at which the terminal says how far the prediction still is from the final image.
REPORTED = (0.0, 0.25, 0.5, 0.75, 1.0)


class Trajectory(Study):
    """What the network takes for the final image after each step, for the first samples and each eta.

    A row per step: the mean squared error on [0, 1] between the predicted x_0, as a picture, and the final image. It
    tells how early an image is decided.

    Args (besides those of `Study`):
        num_images: samples 0 ... num_images - 1.
        shown: columns of the strip; the animation has every step, or 100 evenly chosen ones.
        frame_milliseconds: of the animation.
    """

    name = "trajectory"

    def __init__(
        self,
        points: Sequence[GridPoint],
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        num_images: int,
        shown: int,
        frame_milliseconds: int,
        **more: Any,
    ) -> None:
        super().__init__(points, sampling, directory, identity, **more)
        self.num_images = num_images
        self.shown = shown
        self.frame_milliseconds = frame_milliseconds
        self.rows: list[dict[str, Any]] = []

    def plan(self) -> str:
        return f"{len(self.points)} trajectories of {self.num_images} images"

    def records(self) -> list[dict[str, Any]]:
        return self.rows

    def report(self, terminal: Terminal) -> None:
        several = len({point.tau for point in self.points}) > 1
        table = []
        for point in self.points:
            rows = self._rows_of(point)
            chosen = [rows[round(share * (len(rows) - 1))] for share in REPORTED]
            label = [eta_label(point), *([point.tau] if several else [])]
            table.append([*label, str(point.steps), *(significant(row["mse_to_final"], 3) for row in chosen)])
        headers = ["η", *(["τ"] if several else []), "S", *(f"{share:.0%} of the way" for share in REPORTED)]
        terminal.say("\nTrajectory: MSE on [0, 1] between the predicted x_0 and the final image")
        terminal.table(headers, table)
        terminal.say(f"\nTable     {self.directory / 'trajectory.csv'}")

    def run(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        with GridProgress(
            [point.nfe for point in self.points], enabled=self.show_progress and trainer.is_global_zero
        ) as progress:
            for point in self.points:
                name = f"trajectory, eta {eta_label(point)}, S {point.steps}"
                progress.start_point(name, self.num_images)
                kept = sorted({*evenly(point.nfe, self.shown), *evenly(point.nfe, FRAMES)})
                errors, pictures = self._follow(trainer, module, point, kept, progress)
                columns = self.columns(point, trainer, module)
                # A row has its own timestep; a thousand rows with a thousand each would be no table.
                del columns["timesteps"]
                for step, (timestep, error) in enumerate(zip(reversed(point.timesteps), errors.tolist(), strict=True)):
                    row = {"step": step, "timestep": timestep, "num_images": self.num_images, "mse_to_final": error}
                    self.rows.append({**columns, **row})
                if trainer.is_global_zero:
                    self._draw(trainer, point, dict(zip(kept, pictures, strict=True)))
                progress.finish_point(f"{name}: {self.num_images} images")
        if trainer.is_global_zero:
            write_rows(self.directory, self.name, self.rows, self.context)
            show_summary(trainer, self._summary())

    def _follow(
        self,
        trainer: pl.Trainer,
        module: DenoisingModule,
        point: GridPoint,
        kept: Sequence[int],
        progress: GridProgress,
    ) -> tuple[Tensor, Tensor]:
        """Mean squared errors (steps,) and the pictures (len(kept), num_images, C, H, W) of the steps that are kept."""

        def work(indices: Tensor) -> tuple[Tensor, Tensor]:
            with sampling_context(trainer, module):
                return follow(module, point, indices, self.sampling, kept)

        errors, parts = torch.zeros(point.nfe, dtype=torch.float64), []
        for squared, pictures in in_batches(self.sampling, torch.arange(self.num_images), work):
            errors += squared
            parts.append(pictures)
            progress.advance(pictures.shape[1])
        return errors / self.num_images, torch.cat(parts, dim=1)

    def _draw(self, trainer: pl.Trainer, point: GridPoint, pictures: Mapping[int, Tensor]) -> None:
        timesteps = point.timesteps[::-1]
        title = eta_title(eta_label(point))
        columns = evenly(point.nfe, self.shown)
        strip = labelled_rows(
            [
                (f"sample {number}", torch.stack([pictures[step][number] for step in columns]))
                for number in range(self.num_images)
            ],
            f"The predicted x_0 along the way: {self.identity.get('dataset', 'samples')}, {title}, S = {point.steps}",
            [f"t = {timesteps[step]}" for step in columns],
        )
        sampler, caption = point_key(point).split("/")[0], f"{title}, S {point.steps}"
        self.show(trainer, f"{sampler}{self.suffix(point)}", strip, caption)
        frames = evenly(point.nfe, FRAMES)
        path = self.directory / f"{self.name}-{sampler}{self.suffix(point)}.gif"
        animate(
            [pictures[step] for step in frames],
            [f"{title}, t = {timesteps[step]}" for step in frames],
            path,
            self.frame_milliseconds,
        )
        self.pictures.append(path)
        show_animation(trainer, f"{self.name}/{sampler}{self.suffix(point)}-animation", path, caption)

    def _rows_of(self, point: GridPoint) -> list[dict[str, Any]]:
        wanted = (point.tau, point.steps, point.eta, point.variance)
        return [row for row in self.rows if (row["tau"], row["steps"], row["eta"], row["variance"]) == wanted]

    def _summary(self) -> dict[str, float]:
        """The error half way; the last one is 0 by definition."""
        values = {}
        for point in self.points:
            rows = self._rows_of(point)
            values[f"trajectory/mse_half_way/{point_key(point)}"] = rows[(len(rows) - 1) // 2]["mse_to_final"]
        return values


def follow(
    module: DenoisingModule, point: GridPoint, indices: Tensor, sampling: Sampling, kept: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The predicted x_0 of samples `indices` (N,) at every step.

    Returns, on the CPU, float64 (steps,): the mean squared error on [0, 1] to the final image, summed over the
    samples; and uint8 (len(kept), N, C, H, W): the pictures at the steps `kept`.

    It samples twice, the first time for the final images: to keep a thousand large predictions until the final image
    is known would take more memory than there may be.
    """
    x_T = sampling.noise.initial(indices, sampling.shape, module.device)
    noise = sampling.noise.bind(indices)
    final = to_uint8(module.decode(point, x_T, noise=noise)).cpu()
    errors, pictures = torch.zeros(point.nfe, dtype=torch.float64), {}

    def look(state: StepState) -> None:
        picture = to_uint8(state.x_0).cpu()
        errors[state.step] = ((picture.double() - final) / 255).square().flatten(1).mean(dim=1).sum()
        if state.step in kept:
            pictures[state.step] = picture

    module.decode(point, x_T, noise=noise, on_step=look)
    return errors, torch.stack([pictures[step] for step in kept])


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the numbers 0 ... total - 1, as evenly as possible, the first and the last included."""
    if count >= total:
        return list(range(total))
    return [round(number * (total - 1) / (count - 1)) for number in range(count)]


def animate(frames: Sequence[Tensor], labels: Sequence[str], path: Path, milliseconds: int) -> None:
    """An endless GIF: each frame's images (N, C, H, W) side by side under its label. The last frame stays longer."""
    text = font(16)
    margin, line = 10, 32
    scale = max(1, round(96 / max(frames[0].shape[-2:])))
    pictures = []
    for images, label in zip(frames, labels, strict=True):
        grid = image_grid(images, max(1, round((1.5 * len(images)) ** 0.5)), scale)
        width = max(grid.width, int(max(text.getlength(label) for label in labels))) + 2 * margin
        picture = Image.new(grid.mode, (width, grid.height + line + margin), "white")
        ImageDraw.Draw(picture).text((margin, line / 2), label, fill="black", font=text, anchor="lm")
        picture.paste(grid, (margin, line))
        pictures.append(picture)
    durations = [milliseconds] * (len(pictures) - 1) + [max(milliseconds, LAST_FRAME_MILLISECONDS)]
    more = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0, "optimize": True}
    save_picture(pictures[0], path, **more)
