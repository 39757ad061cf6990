"""Restart sampling (Xu et al. 2023): a deterministic solver that is sent back to more noise a few times.

The noise that is added contracts the errors that have built up; between these jumps the steps are those of an
ordinary differential equation, which need to be fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, Noise, StepState, global_noise, initial_state
from ddim.diffusion.samplers.levels import OnStep, downwards, level_at
from ddim.diffusion.samplers.options import check_integer, check_number
from ddim.diffusion.schedule import NoiseSchedule

KARRAS_RHO = 7.0


@dataclass(frozen=True)
class Segment:
    """A stretch that the solver runs alone: down the increasing `timesteps` to `end`.

    With `renoised` the state is first taken up from `end` to the last of the timesteps.
    """

    timesteps: tuple[int, ...]
    end: int
    renoised: bool = False


def restart(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    solver: Callable[..., Tensor],
    t_min: float = 0.06,
    t_max: float = 0.3,
    restarts: int = 2,
    restart_steps: int = 3,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...); the arguments without a word are those of `sample`.

    solver: (denoiser, x, schedule, timesteps, end=..., on_step=...) -> x at `end`, a deterministic one. A multistep
        solver starts anew, with order 1, after every jump.
    t_min, t_max: the noise levels sigma / signal, as the paper gives them, that a restart goes down to and up to.
        t_max is the nearest timestep of the schedule, t_min the nearest of the given timesteps below that one, both in
        the logarithm.
    restarts: K >= 0, how often the state is taken up to t_max again; 0 is the solver in two stretches.
    restart_steps: N >= 2, the levels from t_max to t_min, both counted, so N - 1 steps. They are spaced by
        Karras et al. 2022 eq. 5 with rho = 7 and rounded to timesteps; two that fall together are one.
    noise: called with 0, 1, ... K - 1 as its step.
    on_step: told of the solver's steps, numbered through; not of the jumps.

    How often the denoiser is called is the sum of the solver's calls over `restart_plan`.

    Raises ValueError naming the argument that is out of range, or when denoiser or noise returns another shape.
    """
    plan = restart_plan(schedule, timesteps, t_min=t_min, t_max=t_max, restarts=restarts, restart_steps=restart_steps)
    draw = global_noise if noise is None else noise
    x, number, jumps = initial_state("x_T", x_T), 0, 0

    def of_its_dtype(x: Tensor, t: Tensor) -> Tensor:
        # The later stretches begin with a state that may be more precise than what the denoiser is to be given.
        return denoiser(x.to(x_T.dtype), t)

    def told(state: StepState) -> None:
        nonlocal number
        if on_step is not None:
            on_step(replace(state, step=number))
        number += 1

    for segment in plan:
        if segment.renoised:
            z = draw(jumps, x).to(x)
            if z.shape != x.shape:
                raise ValueError(f"noise must return shape {tuple(x.shape)}, got {tuple(z.shape)}")
            x = _noised(x, schedule, segment, z)
            jumps += 1
        x = solver(of_its_dtype, x, schedule, segment.timesteps, end=segment.end, on_step=told)
    return x


def restart_plan(
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    t_min: float = 0.06,
    t_max: float = 0.3,
    restarts: int = 2,
    restart_steps: int = 3,
) -> list[Segment]:
    """The stretches that `restart` runs, in order; arguments and errors as there."""
    check_number("t_min", t_min, 0.0)
    check_number("t_max", t_max, 0.0)
    check_integer("restarts", restarts, 0)
    check_integer("restart_steps", restart_steps, 2)
    if not 0 < t_min < t_max:
        raise ValueError(f"0 < t_min < t_max must hold, got t_min={t_min}, t_max={t_max}")
    tau = [level.timestep for level in reversed(downwards(schedule, timesteps)[:-1])]
    high = _nearest(schedule, t_max)
    if tau[0] >= high:
        raise ValueError(f"t_max={t_max} must lie above the first timestep, {tau[0]}, and is at timestep {high}")
    low = min((t for t in tau if t < high), key=lambda t: abs(math.log(level_at(schedule, t).ratio / t_min)))
    above, below = [t for t in tau if t > low], [t for t in tau if t <= low]
    plan = [Segment(tuple(above), low)] if above else []
    if restarts:
        plan += [Segment(_karras(schedule, low, high, restart_steps), low, renoised=True)] * restarts
    return [*plan, Segment(tuple(below), -1)]


def _karras(schedule: NoiseSchedule, low: int, high: int, count: int) -> tuple[int, ...]:
    """The count - 1 timesteps above `low` and up to `high`, fewer where they fall together."""
    ends = [level_at(schedule, t).ratio ** (1 / KARRAS_RHO) for t in (high, low)]
    places = [(ends[0] + i / (count - 1) * (ends[1] - ends[0])) ** KARRAS_RHO for i in range(1, count - 1)]
    inside = {_nearest(schedule, ratio) for ratio in places}
    return tuple(sorted({t for t in inside if low < t < high} | {high}))


def _nearest(schedule: NoiseSchedule, ratio: float) -> int:
    alpha_bar = schedule.alpha_bar
    return int(((torch.log1p(-alpha_bar) - alpha_bar.log()) / 2 - math.log(ratio)).abs().argmin())


def _noised(x: Tensor, schedule: NoiseSchedule, segment: Segment, z: Tensor) -> Tensor:
    low, high = level_at(schedule, segment.end), level_at(schedule, segment.timesteps[-1])
    # q(x_high | x_low): the variance is 1 - alpha_bar_high / alpha_bar_low.
    kept = high.alpha_bar / low.alpha_bar
    return math.sqrt(kept) * x + math.sqrt(1 - kept) * z
