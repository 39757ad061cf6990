"""The evaluation grid: sample every (τ, S, η), extract features, measure. Images never touch the disk on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from ddim.callbacks.generation import Generation, Sampling, generate
from ddim.callbacks.grid_dashboard import caption, show_grid, show_result
from ddim.callbacks.measure import Measure, features_name
from ddim.callbacks.progress import GridProgress
from ddim.callbacks.resumption import Finished
from ddim.callbacks.study import Study
from ddim.figures import image_grid, plot_distance, plot_speed, sample_sheet
from ddim.files import save_picture
from ddim.grid import GridPoint
from ddim.lit_module import DenoisingModule
from ddim.metrics import MEASURES, compute_metrics
from ddim.records import COLUMNS, point_key
from ddim.results import (
    CSV_NAME,
    GridResult,
    eta_label,
    render_table,
    write_results,
)
from ddim.show import show_image
from ddim.terminal import Terminal

# Images per cell of the sample sheet.
SHEET_IMAGES = 16


class EvaluationGrid(Study):
    """Measures every grid point at the end of `trainer.test` and writes the results.

    After each point `results.csv` and `results.json` are rewritten whole, so that what is finished survives a kill;
    at the end come the plots and the sample sheet. Everything lands in `directory` and in the loggers. With a
    `resumption`, points that are finished already are taken from there, and long ones go on where they were.

    Args (besides those of `Study`):
        measure: features, reference and metrics.
        num_samples: exactly this many images enter every metric.
        keep_images: shown per point.
    """

    name = "grid"

    def __init__(
        self,
        points: Sequence[GridPoint],
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        measure: Measure,
        num_samples: int,
        keep_images: int = 64,
        **more: Any,
    ) -> None:
        super().__init__(points, sampling, directory, identity, **more)
        self.measure = measure
        self.num_samples = num_samples
        self.keep_images = keep_images
        self.found: dict[GridPoint, GridResult] = {}

    @property
    def results(self) -> list[GridResult]:
        """The rows so far, in the order of the grid."""
        return [self.found[point] for point in self.points if point in self.found]

    def plan(self) -> str:
        return f"{len(self.points)} grid points of {self.num_samples:,} images"

    def records(self) -> list[dict[str, Any]]:
        return [result.as_record() for result in self.results]

    def report(self, terminal: Terminal) -> None:
        render_table(self.results, self.measure.floor, terminal)
        terminal.say(f"\nTable     {self.directory / 'results.csv'}")

    def run(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        self.measure.extractor.to(module.device)
        pictures = self._recall_all(trainer, module)
        with GridProgress(
            [point.nfe for point in self.points], enabled=self.show_progress and trainer.is_global_zero
        ) as progress:
            for point in self.points:
                if point in self.found:
                    progress.finish_point(f"{caption(self.found[point])}, finished before")
                    continue
                self.found[point], pictures[point] = self._measure_point(trainer, module, point, progress)
                if trainer.is_global_zero:
                    self._save_point(trainer, module, point, pictures[point])
                progress.finish_point(caption(self.found[point]))
        if trainer.is_global_zero:
            self._save_grid(trainer, pictures)

    def _row_depends_on(self, point: GridPoint, trainer: pl.Trainer, module: DenoisingModule) -> dict[str, Any]:
        return {
            **self.depends_on(point, trainer, module),
            "num_samples": self.num_samples,
            "extractor": self.measure.extractor.provenance,
            "reference": self.measure.reference.digest,
            "reference_split": self.measure.split,
            "metrics": sorted(self.measure.metrics),
            **{f"{name}_version": own.version for name in self.measure.metrics if (own := MEASURES[name]) is not None},
        }

    def _recall_all(self, trainer: pl.Trainer, module: DenoisingModule) -> dict[GridPoint, Tensor]:
        """Take the rows and the pictures of finished points from an earlier attempt."""
        wanted = {point: self._row_depends_on(point, trainer, module) for point in self.points}
        finished = self.recall(wanted, trainer)
        for point, known in finished.items():
            # Names may have changed where the things have not.
            self.found[point] = GridResult(**{**known.row, **self.identity})
        if trainer.is_global_zero and (finished or (self.directory / CSV_NAME).is_file()):
            # Rows of other settings leave the table now, not when the first new point is finished.
            self._write()
            for point, known in finished.items():
                show_result(trainer, self.found[point], self._draw(point, known.images))
                self._forget(point, trainer, module)
        return {point: known.images for point, known in finished.items()}

    def _measure_point(
        self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, progress: GridProgress
    ) -> tuple[GridResult, Tensor]:
        progress.start_point(f"eta {point.eta:g} S {point.steps}", self.num_samples)
        generation = generate(
            trainer,
            module,
            self.measure.extractor,
            point,
            self.sampling,
            num_samples=self.num_samples,
            keep_images=self.keep_images,
            advance=progress.advance,
            partial=self.partial(point, trainer, module, self.measure.extractor),
            keep_features=self.measure.needs_features,
        )
        result = grid_result(
            self.columns(point, trainer, module), generation, self.measure, module.device, num_samples=self.num_samples
        )
        return result, generation.first_images

    def _save_point(self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, images: Tensor) -> None:
        result = self.found[point]
        show_result(trainer, result, self._draw(point, images))
        if self.resumption is not None:
            what = self._row_depends_on(point, trainer, module)
            self.resumption.save(self.name, what, Finished(result.as_record(), images))
        self._write()
        self._forget(point, trainer, module)

    def _forget(self, point: GridPoint, trainer: pl.Trainer, module: DenoisingModule) -> None:
        partial = self.partial(point, trainer, module, self.measure.extractor)
        if partial is not None:
            partial.remove()

    def _write(self) -> None:
        write_results(self.directory, self.results, self.measure.floor, self.context)

    def _draw(self, point: GridPoint, images: Tensor) -> Image.Image:
        folder = self.directory / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        picture = image_grid(images, columns_of(images))
        save_picture(picture, folder / f"{point_key(point).replace('/', '-')}.png")
        return picture

    def _save_grid(self, trainer: pl.Trainer, pictures: Mapping[GridPoint, Tensor]) -> None:
        # Points of an earlier attempt may have kept fewer pictures than are asked for now.
        count = min(SHEET_IMAGES, *(len(images) for images in pictures.values()))
        # By spacing: rows of a sheet are η and columns S, so two spacings would fight for one cell.
        sheets: dict[str, dict[tuple[str, int], Tensor]] = {}
        for point in self.points:
            sheets.setdefault(point.tau, {})[eta_label(point), point.steps] = pictures[point][:count]
        for tau, images in sheets.items():
            name = "samples" if len(sheets) == 1 else f"samples-{tau}"
            sheet = sample_sheet(images)
            save_picture(sheet, self.directory / f"{name}.png")
            show_image(trainer, f"grid/{name}", sheet)
            self.pictures.append(self.directory / f"{name}.png")
        plot_distance(self.results, self.measure.floor, self.directory / "distance.png")
        plot_speed(self.results, self.directory / "speed.png")
        for name in ("distance", "speed"):
            with Image.open(self.directory / f"{name}.png") as plot:
                show_image(trainer, f"grid/{name}", plot)
            self.pictures.append(self.directory / f"{name}.png")
        kept = {point_key(point): image_grid(images, columns_of(images)) for point, images in pictures.items()}
        show_grid(trainer, self.results, kept, self.measure.floor)


def columns_of(images: Tensor) -> int:
    """Columns of a nearly square picture."""
    return max(1, round(len(images) ** 0.5))


def grid_result(
    columns: Mapping[str, Any],
    generation: Generation,
    measure: Measure,
    device: torch.device,
    *,
    num_samples: int,
) -> GridResult:
    """The row of a grid point: its metrics and everything that says what they may be compared with.

    columns: those of `Study.columns`.
    """
    if len(generation.measured) != num_samples:
        raise RuntimeError(f"{len(generation.measured)} images were generated where {num_samples} were asked for")
    metrics = compute_metrics(
        generation.measured, measure.reference, measure.metrics, seed=columns["seed"], device=device
    )
    provenance = measure.reference.provenance
    own = tuple((name, value) for name, value in metrics.items() if name not in COLUMNS)
    known = {name: value for name, value in metrics.items() if name in COLUMNS}
    row: dict[str, Any] = {"frechet_distance": None, **columns, **known}
    return GridResult(
        **row,
        other_metrics=own or None,
        num_samples=num_samples,
        features=features_name(measure.extractor),
        resize=measure.extractor.provenance.get("resize"),
        reference=measure.reference.digest,
        reference_source=str(provenance.get("published") or "dataset"),
        reference_images=measure.reference.num_images,
        reference_split=measure.split,
        preprocessing=measure.reference.preprocessing,
        seconds=generation.seconds,
        images_per_second=num_samples / generation.seconds,
    )
