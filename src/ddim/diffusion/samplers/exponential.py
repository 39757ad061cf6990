"""Exponential Adams-Bashforth: one multistep solver, integrated exactly, of which several named ones are settings.

The probability flow ODE of a variance-preserving process is linear in the state and in one prediction f. Written for
the right multiple of the state it is the bare integral of f; a step integrates the polynomial through the last
`order` predictions exactly. With rho = sigma / signal, lambda = log(signal / sigma) and phi = atan(sigma / signal):

    eps   d(x / signal) = eps d rho                  polynomial in rho     Adams-Bashforth with variable steps in rho
    x0    d(x / sigma)  = x_0 exp(lambda) d lambda   polynomial in lambda  DPM-Solver++ multistep
    v     d x           = v d phi                    polynomial in phi     Adams-Bashforth in the angle

* eps is rhoAB-DEIS (Zhang and Chen 2023), which counts the degree: its rhoAB3 is order 4 here. It is
  also the linear multistep sampler of k-diffusion and diffusers (`LMSDiscreteScheduler`, whose quadrature is exact
  for polynomials), up to the last step. `DEISMultistepScheduler` of diffusers has the polynomial in log rho: order 1
  is the same, higher orders are another method. tAB-DEIS has it in t, which a discrete schedule does not define.
* x0 of order 2 is `DPMSolverMultistepScheduler(solver_type="heun")` of diffusers. DPM-Solver++(2M) as published
  (solver_type="midpoint") replaces the weight (exp(-h) - 1) / h + 1 of the slope by (1 - exp(-h)) / 2, which is
  equal up to O(h^2) and also of second order; it is `unipc` with variant="bh2", order 2 and no corrector. Of order 3,
  published code has half of the second derivative's weight, so that its "3M" converges with order 2. Here it is
  whole.
* Order 1 of eps and x0 is DDIM. Order 1 of v is Euler in the angle, x + (phi' - phi) v, and not DDIM, which turns by
  the same angle on a circle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.levels import Level, OnStep, Prediction, downwards, upwards
from ddim.diffusion.samplers.multistep import Update, multistep
from ddim.diffusion.samplers.options import check_choice, check_integer
from ddim.diffusion.samplers.weights import exponential_weights, lagrange_weights, polynomial_moments
from ddim.diffusion.schedule import NoiseSchedule

INTERPOLATES = ("eps", "x0", "v")
MAX_ORDER = 4


def exponential(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    order: int = 3,
    interpolates: str = "eps",
    end: int = -1,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...) by exponential Adams-Bashforth; the arguments without a word are those of `sample`.

    order: 1 to 4, how many predictions a step uses. The first steps have fewer, and so a lower order. The step to
        the clean data is always a DDIM step, of order 1.
    interpolates: "eps", "x0" or "v", the prediction that the polynomial goes through.
    end: the timestep to stop at, -1 being the clean data. With another one the last step has full order.

    The denoiser is called exactly len(timesteps) times.

    Raises ValueError naming the argument that is out of range, or when denoiser returns another shape.
    """
    update = _update(order, interpolates)
    return multistep(denoiser, x_T, "x_T", downwards(schedule, timesteps, end), order, update, on_step)


def encode_exponential(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    order: int = 3,
    interpolates: str = "eps",
    on_step: OnStep | None = None,
) -> Tensor:
    """x_T of x_0's shape (N, ...): the same solver run from the clean data to the last timestep.

    The first step, to the first timestep, is DDIM's with eps read at t = 0, and the solver starts anew after it. On
    smooth data the way up and back differ by O(rho^2) at the first timestep's rho = sigma / signal, and by O(rho^4) if
    it is t = 0, whatever the order and the number of steps; above it the error falls with the order. Arguments, calls
    and errors as in `exponential`; `on_step` as in `encode`.
    """
    update = _update(order, interpolates)
    return multistep(denoiser, x_0, "x_0", upwards(schedule, timesteps), order, update, on_step)


def _update(order: int, interpolates: str) -> Update:
    check_integer("order", order, 1, MAX_ORDER)
    check_choice("interpolates", interpolates, INTERPOLATES)
    return {"eps": _eps_update, "x0": _x0_update, "v": _v_update}[interpolates]


def _eps_update(x: Tensor, history: Sequence[Prediction], there: Level) -> Tensor:
    here = history[0].level
    h = there.half_log_snr - here.half_log_snr
    # rho' - rho = rho' (1 - exp(h)), in which nothing cancels; rho' signal' = sigma'.
    length = -there.sigma * math.expm1(h)
    nodes = [math.expm1(here.half_log_snr - p.level.half_log_snr) / math.expm1(-h) for p in history]
    weights = lagrange_weights(nodes, polynomial_moments(len(history)))
    x = there.signal / here.signal * x
    for weight, prediction in zip(weights, history, strict=True):
        x = x + length * weight * prediction.eps
    return x


def _x0_update(x: Tensor, history: Sequence[Prediction], there: Level) -> Tensor:
    here = history[0].level
    weights = exponential_weights([p.level.half_log_snr for p in history], here.half_log_snr, there.half_log_snr)
    x = there.sigma / here.sigma * x
    for weight, prediction in zip(weights, history, strict=True):
        x = x + there.signal * weight * prediction.x_0
    return x


def _v_update(x: Tensor, history: Sequence[Prediction], there: Level) -> Tensor:
    here = history[0].level
    length = there.angle - here.angle
    nodes = [(p.level.angle - here.angle) / length for p in history]
    for weight, prediction in zip(lagrange_weights(nodes, polynomial_moments(len(history))), history, strict=True):
        x = x + length * weight * prediction.v
    return x
