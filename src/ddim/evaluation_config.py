"""The `sampler` and `evaluation` groups: what is sampled, which questions are asked of it, and how each is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ddim.checks import at_least, one_of, some_of
from ddim.diffusion import SAMPLERS, NoiseSchedule
from ddim.errors import UserError
from ddim.grid import GridPoint, grid_points
from ddim.metrics import FEATURES, METRICS
from ddim.paths import usable_path

PARTS = ("grid", "reconstruction", "consistency", "interpolation", "trajectory", "diversity")


@dataclass
class SamplerConfig:
    """The grid: every number of steps with every η. `steps` and `eta` are one value or a list.

    Attributes:
        steps (whole number, or a list): S, the length of τ.
        eta (0 ... 1, sigma_hat, sigma_hat_official; or a list): η of eq. 16; sigma_hat is the paper's larger variance,
            sigma_hat_official as the official code samples it (x_0 clipped, no noise in the last step).
        tau (linear, quadratic, several of them, or a list of timesteps): how the S timesteps are chosen.
        clip_denoised: clip the predicted x_0 to [-1, 1] in every step.
        name: the rule: ddim, which with η is the paper's whole family, or one of your own (docs/extending.md).
    """

    steps: Any = field(default_factory=lambda: [5, 10, 20, 50])
    eta: Any = field(default_factory=lambda: [0.0, 0.5, 1.0])
    tau: Any = "linear"
    clip_denoised: bool = False
    name: str = "ddim"

    def points(self, schedule: NoiseSchedule, prefix: str = "sampler") -> list[GridPoint]:
        return grid_points(
            schedule,
            steps=self.steps,
            etas=self.eta,
            tau=self.tau,
            clip_denoised=self.clip_denoised,
            prefix=prefix,
            sampler=self.name,
        )


@dataclass
class ReconstructionConfig:
    """Test images encoded to x_T and decoded with the same S (the paper's Table 2).

    Attributes:
        num_images: of the test split; null takes all.
        shown: images in the picture.
    """

    num_images: int | None = None
    shown: int = 10

    def check(self, key: str) -> None:
        if self.num_images is not None:
            at_least(f"{key}.num_images", self.num_images, 1)
        at_least(f"{key}.shown", self.shown, 1)


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


@dataclass
class InterpolationConfig:
    """Spherical interpolation between latents, η = 0 (the paper's Figure 6).

    Attributes:
        steps: S; null takes the largest of `sampler.steps`.
        lines: pairs of latents.
        points: images on each line, ends included.
        corners: side of the square grid between four latents.
    """

    steps: int | None = None
    lines: int = 6
    points: int = 11
    corners: int = 7

    def check(self, key: str) -> None:
        if self.steps is not None:
            at_least(f"{key}.steps", self.steps, 1)
        at_least(f"{key}.lines", self.lines, 1)
        at_least(f"{key}.points", self.points, 3)
        at_least(f"{key}.corners", self.corners, 2)


@dataclass
class TrajectoryConfig:
    """The predicted x_0 along the way, as a strip and an animation.

    Attributes:
        steps: S; null takes the largest of `sampler.steps`.
        eta (as sampler.eta): the values of η that are followed.
        num_images: samples that are followed.
        shown: steps in the strip; the animation has all, of more than 100 an even choice.
        frame_milliseconds: how long a frame of the animation is shown.
    """

    steps: int | None = None
    eta: Any = field(default_factory=lambda: [0.0, 1.0])
    num_images: int = 6
    shown: int = 10
    frame_milliseconds: int = 150

    def check(self, key: str) -> None:
        if self.steps is not None:
            at_least(f"{key}.steps", self.steps, 1)
        at_least(f"{key}.num_images", self.num_images, 1)
        at_least(f"{key}.shown", self.shown, 2)
        at_least(f"{key}.frame_milliseconds", self.frame_milliseconds, 20)


@dataclass
class DiversityConfig:
    """Does η = 0 copy? Precision, recall and the nearest training images of `evaluation.num_samples` samples.

    Attributes:
        steps: S; null takes the largest of `sampler.steps`.
        eta (as sampler.eta): the values of η that are compared.
        shown: samples in the picture, each above its nearest training images.
    """

    steps: int | None = None
    eta: Any = field(default_factory=lambda: [0.0, 1.0])
    shown: int = 8

    def check(self, key: str) -> None:
        if self.steps is not None:
            at_least(f"{key}.steps", self.steps, 1)
        at_least(f"{key}.shown", self.shown, 1)


@dataclass
class EvaluationConfig:
    """What is asked of a trained network.

    Attributes:
        parts (name, or a list): of PARTS.
        weights (ema, raw): which weights of the checkpoint are sampled.
        num_samples: exactly this many images enter every metric of a point.
        batch_size: images that are sampled at once by each process, halved where memory runs out; null: by the size
            of the images and the device.
        features: what distances are measured on, one of FEATURES; only inception-v3-compat makes a FID.
        metrics (name, or a list): of METRICS.
        reference: a published `.npz` with `mu` and `sigma`; null computes them from the data set and caches them.
        reference_split (train, test): whose images samples are compared with.
        floor: whether real held-out images are measured against the same reference.
        loss_images: held-out images whose loss is computed first.
        grid_images: images shown per grid point, from the same latents.
        partial_every_seconds: how often the samples of an unfinished point are kept, for the case that it is killed.
    """

    parts: Any = field(default_factory=lambda: ["grid"])
    weights: str = "ema"
    num_samples: int = 1000
    batch_size: int | None = None
    features: str = "pixels"
    metrics: Any = field(default_factory=lambda: list(METRICS))
    reference: str | None = None
    reference_split: str = "train"
    floor: bool = True
    loss_images: int = 512
    grid_images: int = 64
    partial_every_seconds: float = 30.0
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    consistency: ConsistencyConfig = field(default_factory=ConsistencyConfig)
    interpolation: InterpolationConfig = field(default_factory=InterpolationConfig)
    trajectory: TrajectoryConfig = field(default_factory=TrajectoryConfig)
    diversity: DiversityConfig = field(default_factory=DiversityConfig)

    def check(self) -> None:
        self.parts = some_of("evaluation.parts", self.parts, PARTS)
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
        one_of("evaluation.features", self.features, FEATURES)
        self.metrics = some_of("evaluation.metrics", self.metrics, METRICS)
        one_of("evaluation.reference_split", self.reference_split, ("train", "test"))
        if self.reference is not None and not usable_path(self.reference, "evaluation.reference").is_file():
            raise UserError(f"evaluation.reference={self.reference} is not a file; give a .npz with mu and sigma.")
        if self.reference is not None and "diversity" in self.parts:
            raise UserError(
                f"evaluation.reference={self.reference} holds no features of single images, which evaluation=diversity "
                "compares with; leave evaluation.reference out or diversity out of evaluation.parts."
            )
        for name in ("reconstruction", "consistency", "interpolation", "trajectory", "diversity"):
            getattr(self, name).check(f"evaluation.{name}")


def plan(sampler: SamplerConfig, evaluation: EvaluationConfig, schedule: NoiseSchedule) -> dict[str, list[GridPoint]]:
    """The points that each part of an evaluation samples, in the order of `evaluation.parts`.

    Raises:
        UserError: naming the first value that is wrong.
    """
    points = {"grid": sampler.points(schedule)}
    if "reconstruction" in evaluation.parts:
        if sampler.name != "ddim":
            raise UserError(
                f"sampler.name={sampler.name} has no inverse, which evaluation=reconstruction needs; take "
                "sampler.name=ddim or leave reconstruction out of evaluation.parts."
            )
        # The inverse of encoding is the deterministic sampler, which must not clip: encoding did not.
        points["reconstruction"] = replace(sampler, eta=0.0, clip_denoised=False).points(schedule)
    if "consistency" in evaluation.parts:
        points["consistency"] = replace(sampler, eta=evaluation.consistency.eta).points(
            schedule, "evaluation.consistency"
        )
        if len({point.steps for point in points["consistency"]}) < 2:
            if not isinstance(sampler.tau, str) and points["consistency"][0].tau == "explicit":
                raise UserError(
                    f"sampler.tau={sampler.tau} is one sequence; evaluation=consistency compares at least two numbers "
                    "of steps, for example sampler.tau=linear sampler.steps=10,20,50."
                )
            raise UserError(
                f"sampler.steps={sampler.steps} is one number of steps; evaluation=consistency compares at least two, "
                "for example sampler.steps=10,20,50."
            )
    if "trajectory" in evaluation.parts and not SAMPLERS[sampler.name].takes("on_step"):
        raise UserError(
            f"sampler.name={sampler.name} does not show its steps (it takes no on_step), which evaluation=trajectory "
            "needs; leave trajectory out of evaluation.parts."
        )
    for name, eta, steps in (
        ("interpolation", 0.0, evaluation.interpolation.steps),
        ("trajectory", evaluation.trajectory.eta, evaluation.trajectory.steps),
        ("diversity", evaluation.diversity.eta, evaluation.diversity.steps),
    ):
        if name in evaluation.parts:
            largest = max(point.steps for point in points["grid"])
            alone = replace(sampler, steps=largest if steps is None else steps, eta=eta)
            points[name] = alone.points(schedule, f"evaluation.{name}")
    return {name: points[name] for name in evaluation.parts}
