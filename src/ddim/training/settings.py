"""What train.py can be told, with the checks that run before any work starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ddim.data.build import LoaderConfig
from ddim.diffusion import PREDICTIONS, TIMES, WEIGHTINGS, NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.errors import UserError, at_least, one_of, some_of
from ddim.findings.columns import MONITORED
from ddim.metrics import FEATURES, MEASURES, METRICS
from ddim.tracking.loggers import LoggerConfig
from ddim.training.rates import RATES

OPTIMIZERS = ("adam", "adamw")


@dataclass
class LossConfig:
    """What is minimised.

    Attributes:
        weighting: of the timesteps, one of WEIGHTINGS: L_simple of Ho et al. 2020, or weights by
            the signal-to-noise ratio.
    """

    weighting: str = "simple"

    def check(self) -> None:
        one_of("loss.weighting", self.weighting, WEIGHTINGS)


@dataclass
class ObjectiveConfig:
    """What the network learns to say, and at which noise levels; kept in the checkpoint, absent of those before it.

    Attributes:
        predicts: one of PREDICTIONS: the noise, the data, or sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) data.
        times: where training's timesteps come from, one of TIMES.
        times_mean: of ln sigma for lognormal, sigma = sqrt((1 - alpha_bar) / alpha_bar).
        times_std: of ln sigma for lognormal.
        label_dropout (0 ... 1): probability with which a network that takes conditions is trained without one, which
            classifier-free guidance needs.
    """

    predicts: str = "eps"
    times: str = "uniform"
    times_mean: float = -1.2
    times_std: float = 1.2
    label_dropout: float = 0.1

    def check(self) -> None:
        one_of("objective.predicts", self.predicts, PREDICTIONS)
        one_of("objective.times", self.times, TIMES)
        if not math.isfinite(self.times_mean):
            raise UserError(f"objective.times_mean={self.times_mean} must be a finite number.")
        if not (math.isfinite(self.times_std) and self.times_std > 0):
            raise UserError(f"objective.times_std={self.times_std} must be a positive number.")
        if not 0 <= self.label_dropout <= 1:
            raise UserError(f"objective.label_dropout={self.label_dropout} must lie in [0, 1].")

    @property
    def times_options(self) -> dict[str, float]:
        """Parameters of the function of TIMES."""
        return {"mean": self.times_mean, "std": self.times_std} if self.times == "lognormal" else {}


@dataclass
class OptimizerConfig:
    """How the weights follow the gradient.

    Attributes:
        name: one of OPTIMIZERS.
        lr: learning rate after the warm-up.
        betas (two numbers in [0, 1)): decay of Adam's running averages.
        weight_decay: L2 penalty for adam, decoupled decay for adamw.
        warmup_steps: steps over which the learning rate rises linearly.
        warmup_images: images seen meanwhile, in place of `warmup_steps`: goes with any batch size; null leaves it.
        schedule: of the learning rate after the warm-up, one of RATES.
    """

    name: str = "adam"
    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 5000
    warmup_images: int | None = None
    schedule: str = "constant"

    def check(self) -> None:
        one_of("optimizer.name", self.name, OPTIMIZERS)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"optimizer.lr={self.lr} must be a positive number.")
        if len(self.betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1).")
        if not self.weight_decay >= 0:
            raise UserError(f"optimizer.weight_decay={self.weight_decay} must not be negative.")
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        if self.warmup_images is not None:
            at_least("optimizer.warmup_images", self.warmup_images, 0)
        one_of("optimizer.schedule", self.schedule, RATES)

    def with_images_per_step(self, images: int) -> dict[str, Any]:
        """What `DenoisingModule` takes, where a step sees so many images."""
        warmup = self.warmup_steps if self.warmup_images is None else math.ceil(self.warmup_images / images)
        plain = asdict(self)
        del plain["warmup_images"]
        return {**plain, "warmup_steps": warmup}


@dataclass
class EmaConfig:
    """The average of the weights that is validated, sampled and saved beside the raw weights.

    Attributes:
        enabled: false trains and samples the raw weights alone.
        decay (number in [0, 1)): of the exponential moving average.
        halflife_images: images seen in which a weight's share in the average halves, in place of `decay`: goes with any
            batch size; null leaves it.
        ramp (positive number): the half-life is at most this share of the images seen so far, so that the first weights
            are soon forgotten; only with `halflife_images`; null has none.
        update_every_n_steps: steps between updates of the average.
    """

    enabled: bool = True
    decay: float = 0.9999
    halflife_images: int | None = None
    ramp: float | None = 0.05
    update_every_n_steps: int = 1

    def check(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"callbacks.ema.decay={self.decay} must lie in [0, 1).")
        if self.halflife_images is not None:
            at_least("callbacks.ema.halflife_images", self.halflife_images, 1)
        if self.ramp is not None and not (math.isfinite(self.ramp) and self.ramp > 0):
            raise UserError(f"callbacks.ema.ramp={self.ramp} must be a positive number, or null for none.")
        at_least("callbacks.ema.update_every_n_steps", self.update_every_n_steps, 1)


@dataclass
class CheckpointConfig:
    """What is kept of a training.

    Attributes:
        every_n_steps: optimizer steps between two states of `last.ckpt`; what a killed run may lose.
        monitor: the logged value whose best state is kept as `best.ckpt`; null keeps none.
        mode (min, max): whether the lowest or the highest value of `monitor` is the best.
    """

    every_n_steps: int = 1000
    monitor: str | None = "val/loss"
    mode: str = "min"

    def check(self) -> None:
        at_least("callbacks.checkpoint.every_n_steps", self.every_n_steps, 1)
        one_of("callbacks.checkpoint.mode", self.mode, ("min", "max"))


@dataclass
class SampleGridConfig:
    """A picture of the same latents again and again while training, from the validated (EMA) weights.

    Attributes:
        enabled: whether there are pictures.
        every_n_validations: 1 draws at every validation, 2 at every second one.
        num_images: in the picture.
        steps: S of the sampler.
        eta (0 ... 1, sigma_hat, sigma_hat_official): η of the sampler.
    """

    enabled: bool = True
    every_n_validations: int = 1
    num_images: int = 64
    steps: int = 20
    eta: Any = 0.0

    def check(self) -> None:
        at_least("callbacks.sample_grid.every_n_validations", self.every_n_validations, 1)
        at_least("callbacks.sample_grid.num_images", self.num_images, 1)


@dataclass
class TrainingEvaluationConfig:
    """A small evaluation grid while training, with the validated (EMA) weights.

    Attributes:
        enabled: whether anything is measured.
        every_n_validations: 1 measures at every validation, 3 at every third one.
        num_samples: images per point.
        batch_size: images that are sampled at once.
        steps (whole number, or a list): S of the points.
        eta (as sampler.eta, or a list): η of the points; `val/frechet_distance` is that of the first point.
        features: what distances are measured on, one of FEATURES.
        metrics (name, or a list): of METRICS.
    """

    enabled: bool = True
    every_n_validations: int = 5
    num_samples: int = 1000
    batch_size: int = 500
    steps: Any = field(default_factory=lambda: [10])
    eta: Any = field(default_factory=lambda: [0.0])
    features: str = "pixels"
    metrics: Any = field(default_factory=lambda: ["frechet_distance"])

    def check(self) -> None:
        prefix = "callbacks.evaluation"
        at_least(f"{prefix}.every_n_validations", self.every_n_validations, 1)
        at_least(f"{prefix}.num_samples", self.num_samples, 2)
        at_least(f"{prefix}.batch_size", self.batch_size, 1)
        one_of(f"{prefix}.features", self.features, FEATURES)
        self.metrics = some_of(f"{prefix}.metrics", self.metrics, METRICS)


@dataclass
class CallbacksConfig:
    ema: EmaConfig = field(default_factory=EmaConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample_grid: SampleGridConfig = field(default_factory=SampleGridConfig)
    evaluation: TrainingEvaluationConfig = field(default_factory=TrainingEvaluationConfig)

    def check(self) -> None:
        for part in (self.ema, self.checkpoint, self.sample_grid, self.evaluation):
            part.check()


@dataclass
class TrainConfig:
    """Everything of `train.py`.

    Attributes:
        seed: of the weights, of the order of the images, and of all noise; 0 to 2^63 - 1.
        resume: latest, a run directory or a `.ckpt`: goes on in the same directory and W&B run; null starts anew.
        checkpoint: of a network of the same kind whose EMA weights training starts from: latest, a run directory, a
            `.ckpt`, a diffusers directory or a model of the hub; null starts from random weights.
        tags: words to find the run by, in its configuration and in W&B.
        output_dir: where the directory of each run is made.
        cache_dir: downloads, weights and reference statistics, shared by all runs.
    """

    dataset: dict[str, Any]
    denoiser: dict[str, Any]
    schedule: dict[str, Any]
    trainer: dict[str, Any]
    seed: int = 0
    resume: str | None = None
    checkpoint: str | None = None
    tags: list[str] = field(default_factory=list)
    output_dir: str = "outputs"
    cache_dir: str = "cache"
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)


def check_monitor(callbacks: CallbacksConfig) -> None:
    """Lightning looks for the monitored value after the first validation, hours later."""
    monitor, part = callbacks.checkpoint.monitor, callbacks.evaluation
    losses = ("val/loss", *(f"val/loss_q{quartile}" for quartile in range(1, 5)))
    if monitor is None or monitor in losses:
        return
    one_number = MONITORED | {name: name for name, own in MEASURES.items() if own is not None}
    measured = [f"val/{one_number[name]}" for name in part.metrics if name in one_number] if part.enabled else []
    if monitor not in measured:
        known = ", ".join((*losses, *measured))
        raise UserError(f"callbacks.checkpoint.monitor={monitor} is not measured while training; known are {known}.")
    if part.every_n_validations != 1:
        raise UserError(
            f"callbacks.checkpoint.monitor={monitor} needs callbacks.evaluation.every_n_validations=1, "
            f"not {part.every_n_validations}: the best checkpoint is chosen at every validation."
        )


def sample_grid_point(config: TrainConfig, schedule: NoiseSchedule) -> GridPoint:
    """Where the sample pictures of training are taken."""
    part = config.callbacks.sample_grid
    sampler = SamplerConfig(part.steps, part.eta, config.sampler.tau, config.sampler.clip_denoised)
    points = sampler.points(schedule, prefix="callbacks.sample_grid")
    if len(points) != 1:
        raise UserError(f"callbacks.sample_grid.eta={part.eta} must be one value, not a list.")
    return points[0]


def training_grid(config: TrainConfig, schedule: NoiseSchedule) -> list[GridPoint]:
    """The small grid that is measured while training."""
    part = config.callbacks.evaluation
    sampler = SamplerConfig(part.steps, part.eta, config.sampler.tau, config.sampler.clip_denoised)
    return sampler.points(schedule, prefix="callbacks.evaluation")
