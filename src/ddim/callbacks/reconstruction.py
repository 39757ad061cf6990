"""Reconstruction: test images encoded to x_T and decoded again with the same steps (DDIM section 5.4, Table 2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ddim.callbacks.gathering import failing_together, gather_objects
from ddim.callbacks.generation import (
    Sampling,
    in_batches,
    sampling_context,
)
from ddim.callbacks.progress import GridProgress
from ddim.callbacks.resumption import Finished
from ddim.callbacks.study import Study, device_name
from ddim.data import to_model_space, to_uint8
from ddim.diffusion import encode
from ddim.grid import GridPoint
from ddim.labelled_rows import labelled_rows
from ddim.lit_module import DenoisingModule
from ddim.metrics import preprocessing_hash
from ddim.records import significant
from ddim.rows import write_rows
from ddim.show import show_point, show_summary, show_table
from ddim.study_figures import Panel, steps_figure
from ddim.terminal import Terminal

Images = Callable[[int], Iterator[Tensor]]


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

    Args (besides those of `Study`):
        images: batch size -> uint8 batches (B, C, H, W) of the images in a fixed order.
        num_images: exactly this many are in `images` and enter the error.
        split: where they come from, for the rows.
        shown: images of the picture, at most.
        source: what identifies the images; without it no finished point is recalled.

    Raises ValueError for a point that is not eta = 0 without clipping.
    """

    name = "reconstruction"

    def __init__(
        self,
        points: Sequence[GridPoint],
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        images: Images,
        num_images: int,
        split: str = "test",
        shown: int = 10,
        source: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(points, sampling, directory, identity, **more)
        if any(point.eta != 0 or point.clip_denoised for point in self.points):
            raise ValueError("reconstruction needs points with eta=0 and clip_denoised=False: encoding has no others")
        self.images = images
        self.num_images = num_images
        self.split = split
        self.shown = min(shown, num_images)
        self.source = source
        self.read_at_once = self.sampling.batch_size
        self.rows: list[dict[str, Any]] = []

    def plan(self) -> str:
        return f"reconstruction of {self.num_images:,} {self.split} images with {_these(self.points)}"

    def records(self) -> list[dict[str, Any]]:
        return self.rows

    def run(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        pictures: dict[GridPoint, Tensor] = {}
        wanted = {point: self._row_depends_on(point, trainer, module) for point in self.points}
        finished = {} if self.source is None else self.recall(wanted, trainer)
        with GridProgress(
            [point.nfe for point in self.points], enabled=self.show_progress and trainer.is_global_zero
        ) as progress:
            for point in self.points:
                known = finished.get(point)
                if known is None:
                    progress.start_point(f"S {point.steps}", self.num_images)
                    trip = self._shared_trip(trainer, module, point, progress)
                    known = Finished(self._measured(trip, module, trainer.world_size), trip.shown)
                    if self.resumption is not None and self.source is not None and trainer.is_global_zero:
                        self.resumption.save(self.name, wanted[point], known)
                pictures[point] = known.images
                row = {
                    **self.columns(point, trainer, module),
                    "encode_nfe": point.nfe,
                    "num_images": self.num_images,
                    "split": self.split,
                    "preprocessing": None if self.source is None else preprocessing_hash(self.source),
                    **known.row,
                }
                self.rows.append(row)
                if trainer.is_global_zero:
                    write_rows(self.directory, self.name, self.rows, self.context)
                progress.finish_point(
                    f"reconstruction, S {point.steps}: MSE {significant(row['mse_per_dimension'], 3)}, "
                    f"{self.num_images} images in {row['seconds']:.1f} s"
                    f"{', finished before' if point in finished else ''}"
                )
        if trainer.is_global_zero:
            self._show_all(trainer, pictures)

    def _row_depends_on(self, point: GridPoint, trainer: pl.Trainer, module: DenoisingModule) -> dict[str, Any]:
        return {
            **self.depends_on(point, trainer, module),
            "split": self.split,
            "num_images": self.num_images,
            "images": self.source,
        }

    @staticmethod
    def _measured(trip: RoundTrip, module: DenoisingModule, processes: int) -> dict[str, Any]:
        return {
            "mse_per_dimension": trip.errors.mean().item(),
            "seconds": trip.seconds,
            "device": device_name(module.device, processes),
        }

    def _shared_trip(
        self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, progress: GridProgress
    ) -> RoundTrip:
        @failing_together
        def together(trainer: pl.Trainer) -> RoundTrip:
            return self._gather(self._round_trip(trainer, module, point, progress), trainer.world_size)

        return together(trainer)

    def _round_trip(
        self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, progress: GridProgress
    ) -> RoundTrip:
        """This process's share of the images: those whose number leaves its rank when divided by the processes."""
        numbers, errors, shown, seconds, done = [], [], [], 0.0, 0
        # Every process reads the same batches, whatever size fits into the memory of its device.
        for batch in self.images(self.read_at_once * trainer.world_size):
            everyone = torch.arange(done, done + len(batch))
            done += len(batch)
            mine = everyone % trainer.world_size == trainer.global_rank
            if mine.any():
                x_0 = to_model_space(batch[mine])
                parts = list(in_batches(self.sampling, x_0, lambda part: _again(trainer, module, point, part)))
                again = torch.cat([part for part, _ in parts])
                seconds += sum(spent for _, spent in parts)
                numbers.append(everyone[mine])
                # Half the difference in [-1, 1] is the difference in [0, 1].
                errors.append(((again.double() - x_0.double()) / 2).square().flatten(1).mean(dim=1))
                shown.append(to_uint8(again[everyone[mine] < self.shown]))
            progress.advance(len(batch))
        if not numbers:
            return RoundTrip(torch.empty(0, dtype=torch.long), torch.empty(0).double(), _no_images(self.sampling), 0.0)
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

    def _show_all(self, trainer: pl.Trainer, pictures: Mapping[GridPoint, Tensor]) -> None:
        # Points of an earlier attempt may have kept fewer pictures than are asked for now.
        shown = min(len(images) for images in pictures.values())
        originals = next(self.images(self.shown))[:shown]
        data = self.identity.get("dataset", "images")
        by_tau: dict[str, list[tuple[GridPoint, dict[str, Any]]]] = {}
        for point, row in zip(self.points, self.rows, strict=True):
            by_tau.setdefault(point.tau, []).append((point, row))
        for members in by_tau.values():
            lines = [
                (f"S = {point.steps}   MSE {significant(row['mse_per_dimension'], 2)}", pictures[point][:shown])
                for point, row in members
            ]
            title = f"{data}: {self.split} images, and what is left of them after encoding and decoding with S steps"
            picture = labelled_rows([("original", originals), *lines], title, breaks=[1])
            self.show(trainer, f"images{self.suffix(members[0][0])}", picture, "originals above reconstructions")
        errors = {
            f"{tau} τ": [(point.steps, row["mse_per_dimension"]) for point, row in members]
            for tau, members in by_tau.items()
        }
        first = self.rows[0]
        about = {
            "weights": first.get("weights"),
            "precision": first["compute_precision"],
            "schedule": first["schedule"],
        }
        if len(by_tau) == 1:
            about["τ"] = first["tau"]
        figure = steps_figure(
            [Panel("mean squared error per dimension on [0, 1]", errors)],
            f"{data}: reconstruction error against S, {self.num_images:,} {self.split} images",
            " · ".join(f"{name} {value}" for name, value in about.items() if value is not None),
        )
        self.show(trainer, "error", figure)
        for point, row in zip(self.points, self.rows, strict=True):
            show_point(trainer, point.steps, point.nfe, {f"{self.name}/mse/{point.tau}": row["mse_per_dimension"]})
        columns = [column for column in self.rows[0] if column != "timesteps"]
        show_table(trainer, f"{self.name}/results", columns, [[row[column] for column in columns] for row in self.rows])
        show_summary(trainer, self._summary())

    def _summary(self) -> dict[str, float]:
        """`reconstruction/mse/linear/steps0010`: eta is always 0."""
        return {f"{self.name}/mse/{row['tau']}/steps{row['steps']:04d}": row["mse_per_dimension"] for row in self.rows}

    def report(self, terminal: Terminal) -> None:
        several = len({point.tau for point in self.points}) > 1
        terminal.say(
            f"\nReconstruction of {self.num_images:,} {self.split} images: "
            "mean squared error per dimension on [0, 1], unclipped",
            "bold",
        )
        lines = [
            [
                *([row["tau"]] if several else []),
                str(row["steps"]),
                str(row["encode_nfe"] + row["nfe"]),
                significant(row["mse_per_dimension"], 3),
                significant(row["seconds"], 3),
            ]
            for row in self.rows
        ]
        terminal.table([*(["τ"] if several else []), "S", "network calls", "MSE", "seconds"], lines)
        terminal.say(f"\nTable     {self.directory / f'{self.name}.csv'}")


def _again(trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, x_0: Tensor) -> tuple[Tensor, float]:
    """Images after encoding and decoding, on the CPU, and the seconds that took."""
    began = time.perf_counter()
    with sampling_context(trainer, module):
        x_T = encode(module, x_0.to(module.device), module.schedule, point.timesteps_tensor())
        # Reading the result waits for the device.
        again = module.decode(point, x_T).cpu()
    return again, time.perf_counter() - began


def _these(points: Sequence[GridPoint]) -> str:
    all_steps = sorted({point.steps for point in points})
    return f"S = {', '.join(map(str, all_steps))}"


def _no_images(sampling: Sampling) -> Tensor:
    return torch.empty(0, *sampling.shape, dtype=torch.uint8)
