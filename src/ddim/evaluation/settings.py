"""The `evaluation` group: which questions are asked of a network, and how each is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.diffusion.guidance.settings import GuidanceConfig
from ddim.diffusion.guided_grid import GuidedSampler
from ddim.errors import UserError, at_least, one_of, some_of
from ddim.evaluation.studies.captions import Captions
from ddim.evaluation.studies.consistency import Consistency
from ddim.evaluation.studies.convergence import Convergence
from ddim.evaluation.studies.diversity import Diversity
from ddim.evaluation.studies.grid import EvaluationGrid
from ddim.evaluation.studies.interpolation import Interpolation
from ddim.evaluation.studies.likelihood import Likelihood
from ddim.evaluation.studies.reconstruction import Reconstruction
from ddim.evaluation.studies.restoration import Restoration
from ddim.evaluation.studies.trajectory import Trajectory
from ddim.evaluation.study import HELD_OUT, Study
from ddim.findings.parts import PARTS
from ddim.metrics import FEATURES, IMAGE_METRICS, METRICS
from ddim.runs.paths import usable_path

STUDIES: dict[str, type[Study]] = {
    study.name: study
    for study in (
        EvaluationGrid,
        Reconstruction,
        Consistency,
        Interpolation,
        Trajectory,
        Diversity,
        Convergence,
        Likelihood,
        Restoration,
        Captions,
    )
}


@dataclass
class GeneralSettings:
    """What is asked of a trained network.

    Attributes:
        parts (name, or a list): of PARTS.
        weights (ema, raw): which weights of the checkpoint are sampled.
        num_samples: exactly this many images enter every metric of a point.
        batch_size: images that are sampled at once by each process, halved where memory runs out; null: by the size
            of the images and the device.
        features: what distances are measured on, one of FEATURES; auto: docs/features.md; only
            inception-v3-compat makes a FID.
        metrics (name, or a list): of METRICS.
        reference: a published `.npz` with `mu` and `sigma`; null computes them from the data set and caches them.
        reference_split (train, test): whose images samples are compared with.
        floor: whether real held-out images are measured against the same reference.
        loss_images: held-out images, evenly over their split, whose loss is computed first.
        grid_images: images shown per grid point, from the same latents.
        seeds (whole number, or a list): repeats the grid with the noise of each, in one evaluation; rows have the mean
            and the standard deviation over them. None takes `seed`.
        uncertainty: whether every distance of the grid comes with its standard deviation, over blocks of the samples.
        partial_every_seconds: how often the samples of an unfinished point are kept, for the case that it is killed.
    """

    parts: Any = field(default_factory=lambda: ["grid"])
    weights: str = "ema"
    num_samples: int = 1000
    batch_size: int | None = None
    features: str = "pixels"
    metrics: Any = field(default_factory=lambda: list(IMAGE_METRICS))
    reference: str | None = None
    reference_split: str = "train"
    floor: bool = True
    loss_images: int = 512
    grid_images: int = 64
    seeds: Any = field(default_factory=list)
    uncertainty: bool = True
    partial_every_seconds: float = 30.0

    def check(self) -> None:
        self.parts = some_of("evaluation.parts", self.parts, tuple(PARTS))
        if len(set(self.parts)) != len(self.parts):
            raise UserError(f"evaluation.parts={self.parts} names a part twice.")
        one_of("evaluation.weights", self.weights, ("ema", "raw"))
        at_least("evaluation.num_samples", self.num_samples, 2)
        if self.batch_size is not None:
            at_least("evaluation.batch_size", self.batch_size, 1)
        at_least("evaluation.loss_images", self.loss_images, 1)
        at_least("evaluation.grid_images", self.grid_images, 1)
        if not self.partial_every_seconds >= 0:
            raise UserError(
                f"evaluation.partial_every_seconds={self.partial_every_seconds} must be a number of at least 0; "
                "inf keeps nothing of unfinished points."
            )
        self.seeds = self.seeds if isinstance(self.seeds, list) else [self.seeds]
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
                raise UserError(f"evaluation.seeds={seed} must be whole numbers from 0 to 2^63 - 1.")
        if len(set(self.seeds)) != len(self.seeds):
            raise UserError(f"evaluation.seeds={self.seeds} names a seed twice.")
        one_of("evaluation.features", self.features, FEATURES)
        self.metrics = some_of("evaluation.metrics", self.metrics, METRICS)
        one_of("evaluation.reference_split", self.reference_split, ("train", "test"))
        if self.reference is not None and not usable_path(self.reference, "evaluation.reference").is_file():
            raise UserError(f"evaluation.reference={self.reference} is not a file; give a .npz with mu and sigma.")
        for name in self.parts:
            if self.reference is not None and HELD_OUT in STUDIES[name].needs:
                raise UserError(
                    f"evaluation.reference={self.reference} holds no features of single images, which "
                    f"evaluation={name} compares with; leave evaluation.reference out or {name} out of "
                    "evaluation.parts."
                )
        for name, study in STUDIES.items():
            getattr(self, name, _NOTHING).check(study.group or f"evaluation.{name}")


class _Nothing:
    def check(self, key: str) -> None:
        """Of a study without settings."""


_NOTHING = _Nothing()


def evaluation_schema() -> type[GeneralSettings]:
    """The schema of the group: the general settings, and those of every study that is known now as `<name>`."""
    own = [
        (name, study.Settings, field(default_factory=study.Settings))
        for name, study in STUDIES.items()
        if fields(study.Settings) and not study.group
    ]
    return make_dataclass(
        "EvaluationConfig", own, bases=(GeneralSettings,), namespace={"__doc__": GeneralSettings.__doc__}
    )


def plan(
    sampler: SamplerConfig, evaluation: Any, schedule: NoiseSchedule, guidance: GuidanceConfig | None = None
) -> dict[str, list[GridPoint]]:
    """The points that each part of an evaluation samples, in the order of `evaluation.parts`.

    Raises:
        UserError: naming the first value that is wrong, or a part that knows no guidance.
    """
    if guidance is not None:
        for name in evaluation.parts:
            if guidance.settings() != [()] and not STUDIES[name].guided:
                raise UserError(
                    f"evaluation={name} is about real images, which are not guided; take guidance=none or leave {name} "
                    "out of evaluation.parts."
                )
        sampler = GuidedSampler.of(sampler, guidance)
    return {name: STUDIES[name].grid(getattr(evaluation, name, None), sampler, schedule) for name in evaluation.parts}
