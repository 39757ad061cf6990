"""Restoration: damaged test images, or a picture of one's own, restored by a network that knows nothing of damage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.data import IMAGES, ImageDataModule
from ddim.data.splits import spread
from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.diffusion.restoration.gaussian import GaussianPrior
from ddim.diffusion.restoration.measurement import Measurement, model_sigma
from ddim.diffusion.restoration.methods.table import METHODS
from ddim.diffusion.restoration.operators.base import Operator
from ddim.diffusion.restoration.operators.dense import Denoising
from ddim.diffusion.restoration.trivial import trivial_answers
from ddim.errors import UserError
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.restoration.measures import completed_row, measured_row
from ddim.evaluation.restoration.settings import RestorationConfig, measured_of, operators_of, picture_of
from ddim.evaluation.restoration.tasks import Task, draw_all, restore, tasks_of
from ddim.evaluation.study import FEATURES, REFERENCE, Bar, Material, Progress, Study
from ddim.evaluation.subject import Subject
from ddim.findings.labels import significant
from ddim.findings.parts.restoration import GAUSSIAN, pictures
from ddim.findings.telling import Findings
from ddim.metrics import FeatureExtractor, ReferenceStatistics, preprocessing_hash
from ddim.runs.hashes import data_sha256

# Training images that the Gaussian is fitted to, and the most values that one of them may have.
FITTED, LARGEST = 10_000, 4096


@dataclass(frozen=True)
class Damaged:
    """Images and what is measured of each, by the name of the operator.

    numbers: (N,), in their split. truth: uint8 (N, C, H, W); None of a picture of one's own. source: what they are.
    """

    numbers: Tensor
    truth: Tensor | None
    measurements: Mapping[str, Measurement]
    available: int
    source: Mapping[str, Any]


class Restoration(Study):
    """How good, how varied and how true to the measurement restorations are, against the calls of the network.

    The measurement of image i is the same whatever restores it: masks depend on their own seed, its noise on (seed, i).

    Args:
        tasks: what is restored.
        points: their points.
        material: the images, extractor and reference.
        operators: by name, for the images' shape.
    """

    name = "restoration"
    guided = False
    group = "restoration"
    Settings = RestorationConfig
    needs = frozenset({FEATURES, REFERENCE})

    def __init__(
        self,
        settings: RestorationConfig,
        points: Sequence[GridPoint],
        tasks: Sequence[Task],
        operators: Mapping[str, Operator],
        material: Material,
        picture: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings = settings
        self.points = list(points)
        self.tasks = list(tasks)
        self.operators = operators
        self.images: ImageDataModule = material.images
        self.extractor: FeatureExtractor | None = material.extractor
        self.reference: ReferenceStatistics | None = None if material.measure is None else material.measure.reference
        self.picture = picture

    @classmethod
    def grid(cls, settings: RestorationConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        points = sampler.points(schedule)
        for task in tasks_of(settings.pairs(), points, settings.options_of):
            try:
                task.calls(schedule)
                _tried(task, schedule)
            except (ValueError, TypeError) as error:
                stated = ", ".join(f"restoration.{name}={value}" for name, value in task.options)
                raise UserError(f"restoration.method={task.method} cannot be used with {stated}: {error}.") from error
        return points

    @classmethod
    def of(cls, settings: RestorationConfig, points: Sequence[GridPoint], material: Material) -> Restoration:
        shape, available = material.images.space.shape, material.images.num_images("test")
        operators = operators_of(settings, shape, material.images.provenance("test").get("columns", ()))
        if settings.image is not None and material.images.space.kind != IMAGES:
            raise UserError(
                f"restoration.image={settings.image} is a picture, the data set has {material.images.name}."
            )
        if settings.num_images is not None and settings.num_images > available:
            raise UserError(
                f"restoration.num_images={settings.num_images} is more than the {available} images of the test split "
                f"of {material.images.name}; take at most {available}, or null for all."
            )
        picture = None
        if settings.image is not None:
            picture = {name: picture_of(settings.image, operator, shape) for name, operator in operators.items()}
        tasks = tasks_of(settings.pairs(), points, settings.options_of)
        return cls(settings, points, tasks, operators, material, picture)

    def plan(self) -> str:
        what = "a picture" if self.picture is not None else f"{self._count():,} test images"
        return f"restoration of {what}, {self.settings.draws} times each, in {len(self.tasks)} ways"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        damaged = self._damaged(subject)
        wanted = {task: self._depends_on(task, subject, damaged) for task in self.tasks}
        found = kept.recall(self.name, wanted, first=subject.first, world_size=subject.world_size)
        before = set(found)
        trivial = self._trivial(subject, damaged) if subject.first else []
        say.begin(self.tasks)
        say.beside(measurements={name: operator.identity for name, operator in self.operators.items()})
        for row, _ in trivial:
            say.row(row)
        with progress([task.calls(subject.schedule) for task in self.tasks]) as bar:
            for task in self.tasks:
                if task not in found:
                    found[task] = self._restored(task, subject, damaged, bar)
                    if subject.first:
                        kept.save(self.name, wanted[task], found[task])
                row = self._row(task, found[task].row, subject)
                say.row(row, point=task)
                said = next(
                    (f"{k} {significant(row[k], 4)}" for k in ("psnr", "rmse") if k in row), f"{row['nfe']} calls"
                )
                bar.finish_point(
                    f"{task.operator}, {task.method}: {said}{', finished before' if task in before else ''}"
                )
        if subject.first:
            self._show(subject, damaged, trivial, found, say)
            say.end()

    def _count(self) -> int:
        return self.settings.num_images or self.images.num_images("test")

    def _damaged(self, subject: Subject) -> Damaged:
        space = subject.sampling.space
        sigma = model_sigma(self.settings.sigma_y) if space.kind == IMAGES else self.settings.sigma_y
        if self.picture is not None:
            measured = {
                name: Measurement(operator, measured_of(operator, space.to_model(self.picture[name])), sigma)
                for name, operator in self.operators.items()
            }
            source = {"pixels": data_sha256({name: image.flatten().tolist() for name, image in self.picture.items()})}
            return Damaged(torch.zeros(1, dtype=torch.long), None, measured, 1, source)
        available, count = self.images.num_images("test"), self._count()
        truth = torch.cat(list(self.images.images("test", 500, limit=count)))
        numbers = torch.tensor(spread(available, count))
        x_0 = space.to_model(truth)
        measured = {}
        for name, operator in self.operators.items():
            noise = subject.sampling.noise.normal("validation", numbers, 0, (operator.measured,))
            measured[name] = Measurement.of(operator, x_0, sigma, noise)
        return Damaged(numbers, truth, measured, available, self.images.provenance("test"))

    def _restored(self, task: Task, subject: Subject, damaged: Damaged, bar: Bar) -> Finished:
        measurement, draws = damaged.measurements[task.operator], self.settings.draws
        count = len(damaged.numbers)
        bar.start_point(f"{task.operator}, {task.method}, S {task.point.steps}", draws * count)
        restored, seconds = draw_all(task, subject, measurement, damaged.numbers, draws, damaged.available, bar.advance)
        row = self._measured(restored, task.operator, damaged, subject)
        row |= {
            "milliseconds_per_image": 1000 * seconds / (draws * count),
            "device": subject.device_name(),
        }
        # Of a picture of one's own all draws, of test images the first of each.
        shown = restored[:, 0] if damaged.truth is None else restored[0, : self.settings.shown]
        return Finished(row, subject.sampling.space.to_stored(shown))

    def _measured(self, restored: Tensor, operator: str, damaged: Damaged, subject: Subject) -> dict[str, Any]:
        measurement = damaged.measurements[operator]
        space = subject.sampling.space
        if space.kind != IMAGES and damaged.truth is not None:
            return completed_row(restored, measurement, damaged.truth, space, self.extractor, self.reference)
        return measured_row(restored, measurement, damaged.truth, space, self.extractor, self.reference)

    def _about(self, operator: str) -> dict[str, Any]:
        """What every row says of its measurement."""
        return {
            "operator": operator,
            "sigma_y": self.settings.sigma_y,
            "measurement": data_sha256(self.operators[operator].identity)[:16],
            "num_images": 1 if self.picture is not None else self._count(),
            "split": None if self.picture is not None else "test",
        }

    def _row(self, task: Task, measured: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
        columns = subject.columns(task.point)
        if task.own_sampler:
            # Neither sampler nor eta of the point has a part in it.
            columns |= {"sampler": task.method, "eta": None, "variance": "eta"}
        calls = task.calls(subject.schedule)
        return {
            **columns,
            "nfe": calls,
            # Answers without a network have none, and no place in a chart.
            "calls": calls,
            **self._about(task.operator),
            "method": task.method,
            "method_options": dict(task.options),
            "backward": METHODS[task.method].backward,
            "draws": self.settings.draws,
            **measured,
        }

    def _depends_on(self, task: Task, subject: Subject, damaged: Damaged) -> dict[str, Any]:
        measured = None if self.extractor is None or self.reference is None else self.extractor.provenance
        reference = None if self.reference is None else preprocessing_hash(self.reference.provenance)
        return {
            **subject.depends_on(task.point),
            "method": task.method,
            "method_options": task.options,
            "operator": self.operators[task.operator].identity,
            "sigma_y": self.settings.sigma_y,
            "num_images": len(damaged.numbers),
            "draws": self.settings.draws,
            "images": damaged.source,
            "features": measured,
            "reference": reference,
        }

    def _trivial(self, subject: Subject, damaged: Damaged) -> list[tuple[dict[str, Any], Tensor]]:
        """Rows of what needs no network, and their images."""
        prior = None if damaged.truth is None or not self.settings.gaussian else self._gaussian(subject)
        found = []
        for name, measurement in damaged.measurements.items():
            answers = trivial_answers(measurement)
            if prior is not None:
                answers[GAUSSIAN] = prior.posterior(measurement)[0].float()
            for method, x_0 in answers.items():
                row = {
                    **subject.identity,
                    **self._about(name),
                    "method": method,
                    "sampler": None,
                    "steps": None,
                    "nfe": 0,
                    "draws": 1,
                    **self._measured(x_0[None], name, damaged, subject),
                }
                found.append((row, subject.sampling.space.to_stored(x_0[: self.settings.shown])))
        return found

    def _gaussian(self, subject: Subject) -> GaussianPrior | None:
        """Fitted to training images; None where an image has too many values for a covariance."""
        if torch.Size(subject.shape).numel() > LARGEST:
            return None
        images = torch.cat(list(self.images.images("train", 500, limit=FITTED)))
        return GaussianPrior.fitted(subject.sampling.space.to_model(images), subject.shape)

    def _show(
        self,
        subject: Subject,
        damaged: Damaged,
        trivial: Sequence[tuple[dict[str, Any], Tensor]],
        found: Mapping[Task, Finished],
        say: Findings,
    ) -> None:
        tasks = [(row, found[task].images) for row, task in zip(say.rows[: len(self.tasks)], self.tasks, strict=True)]
        truth = None if damaged.truth is None else damaged.truth[: self.settings.shown]
        for what, picture, caption in pictures(tasks, trivial, truth):
            say.picture(what, picture, caption)


def _tried(task: Task, schedule: NoiseSchedule) -> None:
    """The method itself knows best what its options may be; one number is restored in no time."""
    measurement, nothing = Measurement(Denoising((1,)), torch.zeros(1, 1)), torch.zeros(1, 1)
    nowhere = Subject(lambda x, t: 0 * x, schedule, None, arithmetic=torch.no_grad)  # type: ignore[arg-type]
    restore(task, nowhere, measurement, nothing, lambda step, like: torch.zeros_like(like))
