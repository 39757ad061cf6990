"""Captions: are the digits that a caption asks for there, and where it says? Of captions that were never trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddim.data import ImageDataModule
from ddim.data.captioned_digits import (
    CAPTIONS,
    KINDS,
    NEW_COMBINATION,
    NEW_WORDING,
    SEEN,
    WORDS,
    Caption,
    captions_of,
)
from ddim.data.encoded_captions import vocabulary_from
from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import UserError, at_least
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.kept.partial import Partial
from ddim.evaluation.reading import PairReader, asked, right, same_digits
from ddim.evaluation.sampling import generate
from ddim.evaluation.study import IMAGES, Bar, Material, Progress, Study, recall
from ddim.evaluation.subject import Subject
from ddim.findings.labels import point_key
from ddim.findings.parts.captions import Drawn, column_of, pictures, with_error
from ddim.findings.telling import Findings
from ddim.metrics.labels import label_accuracy

# Captions take turns in this stride, prime to their numbers: digits and layouts mix, kinds still alternate.
STRIDE = 37


@dataclass
class CaptionsConfig:
    """Images of captions that were never trained on, read by a classifier of digits.

    Attributes:
        num_images: drawn of captions that training has held out, in half of which digits stand where they never stood.
        num_trained: drawn of captions that were trained on, to compare with; 0 draws none.
        shown: of the held-out images, in the picture.
    """

    num_images: int = 500
    num_trained: int = 0
    shown: int = 24

    def check(self, key: str) -> None:
        # One of each kind.
        at_least(f"{key}.num_images", self.num_images, 2)
        at_least(f"{key}.num_trained", self.num_trained, 0)
        at_least(f"{key}.shown", self.shown, 1)


class Captions(Study):
    """The share of images in which both digits of the caption stand where it says, by kind of caption.

    Sample i has the i-th caption of the held-out ones in turn, those that were trained on come after them. What the
    reader finds right in real test images is the ceiling.

    Args:
        points: what is sampled.
        images: of the captioned digits.
        num_images, num_trained: how many are drawn of held-out captions and of others.
        shown: images in the picture, at most.
    """

    name = "captions"
    Settings = CaptionsConfig
    needs: ClassVar[frozenset[str]] = frozenset({IMAGES})
    of_captions = True

    def __init__(
        self,
        points: Sequence[GridPoint],
        *,
        images: ImageDataModule,
        num_images: int,
        num_trained: int = 0,
        shown: int = 24,
    ) -> None:
        self.points = list(points)
        self.images = images
        self.held_out = in_turn(captions_of(NEW_WORDING, NEW_COMBINATION), num_images)
        self.captions = [*self.held_out, *in_turn(captions_of(SEEN), num_trained)]
        self.shown = min(shown, num_images)
        self.reader = PairReader()
        self.reading = vocabulary_from(images.meaning or {})

    @classmethod
    def grid(cls, settings: CaptionsConfig, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        return sampler.points(schedule)

    @classmethod
    def of(cls, settings: CaptionsConfig, points: Sequence[GridPoint], material: Material) -> Captions:
        images = material.images
        if (images.meaning or {}).get("words") != list(WORDS):
            raise UserError(
                f"evaluation=captions reads pairs of digits, which dataset {images.name} does not show; evaluate a "
                "network that was trained by `python train.py dataset=captioned_digits`."
            )
        return cls(
            points,
            images=images,
            num_images=settings.num_images,
            num_trained=settings.num_trained,
            shown=settings.shown,
        )

    def plan(self) -> str:
        return f"{len(self.captions):,} images of captions at {len(self.points)} points"

    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        tokens = self.reading.encode([caption.text for caption in self.captions])
        subject = replace(subject, condition_of=lambda numbers: tokens[numbers.cpu()])
        self.reader.to(subject.device)
        real = self._real_images()
        wanted = {point: self._depends_on(point, subject) for point in self.points}
        found = recall(self.name, wanted, subject, kept)
        before = set(found)
        say.begin(self.points)
        say.beside(real=real)
        with progress([point.nfe for point in self.points]) as bar:
            for point in self.points:
                if point not in found:
                    found[point] = self._drawn(point, subject, kept, bar)
                    if subject.first:
                        kept.save(self.name, wanted[point], found[point])
                say.row(self._row(point, found[point], real, subject), point=point)
                said = f"captions, {point_key(point)}: {with_error(found[point].row, 'right')} right"
                bar.finish_point(said + (", finished before" if point in before else ""))
        if subject.first:
            # Points of an earlier attempt may have kept fewer pictures than are asked for now.
            drawn = [self._shown(found[point].images) for point in self.points]
            for what, picture, caption in pictures(say.rows, drawn):
                say.picture(what, picture, caption)
            say.end()

    def _drawn(self, point: GridPoint, subject: Subject, kept: Kept, bar: Bar) -> Finished:
        bar.start_point(f"captions, {point_key(point)}", len(self.captions))
        partial = self._partial(point, subject, kept)
        generation = generate(
            subject,
            self.reader,
            point,
            num_samples=len(self.captions),
            keep_images=self.shown,
            advance=bar.advance,
            partial=partial,
        )
        if partial is not None and subject.first:
            partial.remove()
        row = {**shares(generation.features.features, self.captions), "seconds": generation.seconds}
        return Finished({**row, "device": subject.device_name()}, generation.first_images)

    def _row(self, point: GridPoint, known: Finished, real: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
        return {
            **subject.columns(point),
            "scale": dict(point.options).get("guidance_scale", 1.0),
            **known.row,
            "ceiling": real["right"],
        }

    def _real_images(self) -> dict[str, Any]:
        """What the reader finds right in the images of the test split, by kind of caption."""
        conditions = self.images.conditions("test")
        assert conditions is not None
        every = self.reading.encode([caption.text for caption in CAPTIONS]).tolist()
        meant = {tuple(tokens): caption for tokens, caption in zip(every, CAPTIONS, strict=True)}
        captions = [meant[tuple(tokens)] for tokens in conditions.tolist()]
        read = torch.cat([self.reader(images).features.cpu() for images in self.images.images("test", 500)])
        return shares(read, captions, kinds=KINDS)

    def _shown(self, images: Tensor) -> Drawn:
        captions = self.held_out[: len(images)]
        correct = right(self.reader(images).features, asked(captions))
        return Drawn(
            images, [caption.text for caption in captions], [caption.kind for caption in captions], correct.tolist()
        )

    def _depends_on(self, point: GridPoint, subject: Subject) -> dict[str, Any]:
        return {**self._samples_of(point, subject), "num_images": len(self.held_out), "shown": self.shown}

    def _samples_of(self, point: GridPoint, subject: Subject) -> dict[str, Any]:
        """All that the samples of a point and what is read in them depend on."""
        captions = [caption.text for caption in self.captions]
        return {**subject.depends_on(point), "extractor": self.reader.provenance, "captions": captions}

    def _partial(self, point: GridPoint, subject: Subject, kept: Kept) -> Partial | None:
        return kept.partial(self._samples_of(point, subject))


def in_turn(captions: Sequence[Caption], count: int) -> list[Caption]:
    """`count` of the captions, in a fixed mixed order again and again."""
    return [captions[STRIDE * number % len(captions)] for number in range(count)]


def shares(
    read: Tensor, captions: Sequence[Caption], kinds: Sequence[str] = (NEW_WORDING, NEW_COMBINATION)
) -> dict[str, Any]:
    """What was read, (N, 3), beside what was asked for: shares and their standard errors, those of a binomial.

    `right` and `digits` (both are there, wherever) are over all captions of `kinds`, and `right` also of each kind that
    any of the captions has.
    """
    wanted = asked(captions)
    correct, present = right(read, wanted), same_digits(read, wanted)
    kind = [caption.kind for caption in captions]
    counted = torch.tensor([one in kinds for one in kind])
    found: dict[str, Any] = {"num_images": int(counted.sum())}
    found |= _share("right", correct[counted]) | _share("digits", present[counted])
    for name in (NEW_WORDING, NEW_COMBINATION, SEEN):
        members = torch.tensor([one == name for one in kind])
        if members.any():
            found |= _share(column_of(name), correct[members])
    return found


def _share(name: str, values: Tensor) -> dict[str, float]:
    measured = label_accuracy(values, torch.ones_like(values))
    assert measured.sd is not None
    return {name: measured.value, f"{name}_error": measured.sd}
