"""Consistency: do the same latents give the same images whatever S is (DDIM section 5.2, Figure 5)?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from ddim.data import IMAGES, Space
from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import UserError, at_least
from ddim.evaluation.kept.finished import Kept
from ddim.evaluation.sampling import Generation, generate
from ddim.evaluation.study import FEATURES, Bar, Material, Progress, Study, partial_of
from ddim.evaluation.subject import Subject
from ddim.findings.labels import curve_key, eta_label, significant
from ddim.findings.part import title_of
from ddim.findings.parts.consistency import pictures
from ddim.findings.telling import Findings
from ddim.metrics import FeatureExtractor
from ddim.metrics.measure import features_name
from ddim.metrics.similarity import distances, value_distances


@dataclass
class ConsistencyConfig:
    """The same x_T under every `sampler.steps`, against the largest (the paper's Figure 5).

    Attributes:
        num_images: latents.
        eta (as sampler.eta): the values of η that are compared.
        shown: images in the picture.
    """

    num_images: int = 100
    eta: Any = field(default_factory=lambda: [0.0, 1.0])
    shown: int = 8

    def check(self, key: str) -> None:
        # The distance between two different samples is the unit of feature distances.
        at_least(f"{key}.num_images", self.num_images, 2)
        at_least(f"{key}.shown", self.shown, 1)


class Consistency(Study):
    """How far the images at each S are from those at the largest S, for each eta on its own.

    Shared by all points is x_T: sample i starts from the same latent at every S and every eta. Where eta > 0 the k-th
    step of sample i also draws the same noise, a function of (seed, i, k), at every S; but the k-th step of 10 lies at
    another timestep than the k-th of 50, and 50 steps draw noise that 10 do not. What is measured at eta > 0 is how
    much of an image its x_T decides; noise that is shared can only make eta > 0 look more consistent.

    Args:
        points: what is sampled.
        extractor: features that distances are measured with.
        num_images: samples 0 ... num_images - 1 are compared, at least 2.
        shown: samples of the picture, at most.

    Raises ValueError where there is nothing to compare: fewer than two images, or a point with no other S beside it.
    """

    name = "consistency"
    Settings = ConsistencyConfig
    needs: ClassVar[frozenset[str]] = frozenset({FEATURES})

    def __init__(
        self, points: Sequence[GridPoint], *, extractor: FeatureExtractor, num_images: int, shown: int = 8
    ) -> None:
        self.points = list(points)
        # By curve, from the smallest S to the largest, which the others are compared with.
        groups: dict[tuple[str, float], list[GridPoint]] = {}
        for point in self.points:
            # The key has three decimals of η.
            groups.setdefault((curve_key(point), point.eta), []).append(point)
        self.groups = [sorted(members, key=lambda point: point.steps) for members in groups.values()]
        if num_images < 2 or any(len(members) < 2 for members in self.groups):
            raise ValueError("consistency compares at least two images and two numbers of steps of each eta and tau")
        self.extractor = extractor
        self.num_images = num_images
        self.shown = min(shown, num_images)

    @classmethod
    def grid(cls, settings: ConsistencyConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        points = replace(sampler, eta=settings.eta).points(schedule, "evaluation.consistency")
        if len({point.steps for point in points}) >= 2:
            return points
        if not isinstance(sampler.tau, str) and points[0].tau == "explicit":
            raise UserError(
                f"sampler.tau={sampler.tau} is one sequence; evaluation=consistency compares at least two numbers "
                "of steps, for example sampler.tau=linear sampler.steps=10,20,50."
            )
        raise UserError(
            f"sampler.steps={sampler.steps} is one number of steps; evaluation=consistency compares at least two, "
            "for example sampler.steps=10,20,50."
        )

    @classmethod
    def of(cls, settings: ConsistencyConfig, points: Sequence[GridPoint], material: Material) -> Consistency:
        assert material.extractor is not None
        return cls(points, extractor=material.extractor, num_images=settings.num_images, shown=settings.shown)

    def plan(self) -> str:
        steps = ", ".join(str(number) for number in sorted({point.steps for point in self.points}))
        etas = ", ".join(dict.fromkeys(eta_label(point) for point in self.points))
        return f"consistency of {self.num_images:,} samples over S = {steps} for η = {etas}"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        self.extractor.to(subject.device)
        say.begin(self.points)
        shown: dict[GridPoint, Tensor] = {}
        with progress([point.nfe for point in self.points]) as bar:
            for *others, largest in self.groups:
                reference = self._generate(largest, subject, kept, bar)
                bar.finish_point(f"consistency, {_setting(largest)}: {self.num_images} images to compare with")
                for point in others:
                    generation = self._generate(point, subject, kept, bar)
                    row = self._row(point, generation, largest, reference, subject)
                    say.row(row, point=point)
                    shown[point] = generation.first_images[: self.shown]
                    mse = significant(row["mse"], 3)
                    bar.finish_point(f"consistency, {_setting(point)}: MSE {mse} to S {largest.steps}")
                shown[largest] = reference.first_images[: self.shown]
        if subject.first:
            for what, picture, caption in pictures(say.rows, shown):
                say.picture(what, picture, caption)
            say.end()

    def _row(
        self, point: GridPoint, generation: Generation, largest: GridPoint, reference: Generation, subject: Subject
    ) -> dict[str, Any]:
        return {
            **subject.columns(point),
            **subject.told_in(),
            "num_images": self.num_images,
            "reference_steps": largest.steps,
            **self._distances(generation, reference, subject.sampling.space),
            "features": features_name(self.extractor),
            "resize": self.extractor.provenance.get("resize"),
            "reference_timesteps": largest.timesteps,
            "seconds": generation.seconds,
        }

    def _distances(self, generation: Generation, reference: Generation, space: Space) -> dict[str, Any]:
        both = [(part.first_images, part.features.features) for part in (generation, reference)]
        if space.kind == IMAGES:
            return distances(*both)
        return value_distances(*((space.told(stored), features) for stored, features in both))

    def _generate(self, point: GridPoint, subject: Subject, kept: Kept, bar: Bar) -> Generation:
        bar.start_point(_setting(point), self.num_images)
        generation = generate(
            subject,
            self.extractor,
            point,
            num_samples=self.num_images,
            keep_images=self.num_images,
            advance=bar.advance,
            partial=partial_of(point, subject, self.extractor, kept),
        )
        if len(generation.first_images) != self.num_images:
            raise RuntimeError(f"{len(generation.first_images)} images where {self.num_images} were asked for")
        return generation


def _setting(point: GridPoint) -> str:
    return f"{title_of(point).replace('η', 'eta').replace('σ̂', 'sigma_hat')} S {point.steps}"
