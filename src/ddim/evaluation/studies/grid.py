"""The evaluation grid: sample every (τ, S, η), extract features, measure. Images never touch the disk on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddim.data import IMAGES, ImageDataModule
from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.labelled import labelled_columns, reference_labels
from ddim.evaluation.repetition import compared, repeated
from ddim.evaluation.sampling import Generation, generate
from ddim.evaluation.study import FEATURES, REFERENCE, Bar, Material, Progress, Study, partial_of, recall
from ddim.evaluation.subject import Subject
from ddim.findings.columns import distance_of
from ddim.findings.labels import sampler_parts
from ddim.findings.parts.grid import against, caption, pictures
from ddim.findings.rows import COLUMNS, KNOWN_LATER, Floor, GridResult
from ddim.findings.telling import Findings
from ddim.metrics import MEASURES, FeatureExtractor, measure_metrics
from ddim.metrics.measure import Measure, features_name
from ddim.runs.processes import place

log = logging.getLogger(__name__)


@dataclass
class GridSettings:
    """The grid has none of its own: `sampler` says what is sampled, `evaluation` how it is measured."""

    def check(self, key: str) -> None:
        """Nothing can be wrong."""


class EvaluationGrid(Study):
    """Measures every grid point and says its row, its first images, and at the end all of them side by side.

    What an earlier attempt has finished is taken from there, and long points go on where they were.

    Args:
        points: what is sampled.
        measure: features, reference and metrics.
        num_samples: exactly this many images enter every metric.
        keep_images: shown per point.
        seeds: of the noise; with several the row of a point has the means over them, and their deviation.
        uncertainty: whether standard deviations are measured.
        real: held-out samples (N, ...) to show beside those of data that are no images.
        names: of their columns.
        reference_labels: (M,) of the reference's features; None where they have none.
    """

    name = "grid"
    Settings = GridSettings
    needs: ClassVar[frozenset[str]] = frozenset({FEATURES, REFERENCE})

    def __init__(
        self,
        points: Sequence[GridPoint],
        *,
        measure: Measure,
        num_samples: int,
        keep_images: int = 64,
        seeds: Sequence[int] = (),
        uncertainty: bool = True,
        real: Callable[[], Tensor] | None = None,
        names: Sequence[str] = (),
        reference_labels: Tensor | None = None,
    ) -> None:
        self.points = list(points)
        self.real = real
        self.names = list(names)
        self.measure = measure
        self.num_samples = num_samples
        self.keep_images = keep_images
        self.seeds = tuple(seeds)
        self.uncertainty = uncertainty
        self.reference_labels = reference_labels

    @classmethod
    def grid(cls, settings: GridSettings, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        return sampler.points(schedule)

    @classmethod
    def of(cls, settings: GridSettings, points: Sequence[GridPoint], material: Material) -> EvaluationGrid:
        assert material.measure is not None
        measure = material.measure
        warn_of_few_samples("evaluation.num_samples", material.num_samples, measure.extractor, measure.metrics)
        return cls(
            points,
            measure=measure,
            num_samples=material.num_samples,
            keep_images=material.grid_images,
            seeds=material.seeds,
            uncertainty=material.uncertainty,
            **_beside(material.images, material.grid_images),
            reference_labels=reference_labels(material.images, measure),
        )

    def plan(self) -> str:
        seeds = f" with each of {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        return f"{len(self.points)} grid points of {self.num_samples:,} images{seeds}"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        self.measure.extractor.to(subject.device)
        floor = floor_of(self.measure)
        say.beside(floor=floor)
        subjects = [subject.with_seed(seed) for seed in self.seeds] or [subject]
        found = self._recalled(subjects, kept)
        whole = {point: repeated(parts) for point, parts in found.items() if len(parts) == len(subjects)}
        say.begin(self.points, {point: (known.row, known.images) for point, known in whole.items()})
        for point, parts in found.items():
            for number in parts:
                self._forget_partial(point, subjects[number], kept)
        with progress([point.nfe for point in self.points]) as bar:
            for point in self.points:
                before = point in whole
                if not before:
                    parts = found.setdefault(point, {})
                    ahead = [number for number in range(len(subjects)) if number not in parts]
                    name = " ".join([*sampler_parts(point), f"eta {point.eta:g} S {point.steps}"])
                    bar.start_point(name, self.num_samples * len(ahead))
                    for number in ahead:
                        parts[number] = self._measure(point, subjects[number], kept, bar)
                    whole[point] = repeated(parts)
                    say.row(whole[point].row, point=point, images=whole[point].images)
                bar.finish_point(f"{caption(GridResult(**whole[point].row))}{', finished before' if before else ''}")
        say.revise(compared({point: whole[point].row for point in self.points}))
        if subject.first:
            images = {point: whole[point].images for point in self.points}
            for what, picture, text in pictures(say.rows, images, floor, self._shown_classes(subject)):
                say.picture(what, picture, text)
            if self.real is not None:
                for what, picture, text in against(say.rows, images, self.real(), self.names):
                    say.picture(what, picture, text)
            say.end()

    def _shown_classes(self, subject: Subject) -> list[str]:
        """What each of the images that are shown is of; nothing where they have no classes."""
        if not subject.classes or subject.condition_of is None:
            return []
        return [subject.classes[number] for number in subject.condition_of(torch.arange(self.keep_images)).tolist()]

    def _recalled(self, subjects: Sequence[Subject], kept: Kept) -> dict[GridPoint, dict[int, Finished]]:
        """What an earlier attempt has finished of each point, by the number of the seed."""
        found: dict[GridPoint, dict[int, Finished]] = {}
        for number, subject in enumerate(subjects):
            wanted = {point: self._depends_on(point, subject) for point in self.points}
            for point, known in recall(self.name, wanted, subject, kept).items():
                # Names and limits may have changed where the things have not.
                row = GridResult(**{**known.row, **subject.identity, "nfe_limit": point.nfe_limit})
                found.setdefault(point, {})[number] = Finished(row.as_record(), known.images)
        return found

    def _depends_on(self, point: GridPoint, subject: Subject) -> dict[str, Any]:
        return {
            **subject.depends_on(point),
            "num_samples": self.num_samples,
            "extractor": self.measure.extractor.provenance,
            "reference": self.measure.reference.digest,
            "reference_split": self.measure.split,
            "metrics": sorted(self.measure.metrics),
            **{f"{name}_version": own.version for name in self.measure.metrics if (own := MEASURES[name]) is not None},
        }

    def _measure(self, point: GridPoint, subject: Subject, kept: Kept, bar: Bar) -> Finished:
        generation = generate(
            subject,
            self.measure.extractor,
            point,
            num_samples=self.num_samples,
            keep_images=self.keep_images,
            advance=bar.advance,
            partial=partial_of(point, subject, self.measure.extractor, kept),
            keep_features=self.measure.needs_features or bool(subject.classes),
        )
        labelled: dict[str, Any] = {}
        if subject.classes and subject.condition_of is not None:
            labels = subject.condition_of(torch.arange(self.num_samples))
            real = self.reference_labels
            labelled = labelled_columns(generation.features, labels, subject.classes, self.measure, real)
        result = grid_result(
            {**subject.columns(point), **labelled},
            generation,
            self.measure,
            subject.device,
            num_samples=self.num_samples,
            uncertainty=self.uncertainty,
        )
        finished = Finished(result.as_record(), generation.first_images)
        if subject.first:
            kept.save(self.name, self._depends_on(point, subject), finished)
            self._forget_partial(point, subject, kept)
        return finished

    def _forget_partial(self, point: GridPoint, subject: Subject, kept: Kept) -> None:
        partial = partial_of(point, subject, self.measure.extractor, kept) if subject.first else None
        if partial is not None:
            partial.remove()


def _beside(images: ImageDataModule, count: int) -> dict[str, Any]:
    """What is shown beside samples that are no images."""
    if images.space.kind == IMAGES:
        return {}
    names = images.provenance("test").get("columns", ())
    return {"real": lambda: torch.cat(list(images.images("test", 500, count))), "names": names}


def floor_of(measure: Measure) -> Floor | None:
    """The floor as it stands beside rows."""
    if measure.floor is None:
        return None
    name, digest = features_name(measure.extractor), measure.reference.digest
    return Floor(measure.floor.num_images, measure.floor.values, name, digest)


def warn_of_few_samples(key: str, num_samples: int, extractor: FeatureExtractor, metrics: Sequence[str]) -> None:
    """Say, once, what a Fréchet distance of so few samples is worth."""
    if place().first and "frechet_distance" in metrics and num_samples <= extractor.dim:
        log.warning(
            "%s=%d is no more than the %d dimensions of %s: the covariance of the samples is singular and the Fréchet "
            "distance biased upwards; compare it only with distances of as many samples, or take more.",
            key,
            num_samples,
            extractor.dim,
            extractor.name,
        )


def grid_result(
    columns: Mapping[str, Any],
    generation: Generation,
    measure: Measure,
    device: torch.device,
    *,
    num_samples: int,
    uncertainty: bool = True,
) -> GridResult:
    """The row of a grid point: its metrics and everything that says what they may be compared with.

    columns: those of `Subject.columns`.
    """
    if len(generation.measured) != num_samples:
        raise RuntimeError(f"{len(generation.measured)} images were generated where {num_samples} were asked for")
    measured = measure_metrics(
        generation.measured,
        measure.reference,
        measure.metrics,
        seed=columns["seed"],
        device=device,
        uncertainty=uncertainty,
    )
    provenance = measure.reference.provenance
    columns_known = (*COLUMNS, *KNOWN_LATER)
    own = tuple((name, value) for name, value in measured.values.items() if name not in columns_known)
    known: dict[str, Any] = {name: value for name, value in measured.values.items() if name in columns_known}
    jackknife = measured.jackknives.get(distance_of(features_name(measure.extractor)).name)
    if jackknife is not None:
        known["leave_one_out"] = ((jackknife.value, *jackknife.leave_one_out),)
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
