"""What the studies of an evaluation have in common: points to sample, and a way to say what was found."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Protocol

from ddim.data import ImageDataModule
from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import UserError, at_least
from ddim.evaluation.kept.finished import Finished, Kept
from ddim.evaluation.kept.partial import Partial
from ddim.evaluation.subject import Subject
from ddim.findings.telling import Findings
from ddim.metrics import FeatureExtractor, ReferenceStatistics
from ddim.metrics.measure import Measure

# What a study may need besides a network: features of samples, their reference with it, the features of the other
# split's images, real images themselves.
FEATURES, REFERENCE, HELD_OUT, IMAGES = "features", "reference", "held_out", "images"


class Bar(Protocol):
    """Shows how far a study is; `ddim.display.progress.GridProgress` is one."""

    def __enter__(self) -> Bar: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> object: ...

    def start_point(self, name: str, num_samples: int) -> None: ...

    def advance(self, images: int) -> None: ...

    def finish_point(self, line: str) -> None: ...


# From what each point costs, in network calls, to a bar.
Progress = Callable[[Sequence[int]], Bar]


@dataclass(frozen=True)
class Material:
    """What studies are made from, loaded once for all of them.

    Attributes:
        num_samples, grid_images, seeds, uncertainty: of `evaluation`.
        extractor, measure, held_out: None where no study needs them.
    """

    images: ImageDataModule
    num_samples: int
    grid_images: int
    seeds: Sequence[int] = ()
    uncertainty: bool = True
    extractor: FeatureExtractor | None = None
    measure: Measure | None = None
    held_out: ReferenceStatistics | None = None


@dataclass
class OnePointSettings:
    """Of a study with a single S."""

    steps: int | None = None

    def check(self, key: str) -> None:
        if self.steps is not None:
            at_least(f"{key}.steps", self.steps, 1)

    def at(self, eta: Any, sampler: SamplerConfig, schedule: NoiseSchedule, name: str) -> list[GridPoint]:
        """The points of this S, by default the largest of `sampler.steps`, with these η."""
        largest = max(point.steps for point in sampler.points(schedule))
        alone = replace(sampler, steps=largest if self.steps is None else self.steps, nfe=None, eta=eta)
        return alone.points(schedule, f"evaluation.{name}")


class Study(ABC):
    """One question asked of a trained network.

    Every process runs it; what it says is heard on the first one. A study is made from its settings by `of` and draws,
    prints and logs nothing: its `ddim.findings.parts.Part` of the same name says how it is told.
    """

    name: ClassVar[str]
    # A dataclass, `evaluation.<name>`, with `check(key)`.
    Settings: ClassVar[type]
    # Where its settings are a group of their own, its name: they are `<group>.KEY` then.
    group: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    # Whether its samples have labels and guidance, by their numbers; what is asked of real images has none.
    guided: ClassVar[bool] = True
    # Whether it asks for samples of captions.
    of_captions: ClassVar[bool] = False
    points: Sequence[GridPoint]

    @classmethod
    @abstractmethod
    def grid(cls, settings: Any, sampler: SamplerConfig, schedule: NoiseSchedule) -> list[GridPoint]:
        """What is sampled. Raises `UserError` naming the first value that is wrong."""

    @classmethod
    @abstractmethod
    def of(cls, settings: Any, points: Sequence[GridPoint], material: Material) -> Study:
        """The study of these points. Raises `UserError` where there are not the images that it needs."""

    @abstractmethod
    def plan(self) -> str:
        """What will be done, for the log: "12 grid points of 1,000 images"."""

    @abstractmethod
    def run(self, subject: Subject, kept: Kept, say: Findings, progress: Progress) -> None:
        """Do the work and say what is found. Called on every process."""


def check_study(name: str, study: Any) -> type[Study]:
    """A class of somebody's own as it is. Raises `UserError` where it is no study yet."""
    if not (inspect.isclass(study) and issubclass(study, Study)):
        raise UserError(f"the study {name} must be a class that derives ddim.extending.Study.")
    if inspect.isabstract(study):
        raise UserError(f"the study {name} needs {', '.join(sorted(study.__abstractmethods__))}.")
    settings = getattr(study, "Settings", None)
    if not (inspect.isclass(settings) and is_dataclass(settings) and hasattr(settings, "check")):
        raise UserError(f"the study {name} needs Settings, a dataclass with check(key).")
    return study


def suffix(point: GridPoint, points: Sequence[GridPoint]) -> str:
    """Tells the pictures of several spacings apart."""
    return f"-{point.tau}" if len({other.tau for other in points}) > 1 else ""


def recall(
    study: str, wanted: Mapping[GridPoint, Mapping[str, Any]], subject: Subject, kept: Kept
) -> dict[GridPoint, Finished]:
    """Those of the points that an earlier attempt has finished; the same on all processes."""
    return kept.recall(study, wanted, first=subject.first, world_size=subject.world_size)


def partial_of(point: GridPoint, subject: Subject, extractor: FeatureExtractor, kept: Kept) -> Partial | None:
    """Where features of a point's samples are kept while it, or the whole study, is not finished."""
    return kept.partial({**subject.depends_on(point), "extractor": extractor.provenance})
