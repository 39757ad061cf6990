"""Solvers that keep nothing between steps: Heun's method, and DPM-Solver of order 2 and 3.

DPM-Solver asks the denoiser at noise levels inside a step. A denoiser is only defined at integer timesteps, so each
inner level is the timestep nearest to the wanted one in lambda, half the log signal-to-noise ratio, and the formulas
take that timestep's own lambda: what the denoiser is told and where the state is agree, and the order is kept. A step
with no timestep inside is a DDIM step; one with none near enough for order 3 is of order 2. `inner_levels` says
which, and so how often the denoiser is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, initial_state
from ddim.diffusion.samplers.levels import (
    Level,
    OnStep,
    Prediction,
    ddim_step,
    downwards,
    level_at,
    predict,
    tell,
    upwards,
)
from ddim.diffusion.samplers.weights import exponential_moments
from ddim.diffusion.schedule import NoiseSchedule

# Where the inner levels are wanted, in units of the step in lambda (Lu et al. 2022, algorithms 1 and 2).
FRACTIONS = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
# How far off the two inner levels of order 3 may lie. Its weights grow beyond that: they have a pole where the first
# one is at 2/3 of the step, and where both are at one place.
FURTHEST_OFF = 0.1


def heun(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    end: int = -1,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...) by Heun's method in sigma / signal (Karras et al. 2022, algorithm 1).

    A DDIM step, eps once more where it led, and the step again with the mean of the two. The step to the clean data
    is a DDIM step alone, so the denoiser is called 2 len(timesteps) - 1 times; with another `end`, the timestep to
    stop at, 2 len(timesteps) times. Order 2. The other arguments are those of `sample`. `HeunDiscreteScheduler` of
    diffusers is the same, with x / signal for its state.

    Raises ValueError naming the argument that is out of range, or when denoiser returns another shape.
    """
    return _heun(denoiser, x_T, "x_T", downwards(schedule, timesteps, end), on_step)


def encode_heun(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_T of x_0's shape (N, ...): Heun's method upwards, with 2 len(timesteps) - 1 calls.

    The first step, from the clean data, is DDIM's with eps read at t = 0, which costs what it does in
    `encode_exponential`; above it the error falls with the second order.
    """
    return _heun(denoiser, x_0, "x_0", upwards(schedule, timesteps), on_step)


def heun_calls(steps: int, *, end: int = -1) -> int:
    """How often `heun` calls the denoiser."""
    return 2 * steps - (end == -1)


def dpm2(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    end: int = -1,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...) by DPM-Solver-2 (Lu et al. 2022, algorithm 1), eps halfway through each step.

    Two calls of the denoiser a step, one where the step has no timestep inside or goes to the clean data:
    `dpm_calls`. `end`: the timestep to stop at, -1 being the clean data. The other arguments are those of `sample`.

    Raises ValueError naming the argument that is out of range, or when denoiser returns another shape.
    """
    return _dpm(2, denoiser, x_T, "x_T", schedule, downwards(schedule, timesteps, end), on_step)


def dpm3(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    end: int = -1,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...) by DPM-Solver-3 (Lu et al. 2022, algorithm 2), eps at 1/3 and 2/3 of each step.

    Three calls of the denoiser a step, fewer where a step has no room for two inner levels or goes to the clean data:
    `dpm_calls`. At exactly 1/3 and 2/3 it is DPM-Solver-3; elsewhere the weights are those of the third-order
    exponential Runge-Kutta methods that it belongs to (Hochbruck and Ostermann 2005), since its own would
    be of second order. `end` and the other arguments as in `dpm2`, errors too.
    """
    return _dpm(3, denoiser, x_T, "x_T", schedule, downwards(schedule, timesteps, end), on_step)


def encode_dpm2(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_T of x_0's shape (N, ...): `dpm2` upwards through the same inner levels, with as many calls.

    The first step, from the clean data, is DDIM's with eps read at t = 0, as in `encode_heun`.
    """
    return _dpm(2, denoiser, x_0, "x_0", schedule, upwards(schedule, timesteps), on_step)


def encode_dpm3(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_T of x_0's shape (N, ...): `dpm3` upwards, as in `encode_dpm2`."""
    return _dpm(3, denoiser, x_0, "x_0", schedule, upwards(schedule, timesteps), on_step)


def dpm_calls(order: int, schedule: NoiseSchedule, timesteps: Sequence[int] | Tensor, end: int = -1) -> int:
    """How often `dpm2` (order 2) and `dpm3` (order 3) call the denoiser."""
    path = downwards(schedule, timesteps, end)
    return sum(1 + len(inner_levels(schedule, here, there, order)) for here, there in pairwise(path))


def inner_levels(schedule: NoiseSchedule, here: Level, there: Level, order: int) -> list[Level]:
    """The levels inside the step where the denoiser is asked too, in its direction: at most order - 1, maybe none."""
    if there.timestep > here.timestep:  # upwards, through the levels of the way down
        return inner_levels(schedule, there, here, order)[::-1]
    if there.is_clean or here.timestep - there.timestep < 2:
        return []
    start, h = here.half_log_snr, there.half_log_snr - here.half_log_snr
    alpha_bar = schedule.alpha_bar[there.timestep + 1 : here.timestep]
    places = ((alpha_bar.log() - torch.log1p(-alpha_bar)) / 2 - start) / h

    def nearest(fraction: float, below: int) -> int:
        # The timesteps above `there` and below `below`.
        distances = (places[: below - there.timestep - 1] - fraction).abs()
        return there.timestep + 1 + int(distances.argmin())

    if order == 3 and here.timestep - there.timestep > 2:
        first = max(nearest(FRACTIONS[3][0], here.timestep), there.timestep + 2)
        second = nearest(FRACTIONS[3][1], first)
        found = zip((first, second), FRACTIONS[3], strict=True)
        if all(abs(places[t - there.timestep - 1] - fraction) <= FURTHEST_OFF for t, fraction in found):
            return [level_at(schedule, first), level_at(schedule, second)]
    return [level_at(schedule, nearest(FRACTIONS[2][0], here.timestep))]


def _heun(denoiser: Denoiser, x: Tensor, name: str, path: Sequence[Level], on_step: OnStep | None) -> Tensor:
    state = initial_state(name, x)
    for number, (here, there) in enumerate(pairwise(path)):
        prediction = predict(denoiser, state, here, x.dtype)
        reached = ddim_step(prediction, there)
        if not (here.is_clean or there.is_clean):
            eps = (prediction.eps + predict(denoiser, reached, there, x.dtype).eps) / 2
            reached = ddim_step(Prediction(here, (state - here.sigma * eps) / here.signal, eps), there)
        state = reached
        tell(on_step, number, there, state, prediction)
    return state


def _dpm(
    order: int,
    denoiser: Denoiser,
    x: Tensor,
    name: str,
    schedule: NoiseSchedule,
    path: Sequence[Level],
    on_step: OnStep | None,
) -> Tensor:
    state = initial_state(name, x)
    for number, (here, there) in enumerate(pairwise(path)):
        prediction = predict(denoiser, state, here, x.dtype)
        inner = inner_levels(schedule, here, there, order)
        if not inner:
            state = ddim_step(prediction, there)
        else:
            first = predict(denoiser, ddim_step(prediction, inner[0]), inner[0], x.dtype)
            if len(inner) == 1:
                state = _second_order(prediction, first, there)
            else:
                gamma = _gamma(here, inner[0], inner[1], there)
                second = predict(denoiser, _inner_state(prediction, first, inner[1], gamma), inner[1], x.dtype)
                state = _third_order(prediction, first, second, there, gamma)
        tell(on_step, number, there, state, prediction)
    return state


def _second_order(current: Prediction, first: Prediction, there: Level) -> Tensor:
    h = _span(current.level, there)
    weight = h / _span(current.level, first.level) / 2
    return ddim_step(current, there) - there.sigma * math.expm1(h) * weight * (first.eps - current.eps)


def _inner_state(current: Prediction, first: Prediction, second: Level, gamma: float) -> Tensor:
    """The state at the second inner level, from the predictions at the step's start and at the first one."""
    near, far = _span(current.level, first.level), _span(current.level, second)
    weight = gamma * near * _phi2(near) + far * far / near * _phi2(far)
    return ddim_step(current, second) - second.sigma * weight * (first.eps - current.eps)


def _third_order(current: Prediction, first: Prediction, second: Prediction, there: Level, gamma: float) -> Tensor:
    h = _span(current.level, there)
    near, far = _span(current.level, first.level) / h, _span(current.level, second.level) / h
    slope = (gamma * (first.eps - current.eps) + (second.eps - current.eps)) / (gamma * near + far)
    return ddim_step(current, there) - there.sigma * h * _phi2(h) * slope


def _gamma(here: Level, first: Level, second: Level, there: Level) -> float:
    """The parameter of Hochbruck and Ostermann's family: 0 for DPM-Solver-3, whose second inner level is at 2/3."""
    h = _span(here, there)
    near, far = _span(here, first) / h, _span(here, second) / h
    return far * (3 * far - 2) / (near * (2 - 3 * near))


def _phi2(z: float) -> float:
    """(exp(z) - 1 - z) / z^2, the integral of exp((1 - tau) z) tau over [0, 1]."""
    return -exponential_moments(2, -z)[1] / z


def _span(here: Level, there: Level) -> float:
    return there.half_log_snr - here.half_log_snr
