"""Methods that take the steps of DDPM and correct each of them: DPS, RePaint and ILVR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddim.diffusion.restoration.measurement import Measurement
from ddim.diffusion.restoration.methods.wrappers import with_gradient
from ddim.diffusion.restoration.operators.base import divided
from ddim.diffusion.samplers.base import Denoiser, Noise, initial_state
from ddim.diffusion.samplers.generalized import StepCoefficients, eta_coefficients, generalized_step, step_table
from ddim.diffusion.samplers.levels import Level, downwards, predict
from ddim.diffusion.samplers.options import check_integer, check_number
from ddim.diffusion.schedule import NoiseSchedule


def dps(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    *,
    noise: Noise,
    step_size: float = 0.5,
) -> Tensor:
    """x_0 (N, ...) by diffusion posterior sampling (Chung et al. 2023, algorithm 1).

    After each step of DDPM (eta = 1) x' loses step_size times the gradient by x_t of |y - A x_0|: the norm, not its
    square, and that of each sample. The reference code takes one norm over the whole batch, by which a sample depends
    on its batch mates. `step_size` is the paper's zeta, 0.3 to 1 at 1000 steps. One backward pass goes with each call.

    Raises ValueError for a negative step size.
    """
    check_number("step_size", step_size, 0.0)
    x = initial_state("x_T", x_T)

    def distance(x_0: Tensor) -> Tensor:
        # The root has no derivative at 0, where there is nothing left to correct.
        return measurement.error(x_0).square().sum(dim=1).clamp(min=1e-24).sqrt()

    for number, step in enumerate(step_table(schedule, timesteps, 1.0)):
        t = torch.full((len(x),), step.timestep, dtype=torch.long, device=x.device)
        eps, x_0, gradient = with_gradient(denoiser, x.to(x_T.dtype), t, schedule, distance)
        z = noise(number, x).to(x) if step.sigma > 0 else None
        x = generalized_step(x_0, eps, step, z) - step_size * gradient
    return x


def repaint(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    *,
    noise: Noise,
    jump_length: int = 10,
    jump_samples: int = 10,
) -> Tensor:
    """x_0 (N, ...) by replacing what is known after every step of DDPM (Lugmayr et al. 2022), for sigma_y = 0.

    The known values of x' are those of y at the noise of x'. So that the others come to fit them, the way goes up by
    `jump_length` steps of tau and down again, `jump_samples` times in all at each of its places (`repaint_plan`).

    Raises ValueError for a measurement with noise, or jumps that are none.
    """
    if measurement.sigma > 0:
        raise ValueError("repaint is for measurements without noise; with noise take ddrm or ddnm_plus")
    operator, levels = measurement.operator, downwards(schedule, timesteps)[::-1]
    x = initial_state("x_T", x_T)
    values = operator.values_like(x)
    target = divided(operator.measured_spectrum(measurement.y.to(x)), values)
    drawn = 0

    def draw() -> Tensor:
        # Every step of this path has noise of its own, also those that are taken again.
        nonlocal drawn
        drawn += 1
        return noise(drawn - 1, x).to(x)

    for before, after in pairwise(repaint_plan(len(levels) - 1, jump_length, jump_samples)):
        here, there = levels[before + 1], levels[after + 1]
        if after > before:
            kept = there.alpha_bar / here.alpha_bar
            x = math.sqrt(kept) * x + math.sqrt(1 - kept) * draw()
            continue
        x = _ancestral(denoiser, x, here, there, x_T.dtype, draw() if not there.is_clean else None)
        noised = there.signal * target
        if not there.is_clean:
            noised = noised + there.sigma * operator.to_spectrum(draw())
        x = operator.from_spectrum(torch.where(values > 0, noised, operator.to_spectrum(x)))
    return x


def repaint_plan(steps: int, jump_length: int, jump_samples: int) -> list[int]:
    """The places along tau that RePaint visits, from steps - 1 (the noisiest) to -1 (the clean data).

    Every step down is a call of the network, every step up only adds noise. 250 steps with jumps of 10 and 10 samples
    are 2410 calls and 4570 steps.

    Raises ValueError for numbers below 1.
    """
    check_integer("jump_length", jump_length, 1)
    check_integer("jump_samples", jump_samples, 1)
    left = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_samples - 1)
    plan, place = [], steps
    while place > 0:
        place -= 1
        plan.append(place)
        if left.get(place, 0) > 0:
            left[place] -= 1
            plan += range(place + 1, place + jump_length + 1)
            place += jump_length
    return [*plan, -1]


def repaint_calls(steps: int, jump_length: int = 10, jump_samples: int = 10) -> int:
    """How often the network runs."""
    return sum(after < before for before, after in pairwise(repaint_plan(steps, jump_length, jump_samples)))


def ilvr(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    measurement: Measurement,
    *,
    noise: Noise,
    until: float = 0.2,
) -> Tensor:
    """x_0 (N, ...) by iterative latent variable refinement (Choi et al. 2021), for sigma_y = 0.

    After each step of DDPM the coarse part of x' is that of the reference at the noise of x': x' - phi(x') + phi(that),
    with phi = A^+ A, down and up again. From the timestep `until` T on nothing holds it, so that y is met about.

    Raises ValueError for a measurement with noise, or a share outside [0, 1].
    """
    if measurement.sigma > 0:
        raise ValueError("ilvr is for measurements without noise; with noise take ddrm or ddnm_plus")
    check_number("until", until, 0.0, 1.0)
    operator = measurement.operator
    x = initial_state("x_T", x_T)
    reference = operator.A_dagger(measurement.y.to(x))
    count = len(timesteps)
    for number, (here, there) in enumerate(pairwise(downwards(schedule, timesteps))):
        x = _ancestral(denoiser, x, here, there, x_T.dtype, None if there.is_clean else noise(number, x).to(x))
        if there.timestep >= max(until * schedule.num_timesteps, 0):
            noised = there.signal * reference + there.sigma * noise(count + number, x).to(x)
            x = x + operator.A_dagger(operator.A(noised - x))
    return x


def _ancestral(
    denoiser: Denoiser, x: Tensor, here: Level, there: Level, dtype: torch.dtype, z: Tensor | None
) -> Tensor:
    """x at the level `there` by a step of DDPM, eta = 1; z is needed but to the clean data."""
    prediction = predict(denoiser, x, here, dtype)
    coefficients = eta_coefficients(here.alpha_bar, there.alpha_bar, 1.0)
    step = StepCoefficients(here.timestep, there.timestep, here.alpha_bar, there.alpha_bar, *coefficients)
    return generalized_step(prediction.x_0, prediction.eps, step, z)
