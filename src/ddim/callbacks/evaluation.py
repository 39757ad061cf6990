"""The evaluation grid: sample every (τ, S, η), extract features, measure. Images never touch the disk on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor

from ddim.callbacks.periodic import EveryNValidations
from ddim.callbacks.progress import GridProgress
from ddim.diffusion import NoiseSchedule, NoiseSource
from ddim.figures import image_grid, plot_distance, plot_speed, sample_sheet
from ddim.grid import GridPoint
from ddim.lit_module import DenoisingModule
from ddim.metrics import FeatureExtractor, Features, ReferenceStatistics, compute_metrics
from ddim.results import COLUMNS, Floor, GridResult, distance_name, eta_label, significant, write_results
from ddim.show import show_image, show_summary, show_table

# The update rule of all rows; eta and variance say which member of the family it is.
SAMPLER = "ddim"
# Images per cell of the sample sheet.
SHEET_IMAGES = 16


@dataclass(frozen=True)
class Measure:
    """What images are measured with and against. Kept outside the LightningModule, whose weights are averaged."""

    extractor: FeatureExtractor
    reference: ReferenceStatistics
    metrics: tuple[str, ...]
    floor: Floor | None = None


@dataclass(frozen=True)
class Generation:
    """The images of one grid point, as far as they are kept."""

    features: Features
    first_images: Tensor
    seconds: float


@contextmanager
def sampling_context(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """The precision the trainer is set to, in evaluation mode, without gradients."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            yield
    finally:
        module.train(was_training)


def generate(
    trainer: pl.Trainer,
    module: DenoisingModule,
    extractor: FeatureExtractor,
    point: GridPoint,
    noise: NoiseSource,
    *,
    shape: tuple[int, int, int],
    num_samples: int,
    batch_size: int,
    keep_images: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Generation:
    """Samples 0 ... num_samples - 1 of a grid point, exactly those, split over the processes by their number.

    Returns on every process: the features in the order of the samples, the first `keep_images` images (uint8), and
    the seconds spent sampling (feature extraction apart) by the slowest process.
    """
    mine = torch.tensor(range(trainer.global_rank, num_samples, trainer.world_size), dtype=torch.long)
    seconds, parts, kept = 0.0, [], []
    for indices in mine.split(batch_size) if len(mine) else ():
        _synchronise(module.device)
        began = time.perf_counter()
        with sampling_context(trainer, module):
            images = module.sample_images(point, indices, shape, noise)
        _synchronise(module.device)
        seconds += time.perf_counter() - began
        parts.append(extractor(images).cpu())
        kept.append(images[indices < keep_images].cpu())
        advance(len(indices) * trainer.world_size)
    local = (Features.cat(parts), torch.cat(kept), seconds) if parts else None
    return _gather(local, trainer.world_size)


def _gather(local: tuple[Features, Tensor, float] | None, world_size: int) -> Generation:
    """Rank r holds samples r, r + W, ...: interleave them again."""
    everyone: list[Any] = [local]
    if world_size > 1:
        everyone = [None] * world_size
        torch.distributed.all_gather_object(everyone, local)
    present = [part for part in everyone if part is not None]
    features = Features.cat([part[0] for part in present])
    order = _interleaving([len(part[0]) for part in present])
    images = torch.cat([part[1] for part in present])
    image_order = _interleaving([len(part[1]) for part in present])
    logits = None if features.logits is None else features.logits[order]
    return Generation(Features(features.features[order], logits), images[image_order], max(part[2] for part in present))


def _interleaving(lengths: Sequence[int]) -> Tensor:
    """Where sample i stands in the concatenation of per-rank parts of these lengths."""
    offsets = [sum(lengths[:rank]) for rank in range(len(lengths))]
    total = sum(lengths)
    return torch.tensor([offsets[i % len(lengths)] + i // len(lengths) for i in range(total)], dtype=torch.long)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class EvaluationGrid(pl.Callback):
    """Measures every grid point at the end of `trainer.test` and writes the results.

    After each point `results.csv` and `results.json` are rewritten whole, so that what is finished survives a kill;
    at the end come the plots and the sample sheet. Everything lands in `directory` and in the loggers.

    Args:
        points: the grid.
        measure: features, reference and metrics.
        noise: addresses the noise; sample i starts from the same x_T at every point.
        shape: (C, H, W) of an image.
        num_samples: exactly this many images enter every metric.
        batch_size: images sampled at once; results do not depend on it.
        identity: what the rows say about where they come from: dataset, checkpoint, weights, seed.
        keep_images: shown per point.
        show_progress: bars, or a line per point.
        context: written into results.json beside the rows (configuration, versions, hardware).
    """

    def __init__(
        self,
        points: Sequence[GridPoint],
        measure: Measure,
        noise: NoiseSource,
        *,
        shape: tuple[int, int, int],
        num_samples: int,
        batch_size: int,
        directory: Path,
        identity: Mapping[str, Any],
        keep_images: int = 64,
        show_progress: bool = True,
        context: Mapping[str, Any] | None = None,
    ) -> None:
        self.points = list(points)
        self.measure = measure
        self.noise = noise
        self.shape = shape
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.directory = directory
        self.identity = dict(identity)
        self.keep_images = keep_images
        self.show_progress = show_progress
        self.context = dict(context or {})
        self.results: list[GridResult] = []
        self.pictures: list[Path] = []

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DenoisingModule)
        self.measure.extractor.to(pl_module.device)
        # By spacing: rows of a sheet are η and columns S, so two spacings would fight for one cell.
        sheets: dict[str, dict[tuple[str, int], Tensor]] = {}
        with GridProgress(len(self.points), enabled=self.show_progress and trainer.is_global_zero) as progress:
            for point in self.points:
                result, images = self._measure_point(trainer, pl_module, point, progress)
                self.results.append(result)
                sheets.setdefault(point.tau, {})[eta_label(result), point.steps] = images[:SHEET_IMAGES]
                if trainer.is_global_zero:
                    self._save_point(trainer, result, images)
                progress.finish_point(_line(result))
        if trainer.is_global_zero:
            self._save_grid(trainer, sheets)

    def _measure_point(
        self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, progress: GridProgress
    ) -> tuple[GridResult, Tensor]:
        progress.start_point(f"eta {point.eta:g} S {point.steps}", self.num_samples)
        generation = generate(
            trainer,
            module,
            self.measure.extractor,
            point,
            self.noise,
            shape=self.shape,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            keep_images=self.keep_images,
            advance=progress.advance,
        )
        result = grid_result(
            point, generation, self.measure, trainer, module, num_samples=self.num_samples, identity=self.identity
        )
        return result, generation.first_images

    def _save_point(self, trainer: pl.Trainer, result: GridResult, images: Tensor) -> None:
        write_results(self.directory, self.results, self.measure.floor, self.context)
        folder = self.directory / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        picture = image_grid(images, max(1, round(len(images) ** 0.5)))
        picture.save(folder / f"{point_key(result).replace('/', '-')}.png")
        show_image(trainer, f"samples/{point_key(result)}", picture, _line(result))

    def _save_grid(self, trainer: pl.Trainer, sheets: Mapping[str, Mapping[tuple[str, int], Tensor]]) -> None:
        for tau, images in sheets.items():
            name = "samples" if len(sheets) == 1 else f"samples-{tau}"
            sheet = sample_sheet(images)
            sheet.save(self.directory / f"{name}.png")
            show_image(trainer, f"grid/{name}", sheet)
            self.pictures.append(self.directory / f"{name}.png")
        plot_distance(self.results, self.measure.floor, self.directory / "distance.png")
        plot_speed(self.results, self.directory / "speed.png")
        for name in ("distance", "speed"):
            with Image.open(self.directory / f"{name}.png") as plot:
                show_image(trainer, f"grid/{name}", plot)
            self.pictures.append(self.directory / f"{name}.png")
        rows = [[_plain(getattr(row, column)) for column in COLUMNS] for row in self.results]
        show_table(trainer, "grid/results", COLUMNS, rows)
        show_summary(trainer, summary(self.results, self.measure.floor))


def grid_result(
    point: GridPoint,
    generation: Generation,
    measure: Measure,
    trainer: pl.Trainer,
    module: DenoisingModule,
    *,
    num_samples: int,
    identity: Mapping[str, Any],
) -> GridResult:
    """The row of a grid point: its metrics and everything that says what they may be compared with."""
    if len(generation.features) != num_samples:
        raise RuntimeError(f"{len(generation.features)} images were generated where {num_samples} were asked for")
    metrics = compute_metrics(
        generation.features, measure.reference, measure.metrics, seed=identity["seed"], device=module.device
    )
    provenance = measure.reference.provenance
    row: dict[str, Any] = {"frechet_distance": None, **identity, **metrics}
    return GridResult(
        **row,
        sampler=SAMPLER,
        eta=point.eta,
        variance=point.variance,
        tau=point.tau,
        steps=point.steps,
        nfe=point.nfe,
        timesteps=point.timesteps,
        clip_denoised=point.clip_denoised,
        schedule=describe_schedule(module.schedule),
        num_samples=num_samples,
        compute_precision=str(trainer.precision),
        device=_device_name(module.device),
        features=features_name(measure.extractor),
        resize=measure.extractor.provenance.get("resize"),
        reference=measure.reference.digest,
        reference_source=str(provenance.get("published") or "dataset"),
        reference_images=measure.reference.num_images,
        seconds=generation.seconds,
        images_per_second=num_samples / generation.seconds,
    )


def describe_schedule(schedule: NoiseSchedule) -> str:
    """`linear(num_timesteps=1000, ...)`: what a distance depends on besides the sampler."""
    return f"{schedule.name}({', '.join(f'{key}={value}' for key, value in schedule.params.items())})"


class TrainingEvaluation(EveryNValidations):
    """A small grid every so many validations, with the weights that were validated (EMA, if on).

    Logs `val/frechet_distance` (the first point) and `val/<metric>/<sampler>/steps...` for all.
    """

    def __init__(
        self,
        points: Sequence[GridPoint],
        measure: Measure,
        noise: NoiseSource,
        *,
        shape: tuple[int, int, int],
        num_samples: int,
        batch_size: int,
        every_n_validations: int,
        seed: int,
    ) -> None:
        super().__init__(every_n_validations)
        self.points = list(points)
        self.measure = measure
        self.noise = noise
        self.shape = shape
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed

    def on_due_validation(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        self.measure.extractor.to(module.device)
        for number, point in enumerate(self.points):
            generation = generate(
                trainer,
                module,
                self.measure.extractor,
                point,
                self.noise,
                shape=self.shape,
                num_samples=self.num_samples,
                batch_size=self.batch_size,
                keep_images=0,
            )
            metrics = compute_metrics(
                generation.features, self.measure.reference, self.measure.metrics, self.seed, module.device
            )
            for name, value in metrics.items():
                module.log(f"val/{name}/{point_key(point)}", value)
                if number == 0:
                    module.log(f"val/{name}", value)


def point_key(point: GridPoint | GridResult) -> str:
    """`eta0.000/linear/steps0010`: sorts by η, then by spacing, then by S."""
    sampler = f"eta{point.eta:.3f}" if point.variance == "eta" else point.variance
    return f"{sampler}/{point.tau}/steps{point.steps:04d}"


def summary(rows: Sequence[GridResult], floor: Floor | None) -> dict[str, float]:
    """Single numbers whose keys sort well: `frechet_distance/eta0.000/linear/steps0010`."""
    names = ("frechet_distance", "kid_mean", "precision", "recall", "inception_score_mean", "images_per_second")
    values = {
        f"{name}/{point_key(row)}": getattr(row, name)
        for name in names
        for row in rows
        if getattr(row, name) is not None
    }
    if floor is not None:
        values |= {f"floor/{name}": value for name, value in floor.metrics.items()}
    return values


def _line(row: GridResult) -> str:
    distance = (
        "" if row.frechet_distance is None else f" {distance_name(row.features)} {significant(row.frechet_distance)},"
    )
    return (
        f"eta {row.eta:g}{'' if row.variance == 'eta' else f' {row.variance}'}, S {row.steps}:{distance} "
        f"{row.num_samples} images in {row.seconds:.1f} s"
    )


def features_name(extractor: FeatureExtractor) -> str:
    """Only the published Inception weights make a FID; a distance on others must not carry its name."""
    if extractor.provenance.get("canonical_weights", True):
        return extractor.name
    return f"{extractor.name} (other weights {extractor.provenance['weights_sha256'][:8]})"


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
