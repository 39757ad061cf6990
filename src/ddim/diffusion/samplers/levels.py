"""The noise levels a solver passes through, what the denoiser says at one of them, and the plain step between two.

Half the logarithm of the signal-to-noise ratio, lambda = log(signal / sigma), is the time of most solvers. It is
infinite at the clean data, so no solver steps to or from there with more than a DDIM step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, StepState, evaluate
from ddim.diffusion.schedule import NoiseSchedule
from ddim.diffusion.tau import explicit_timesteps

OnStep = Callable[[StepState], object]


@dataclass(frozen=True)
class Level:
    """x = signal x_0 + sigma eps at `timestep` (-1: the clean data). Python floats, hence float64."""

    timestep: int
    alpha_bar: float

    @property
    def is_clean(self) -> bool:
        return self.timestep == -1

    @property
    def signal(self) -> float:
        return math.sqrt(self.alpha_bar)

    @property
    def sigma(self) -> float:
        return math.sqrt(1 - self.alpha_bar)

    @property
    def ratio(self) -> float:
        """sigma / signal, the noise level of Karras et al. (2022), whose state is x / signal."""
        return self.sigma / self.signal

    @property
    def half_log_snr(self) -> float:
        return math.inf if self.is_clean else (math.log(self.alpha_bar) - math.log1p(-self.alpha_bar)) / 2

    @property
    def angle(self) -> float:
        """phi in [0, pi/2) with signal = cos phi and sigma = sin phi."""
        return math.atan2(self.sigma, self.signal)


@dataclass(frozen=True)
class Prediction:
    """What the denoiser says of a state at `level`: x_0 and eps, both (N, ...)."""

    level: Level
    x_0: Tensor
    eps: Tensor

    @property
    def v(self) -> Tensor:
        """signal eps - sigma x_0, the derivative of the state by the angle (Salimans and Ho 2022, appendix D)."""
        return self.level.signal * self.eps - self.level.sigma * self.x_0


def level_at(schedule: NoiseSchedule, timestep: int) -> Level:
    return Level(timestep, schedule.alpha_bar_at(timestep))


def downwards(schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, end: int = -1) -> list[Level]:
    """The S + 1 levels of a sampler, noisiest first, the last one at the timestep `end` (-1: the clean data).

    Raises ValueError unless the timesteps are those of `explicit_timesteps` and end lies below them, at -1 or above.
    """
    tau = explicit_timesteps(schedule.num_timesteps, timesteps).tolist()
    if isinstance(end, bool) or not isinstance(end, int) or not -1 <= end < tau[0]:
        raise ValueError(f"end must be an integer from -1 to {tau[0] - 1}, below the timesteps, got {end!r}")
    return [level_at(schedule, timestep) for timestep in [*reversed(tau), end]]


def upwards(schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor) -> list[Level]:
    """The S + 1 levels of an encoder, from the clean data to the last timestep; errors as in `downwards`."""
    return downwards(schedule, timesteps)[::-1]


def predict(denoiser: Denoiser, x: Tensor, level: Level, dtype: torch.dtype) -> Prediction:
    """The denoiser's prediction for x (N, ...) at `level`, called once with x in `dtype`.

    The clean data has no timestep of its own: there the denoiser is asked at t = 0, the nearest one.
    """
    eps = evaluate(denoiser, x, max(level.timestep, 0), dtype)
    return Prediction(level, (x - level.sigma * eps) / level.signal, eps)


def ddim_step(prediction: Prediction, there: Level) -> Tensor:
    """x at the level `there`, x_0 and eps standing still: DDIM eq. 12 with sigma = 0, exact at the clean data."""
    return there.signal * prediction.x_0 + there.sigma * prediction.eps


def tell(on_step: OnStep | None, number: int, there: Level, x: Tensor, prediction: Prediction) -> None:
    """`on_step` is told of step `number`, which led from the prediction's level to x at the level `there`."""
    if on_step is not None:
        low, high = sorted((prediction.level.timestep, there.timestep))
        on_step(StepState(number, high, low, x, prediction.x_0, prediction.eps))
