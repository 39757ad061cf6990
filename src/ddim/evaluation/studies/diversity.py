"""Diversity: is the deterministic sampler less diverse, and does it copy? Samples against the images it learnt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import at_least
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.sampling import generate, in_batches
from ddim.evaluation.study import (
    FEATURES,
    HELD_OUT,
    REFERENCE,
    Bar,
    Material,
    OnePointSettings,
    Progress,
    Study,
    partial_of,
    suffix,
)
from ddim.evaluation.subject import Subject
from ddim.findings.labels import eta_label, point_key
from ddim.findings.parts.diversity import ORDINALS, picture, split_name
from ddim.findings.telling import Findings
from ddim.metrics import Features, ReferenceStatistics, compute_metrics, nearest_neighbours
from ddim.metrics.copying import COPY_RATE, copy_threshold, spread, summarise
from ddim.metrics.measure import Measure, features_name


@dataclass
class DiversityConfig(OnePointSettings):
    """Does η = 0 copy? Precision, recall and the nearest training images of `evaluation.num_samples` samples.

    Attributes:
        steps: S; null takes the largest of `sampler.steps`.
        eta (as sampler.eta): the values of η that are compared.
        shown: samples in the picture, each above its nearest training images.
    """

    eta: Any = field(default_factory=lambda: [0.0, 1.0])
    shown: int = 8

    def check(self, key: str) -> None:
        super().check(key)
        at_least(f"{key}.shown", self.shown, 1)


@dataclass(frozen=True)
class Nearest:
    """The samples of a point that are nearest to a reference image.

    samples: (n,) their numbers. distances: (n, k) to their k nearest reference images, whose positions in their split
    are `neighbours` (n, k). images: (n, C, H, W) of the samples.
    """

    samples: Tensor
    distances: Tensor
    neighbours: Tensor
    images: Tensor

    def listed(self) -> dict[str, Any]:
        """As a file holds it."""
        return {name: getattr(self, name).tolist() for name in ("samples", "distances", "neighbours")}


class Diversity(Study):
    """Precision, recall, spread and nearest real images of samples, for each eta, beside those of held-out images.

    Distances are Euclidean, in the measure's features, to the nearest image of the reference split, which is the
    training images unless `evaluation.reference_split` says otherwise. The held-out images are the other split: what
    they have is what samples that are as good as real and copy nothing would have.

    Args:
        points: what is sampled.
        measure: features and reference, with the reference's own features.
        held_out: the same features of the other split.
        reference_images: streams the reference split's images, uint8 (B, C, H, W) batches in their order.
        num_samples: exactly this many samples are measured.
        shown: samples in the picture, those nearest to a reference image.
    """

    name = "diversity"
    Settings = DiversityConfig
    needs: ClassVar[frozenset[str]] = frozenset({FEATURES, REFERENCE, HELD_OUT})

    def __init__(
        self,
        points: Sequence[GridPoint],
        *,
        measure: Measure,
        held_out: ReferenceStatistics,
        reference_images: Callable[[], Iterable[Tensor]],
        num_samples: int,
        shown: int,
    ) -> None:
        self.points = list(points)
        if measure.reference.features is None or held_out.features is None:
            raise ValueError("diversity needs the features of the reference and of the held-out images")
        self.measure = measure
        self.reference, self.held_out = measure.reference.features, held_out.features
        self.held_out_digest = held_out.digest
        self.reference_images = reference_images
        self.num_samples = num_samples
        self.shown = min(shown, num_samples)

    @classmethod
    def grid(cls, settings: DiversityConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        return settings.at(settings.eta, sampler, schedule, cls.name)

    @classmethod
    def of(cls, settings: DiversityConfig, points: Sequence[GridPoint], material: Material) -> Diversity:
        assert material.measure is not None and material.measure.split is not None and material.held_out is not None
        return cls(
            points,
            measure=material.measure,
            held_out=material.held_out,
            reference_images=partial(material.images.images, material.measure.split, batch_size=500),
            num_samples=material.num_samples,
            shown=settings.shown,
        )

    def plan(self) -> str:
        return f"diversity of {self.num_samples:,} samples at {len(self.points)} points"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        self.measure.extractor.to(subject.device)
        held_out_distances = self._neighbours(self.held_out, subject)[0][:, 0]
        threshold = copy_threshold(held_out_distances)
        real = self._numbers(self.held_out, held_out_distances, threshold, subject)
        found: dict[GridPoint, Nearest] = {}
        rows = []
        with progress([point.nfe for point in self.points]) as bar:
            for point in self.points:
                bar.start_point(f"diversity eta {eta_label(point)} S {point.steps}", self.num_samples)
                features = self._features(point, subject, kept, bar)
                distances, neighbours = self._neighbours(features, subject)
                numbers = self._numbers(features, distances[:, 0], threshold, subject)
                rows.append({**subject.columns(point), **self._provenance(), **numbers})
                nearest = distances[:, 0].sort(stable=True).indices[: self.shown]
                found[point] = Nearest(
                    nearest,
                    distances[nearest],
                    self._positions()[neighbours[nearest]],
                    _again(subject, point, nearest),
                )
                bar.finish_point(
                    f"diversity, eta {eta_label(point)}, S {point.steps}: copy ratio {numbers['copy_ratio']:.3f}"
                )
        listed = {point_key(point): what.listed() for point, what in found.items()}
        say.beside(held_out=real, nearest_samples=listed, copy_rate=COPY_RATE)
        say.row(*rows)
        if subject.first:
            self._show(found, str(subject.identity.get("dataset", "samples")), say)
            say.end()

    def _features(self, point: GridPoint, subject: Subject, kept: Kept, bar: Bar) -> Tensor:
        generation = generate(
            subject,
            self.measure.extractor,
            point,
            num_samples=self.num_samples,
            keep_images=0,
            advance=bar.advance,
            partial=partial_of(point, subject, self.measure.extractor, kept),
        )
        return generation.features.features

    def _neighbours(self, features: Tensor, subject: Subject) -> tuple[Tensor, Tensor]:
        count = min(len(ORDINALS), len(self.reference))
        return nearest_neighbours(features, self.reference, count, device=subject.device)

    def _numbers(self, features: Tensor, nearest: Tensor, threshold: float, subject: Subject) -> dict[str, Any]:
        metrics = compute_metrics(
            Features(features), self.measure.reference, ("precision_recall",), device=subject.device
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

    def _show(self, found: Mapping[GridPoint, Nearest], data: str, say: Findings) -> None:
        real = collect(self.reference_images(), torch.cat([what.neighbours.flatten() for what in found.values()]))
        split = split_name(self.measure.split)
        for point, what in found.items():
            neighbours = {
                ordinal: torch.stack([real[position] for position in column.tolist()])
                for ordinal, column in zip(ORDINALS, what.neighbours.T, strict=False)
            }
            distances = what.distances[:, 0].tolist()
            where = suffix(point, self.points)
            say.picture(*picture(point, what.images, neighbours, distances, split, data, where))


def _again(subject: Subject, point: GridPoint, samples: Tensor) -> Tensor:
    """Images of these sample numbers: made anew, as of all samples only the features are kept."""
    drawn = in_batches(subject.sampling, samples, lambda indices: subject.draw(point, indices).cpu())
    return torch.cat(list(drawn))


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
