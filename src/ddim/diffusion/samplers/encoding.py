"""Encoding: the deterministic sampler's ordinary differential equation run from the data to x_T (DDIM section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, StepState, evaluate, initial_state
from ddim.diffusion.samplers.generalized import step_table
from ddim.diffusion.schedule import NoiseSchedule


def encode(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    on_step: Callable[[StepState], object] | None = None,
) -> Tensor:
    """x_T of x_0's shape (N, ...), which `sample` with eta=0 and the same timesteps takes back to about x_0.

    Euler steps of DDIM eq. 14 upwards: eps is read at the level a step starts from. The clean data has no timestep of
    its own, so the first step reads it at t = 0, the nearest one. The denoiser is called exactly len(timesteps)
    times. The error of the round trip falls as 1/S. Nothing is ever clipped. dtypes as in `sample`.

    on_step: called after every step with a `StepState` whose `x` is the state reached at its `timestep`.

    Raises ValueError as `sample` does.
    """
    table = step_table(schedule, timesteps)
    x = initial_state("x_0", x_0)
    for number, step in enumerate(reversed(table)):
        eps = evaluate(denoiser, x, max(step.previous_timestep, 0), x_0.dtype)
        predicted = (x - math.sqrt(1 - step.alpha_bar_prev) * eps) / math.sqrt(step.alpha_bar_prev)
        x = math.sqrt(step.alpha_bar) * predicted + math.sqrt(1 - step.alpha_bar) * eps
        if on_step is not None:
            on_step(StepState(number, step.timestep, step.previous_timestep, x, predicted, eps))
    return x
