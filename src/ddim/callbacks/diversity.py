"""Diversity: is the deterministic sampler less diverse, and does it copy? Samples against the images it learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ddim.callbacks.copying import COPY_RATE, copy_threshold, spread, summarise
from ddim.callbacks.generation import Sampling, generate, in_batches, sampling_context
from ddim.callbacks.measure import Measure, features_name
from ddim.callbacks.progress import GridProgress
from ddim.callbacks.study import Study
from ddim.grid import GridPoint
from ddim.labelled_rows import labelled_rows
from ddim.lit_module import DenoisingModule
from ddim.metrics import Features, ReferenceStatistics, compute_metrics, nearest_neighbours
from ddim.records import eta_label, eta_title, point_key, significant
from ddim.rows import write_rows
from ddim.show import show_summary, show_table
from ddim.terminal import Terminal

SHOWN_NEIGHBOURS = 3


class Diversity(Study):
    """Precision, recall, spread and nearest real images of samples, for each eta, beside those of held-out images.

    Distances are Euclidean, in the measure's features, to the nearest image of the reference split, which is the
    training images unless `evaluation.reference_split` says otherwise. The held-out images are the other split: what
    they have is what samples that are as good as real and copy nothing would have.

    Args (besides those of `Study`):
        measure: features and reference, with the reference's own features.
        held_out: the same features of the other split.
        reference_images: streams the reference split's images, uint8 (B, C, H, W) batches in their order.
        num_samples: exactly this many samples are measured.
        shown: samples in the picture, those nearest to a reference image.
    """

    name = "diversity"

    def __init__(
        self,
        points: Sequence[GridPoint],
        sampling: Sampling,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        measure: Measure,
        held_out: ReferenceStatistics,
        reference_images: Callable[[], Iterable[Tensor]],
        num_samples: int,
        shown: int,
        **more: Any,
    ) -> None:
        super().__init__(points, sampling, directory, identity, **more)
        if measure.reference.features is None or held_out.features is None:
            raise ValueError("diversity needs the features of the reference and of the held-out images")
        self.measure = measure
        self.reference, self.held_out = measure.reference.features, held_out.features
        self.held_out_digest = held_out.digest
        # How people name it.
        self.split = "training" if measure.split == "train" else str(measure.split)
        self.reference_images = reference_images
        self.num_samples = num_samples
        self.shown = min(shown, num_samples)
        self.rows: list[dict[str, Any]] = []
        self.real: dict[str, Any] = {}

    def plan(self) -> str:
        return f"diversity of {self.num_samples:,} samples at {len(self.points)} points"

    def records(self) -> list[dict[str, Any]]:
        return self.rows

    def report(self, terminal: Terminal) -> None:
        several = len({(point.tau, point.steps) for point in self.points}) > 1
        headers = ["", "N", "precision", "recall", "spread", "nearest: median", "1 %", "smallest", "copy ratio"]
        names = [f"{_eta_title(point)}{f', {point.tau} S {point.steps}' if several else ''}" for point in self.points]
        held_out = f"real {'test' if self.measure.split == 'train' else 'training'}"
        table = [
            [
                name,
                f"{row['num_samples']:,}",
                *(significant(row.get(key), 3) for key in ("precision", "recall", "relative_spread")),
                *(significant(row[f"nearest_{key}"], 3) for key in ("median", "percentile_1", "smallest")),
                f"{row['copy_ratio']:.3f}",
            ]
            for name, row in zip([*names, held_out], [*self.rows, self.real], strict=True)
        ]
        steps = "" if several else f", S {self.points[0].steps}"
        against = f"{len(self.reference):,} {self.split} images"
        terminal.say(f"\nDiversity{steps}: {features_name(self.measure.extractor)} features against {against}")
        terminal.table(headers, table)
        terminal.say(
            f"copy ratio: the share that is no farther from a {self.split} image than the nearest "
            f"{COPY_RATE:.0%} of {held_out} images; {COPY_RATE} where nothing is copied"
        )
        terminal.say(f"\nTable     {self.directory / 'diversity.csv'}")

    def run(self, trainer: pl.Trainer, module: DenoisingModule) -> None:
        self.measure.extractor.to(module.device)
        held_out_distances = self._neighbours(self.held_out, module)[0][:, 0]
        threshold = copy_threshold(held_out_distances)
        self.real = self._numbers(self.held_out, held_out_distances, threshold, module)
        found: dict[GridPoint, dict[str, Tensor]] = {}
        with GridProgress(
            [point.nfe for point in self.points], enabled=self.show_progress and trainer.is_global_zero
        ) as progress:
            for point in self.points:
                progress.start_point(f"diversity eta {eta_label(point)} S {point.steps}", self.num_samples)
                features = generate(
                    trainer,
                    module,
                    self.measure.extractor,
                    point,
                    self.sampling,
                    num_samples=self.num_samples,
                    keep_images=0,
                    advance=progress.advance,
                    partial=self.partial(point, trainer, module, self.measure.extractor),
                ).features.features
                distances, neighbours = self._neighbours(features, module)
                numbers = self._numbers(features, distances[:, 0], threshold, module)
                self.rows.append({**self.columns(point, trainer, module), **self._provenance(), **numbers})
                nearest = distances[:, 0].sort(stable=True).indices[: self.shown]
                found[point] = {
                    "samples": nearest,
                    "distances": distances[nearest],
                    "neighbours": self._positions()[neighbours[nearest]],
                    "images": self._again(trainer, module, point, nearest),
                }
                progress.finish_point(
                    f"diversity, eta {eta_label(point)}, S {point.steps}: copy ratio {numbers['copy_ratio']:.3f}"
                )
        if trainer.is_global_zero:
            self._save(trainer, found)

    def _neighbours(self, features: Tensor, module: DenoisingModule) -> tuple[Tensor, Tensor]:
        count = min(SHOWN_NEIGHBOURS, len(self.reference))
        return nearest_neighbours(features, self.reference, count, device=module.device)

    def _numbers(self, features: Tensor, nearest: Tensor, threshold: float, module: DenoisingModule) -> dict[str, Any]:
        metrics = compute_metrics(
            Features(features), self.measure.reference, ("precision_recall",), device=module.device
        )
        return {
            "num_samples": len(features),
            "precision": metrics.get("precision"),
            "recall": metrics.get("recall"),
            "relative_spread": spread(features) / spread(self.reference),
            **summarise(nearest, threshold),
        }

    def _provenance(self) -> dict[str, Any]:
        return {
            "features": features_name(self.measure.extractor),
            "resize": self.measure.extractor.provenance.get("resize"),
            "reference": self.measure.reference.digest,
            "reference_split": self.measure.split,
            "preprocessing": self.measure.reference.preprocessing,
            # What neighbours are looked for among: of very large splits only a random part is kept.
            "reference_images": len(self.reference),
            "held_out": self.held_out_digest,
        }

    def _positions(self) -> Tensor:
        """Which image of its split each of the reference's features is of."""
        indices = self.measure.reference.indices
        return torch.arange(len(self.reference)) if indices is None else indices

    def _again(self, trainer: pl.Trainer, module: DenoisingModule, point: GridPoint, samples: Tensor) -> Tensor:
        """Images of these sample numbers: made anew, as of all samples only the features are kept."""

        def work(indices: Tensor) -> Tensor:
            with sampling_context(trainer, module):
                return module.sample_images(point, indices, self.sampling.shape, self.sampling.noise).cpu()

        return torch.cat(list(in_batches(self.sampling, samples, work)))

    def _save(self, trainer: pl.Trainer, found: Mapping[GridPoint, Mapping[str, Tensor]]) -> None:
        real = collect(self.reference_images(), torch.cat([what["neighbours"].flatten() for what in found.values()]))
        for point, what in found.items():
            self._draw(trainer, point, what, real)
        listed = {
            point_key(point): {name: what[name].tolist() for name in ("samples", "distances", "neighbours")}
            for point, what in found.items()
        }
        write_rows(
            self.directory, self.name, self.rows, {**self.context, "held_out": self.real, "nearest_samples": listed}
        )
        columns = [key for key in self.rows[0] if key != "timesteps"]
        show_table(trainer, f"{self.name}/results", columns, [[row[key] for key in columns] for row in self.rows])
        names = ("precision", "recall", "relative_spread", "nearest_median", "copy_ratio")
        keyed = [(point_key(point), row) for point, row in zip(self.points, self.rows, strict=True)]
        keyed.append(("held_out", self.real))
        values = {f"{self.name}/{name}/{key}": row[name] for key, row in keyed for name in names}
        show_summary(trainer, {key: value for key, value in values.items() if value is not None})

    def _draw(
        self, trainer: pl.Trainer, point: GridPoint, what: Mapping[str, Tensor], real: Mapping[int, Tensor]
    ) -> None:
        ordinals = ("nearest", "2nd", "3rd")[: what["neighbours"].shape[1]]
        rows = [
            (f"{self.split}, {ordinal}", column) for ordinal, column in zip(ordinals, what["neighbours"].T, strict=True)
        ]
        picture = labelled_rows(
            [
                ("sample", what["images"]),
                *((label, torch.stack([real[position] for position in column.tolist()])) for label, column in rows),
            ],
            f"The samples nearest to a {self.split} image, and their distances from it: "
            f"{self.identity.get('dataset', 'samples')}, {_eta_title(point)}, S = {point.steps}",
            [significant(distance, 3) for distance in what["distances"][:, 0].tolist()],
            breaks=[1],
        )
        name = f"neighbours-{point_key(point).split('/')[0]}{self.suffix(point)}"
        self.show(trainer, name, picture, f"{_eta_title(point)}, S {point.steps}")


def collect(batches: Iterable[Tensor], positions: Tensor) -> dict[int, Tensor]:
    """The images (C, H, W) at these positions of a stream of batches, which is read no further than needed."""
    wanted = sorted(set(positions.tolist()))
    found: dict[int, Tensor] = {}
    start = 0
    for batch in batches:
        for position in wanted[len(found) :]:
            if position >= start + len(batch):
                break
            found[position] = batch[position - start].clone()
        start += len(batch)
        if len(found) == len(wanted):
            return found
    raise ValueError(f"image {wanted[len(found)]} was asked for, but the stream has only {start}")


def _eta_title(point: GridPoint) -> str:
    return eta_title(eta_label(point))
