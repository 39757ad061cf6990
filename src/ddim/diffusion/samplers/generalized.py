"""Generalized DDIM/DDPM sampling: the coefficients of every step, one plain update rule, and the loop that drives it.

A step goes from timestep tau_i to tau_(i-1); the last one goes to the clean data, where alpha_bar = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, Noise, StepState, evaluate, global_noise, initial_state
from ddim.diffusion.samplers.etas import eta_per_step
from ddim.diffusion.samplers.levels import downwards
from ddim.diffusion.samplers.options import check_choice
from ddim.diffusion.schedule import NoiseSchedule

VARIANCES = ("eta", "sigma_hat", "sigma_hat_official")


@dataclass(frozen=True)
class StepCoefficients:
    """One step from `timestep` to `previous_timestep` (-1: the clean data).

    x_prev = sqrt(alpha_bar_prev) x_0 + direction eps + sigma z, with x_0 and eps read from x_t at alpha_bar.
    Python floats, hence float64.
    """

    timestep: int
    previous_timestep: int
    alpha_bar: float
    alpha_bar_prev: float
    direction: float
    sigma: float


def eta_coefficients(alpha_bar: float, alpha_bar_prev: float, eta: float) -> tuple[float, float]:
    """(direction, sigma) of the generalized step: DDIM eq. 12 with sigma(eta) of eq. 16."""
    sigma = eta * math.sqrt((1 - alpha_bar_prev) / (1 - alpha_bar)) * math.sqrt(1 - alpha_bar / alpha_bar_prev)
    return math.sqrt(max(1 - alpha_bar_prev - sigma * sigma, 0.0)), sigma


def sigma_hat_coefficients(alpha_bar: float, alpha_bar_prev: float) -> tuple[float, float]:
    """(direction, sigma) of DDPM with the larger variance: eta = 1 mean, sigma = sqrt(1 - alpha_bar/alpha_bar_prev).

    DDIM section 5, the last row of Table 1.
    """
    direction, _ = eta_coefficients(alpha_bar, alpha_bar_prev, 1.0)
    return direction, math.sqrt(1 - alpha_bar / alpha_bar_prev)


def step_table(
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    eta: float | Sequence[float] = 0.0,
    variance: str = "eta",
    *,
    eta_schedule: str = "constant",
    end: int = -1,
) -> tuple[StepCoefficients, ...]:
    """The steps that `sample` takes, noisiest first; arguments and errors as there."""
    check_choice("variance", variance, VARIANCES)
    path = downwards(schedule, timesteps, end)
    etas = eta_per_step(eta, schedule, timesteps, eta_schedule)
    if variance != "eta" and any(value != 1.0 for value in etas):
        raise ValueError(f"eta must be 1 with variance={variance!r}, whose mean is that of eta=1, got {eta!r}")
    table = []
    for (here, there), step_eta in zip(pairwise(path), etas, strict=True):
        t, previous, alpha_bar, alpha_bar_prev = here.timestep, there.timestep, here.alpha_bar, there.alpha_bar
        if variance == "eta":
            direction, sigma = eta_coefficients(alpha_bar, alpha_bar_prev, step_eta)
        else:
            direction, sigma = sigma_hat_coefficients(alpha_bar, alpha_bar_prev)
        if variance == "sigma_hat_official" and previous == -1:
            sigma = 0.0
        table.append(StepCoefficients(t, previous, alpha_bar, alpha_bar_prev, direction, sigma))
    return tuple(table)


def generalized_step(x_0: Tensor, eps: Tensor, step: StepCoefficients, z: Tensor | None = None) -> Tensor:
    """x at `step.previous_timestep` (DDIM eq. 12) from the predictions x_0, eps (N, ...) and standard normal z."""
    x = math.sqrt(step.alpha_bar_prev) * x_0 + step.direction * eps
    return x if z is None else x + step.sigma * z


def sample(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    eta: float | Sequence[float] = 0.0,
    *,
    eta_schedule: str = "constant",
    variance: str = "eta",
    end: int = -1,
    clip_denoised: bool = False,
    noise: Noise | None = None,
    on_step: Callable[[StepState], object] | None = None,
) -> Tensor:
    """x_0 of x_T's shape, by the generalized reverse process (DDIM section 4.1) along `timesteps`.

    denoiser: (x, t) -> eps with x in x_T's dtype and t a LongTensor (N,). It is called exactly len(timesteps) times.
    x_T: floating point (N, ...). The state, and so the result, has its dtype, or float32 if that is less precise.
    timesteps: strictly increasing, in [0, T - 1], as `select_timesteps` makes them.
    eta: in [0, 1]; 0 is DDIM, 1 is DDPM with the posterior variance. A list has one for each step, noisiest first.
    eta_schedule: of `ETA_SCHEDULES`, what becomes of one eta over the steps.
    variance: "eta" uses sigma(eta). "sigma_hat" is the paper's: the mean of eta=1 (which must be passed), the larger
        noise, on the last step too. "sigma_hat_official" is the official code's DDPM sampler: the same, but x_0 is
        always clipped to [-1, 1] and the last step adds no noise.
    end: the timestep to stop at, below the others; -1 is the clean data.
    clip_denoised: clamp each predicted x_0 to [-1, 1] and read eps again from x_t and the clamped x_0, so that the
        step follows q_sigma(x_prev | x_t, x_0) (DDIM eq. 7) of the clamped x_0.
    noise: (step, like) -> standard normal tensor of like's shape, step 0 being the noisiest; called only for steps
        with sigma > 0. By default torch's global generator.
    on_step: called with a `StepState` after every step. Nothing is kept here.

    Gradients flow through; whether to record them is the caller's choice.

    Raises ValueError naming the argument that is out of range, or when denoiser or noise returns another shape.
    """
    table = step_table(schedule, timesteps, eta, variance, eta_schedule=eta_schedule, end=end)
    clip = clip_denoised or variance == "sigma_hat_official"
    draw = global_noise if noise is None else noise
    x = initial_state("x_T", x_T)
    for number, step in enumerate(table):
        eps = evaluate(denoiser, x, step.timestep, x_T.dtype)
        signal, sigma = math.sqrt(step.alpha_bar), math.sqrt(1 - step.alpha_bar)
        x_0 = (x - sigma * eps) / signal
        if clip:
            x_0 = x_0.clamp(-1, 1)
            eps = (x - signal * x_0) / sigma
        z = draw(number, x).to(x) if step.sigma > 0 else None
        if z is not None and z.shape != x.shape:
            raise ValueError(f"noise must return shape {tuple(x.shape)}, got {tuple(z.shape)}")
        x = generalized_step(x_0, eps, step, z)
        if on_step is not None:
            on_step(StepState(number, step.timestep, step.previous_timestep, x, x_0, eps))
    return x
