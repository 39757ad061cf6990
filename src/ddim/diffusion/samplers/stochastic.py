"""Generalized DDIM of second order: x_0 is a line in lambda over a step instead of a constant.

The generalized step with eta is the exact solution, for constant x_0, of the reverse stochastic differential equation
whose noise is scaled by tau, with exp(-tau^2 h) = sqrt(1 - eta^2 (1 - exp(-2 h))), lambda half the log
signal-to-noise ratio and h a step's length in it (see `eta_of_tau`). For any x_0 that solution is

    x' = exp(-tau^2 h) sigma' / sigma x + signal' r int exp(-r (lambda' - l)) x_0(l) dl + sigma(eta) z,  r = 1 + tau^2,

which is integrated exactly for the line through the last two predictions: SA-Solver's predictor (Xue et al. 2023)
with eta for its tau. eta = 0 is `exponential` with interpolates="x0"; eta = 1 is `DPMSolverMultistepScheduler` of
diffusers with algorithm_type="sde-dpmsolver++" and solver_type="heun". Its "midpoint", and k-diffusion's
`dpmpp_2m_sde`, write 1/2 for the slope's weight, which is another method of the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, Noise, global_noise, initial_state
from ddim.diffusion.samplers.etas import eta_per_step
from ddim.diffusion.samplers.levels import Level, OnStep, Prediction, downwards, predict, tell
from ddim.diffusion.samplers.options import check_integer
from ddim.diffusion.samplers.weights import exponential_weights
from ddim.diffusion.schedule import NoiseSchedule

MAX_ORDER = 2


def stochastic(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    eta: float | Sequence[float] = 1.0,
    *,
    order: int = 2,
    eta_schedule: str = "constant",
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...) by stochastic multistep; the arguments without a word are those of `sample`.

    eta: in [0, 1], DDIM's; or one for each step, noisiest first.
    order: 1, which is `sample` with this eta, or 2. The first step, and the one to the clean data, is of order 1.
    eta_schedule: of ETA_SCHEDULES, what becomes of one eta over the steps.

    The denoiser is called exactly len(timesteps) times, and noise at the steps with sigma > 0, never at the last.

    Raises ValueError naming the argument that is out of range, or when denoiser or noise returns another shape.
    """
    check_integer("order", order, 1, MAX_ORDER)
    etas = eta_per_step(eta, schedule, timesteps, eta_schedule)
    path = downwards(schedule, timesteps)
    draw = global_noise if noise is None else noise
    x, history = initial_state("x_T", x_T), list[Prediction]()
    for number, (here, there) in enumerate(pairwise(path)):
        history = [predict(denoiser, x, here, x_T.dtype), *history[: order - 1]]
        x = history[0].x_0 if there.is_clean else _mean(x, history, there, etas[number])
        sigma = there.sigma * etas[number] * math.sqrt(-math.expm1(-2 * _span(here, there)))
        if sigma > 0:
            z = draw(number, x).to(x)
            if z.shape != x.shape:
                raise ValueError(f"noise must return shape {tuple(x.shape)}, got {tuple(z.shape)}")
            x = x + sigma * z
        tell(on_step, number, there, x, history[0])
    return x


def _mean(x: Tensor, history: Sequence[Prediction], there: Level, eta: float) -> Tensor:
    here = history[0].level
    h = _span(here, there)
    # eta = 1 has tau = 1 exactly, which is exp(-h) for a decay that may be too small to take a logarithm of.
    tau_squared = 1.0 if eta == 1 else -math.log1p(eta * eta * math.expm1(-2 * h)) / (2 * h)
    times = [p.level.half_log_snr for p in history]
    weights = exponential_weights(times, here.half_log_snr, there.half_log_snr, 1 + tau_squared)
    x = math.exp(-tau_squared * h) * there.sigma / here.sigma * x
    for weight, prediction in zip(weights, history, strict=True):
        x = x + there.signal * weight * prediction.x_0
    return x


def _span(here: Level, there: Level) -> float:
    return there.half_log_snr - here.half_log_snr
