"""iPNDM: Adams-Bashforth weights of constant steps, on whatever grid (Zhang and Chen 2023).

It is PNDM (Liu et al. 2022) without the Runge-Kutta start, so that every step costs one call.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.levels import Level, OnStep, Prediction, ddim_step, downwards, upwards
from ddim.diffusion.samplers.multistep import multistep
from ddim.diffusion.samplers.options import check_integer
from ddim.diffusion.schedule import NoiseSchedule

# Newest first.
WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def ipndm(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    order: int = 4,
    end: int = -1,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...): a DDIM step with a mixture of the last eps; other arguments are those of `sample`.

    order: 1 to 4, how many eps are mixed. The weights are right for equal steps in sigma / signal; elsewhere the method
        is of second order where neighbouring steps become equal as they get short and of first order where they do
        not, and yet often the best one for few steps. `exponential` with interpolates="eps" has the weights that are
        right on every grid, and equals this one on equal steps.
    end: the timestep to stop at, -1 being the clean data. The step to the clean data is a DDIM step; elsewhere
        (`IPNDMScheduler` of diffusers) it mixes too, and otherwise the two are the same. `PNDMScheduler` has
        order 4 after another start: Runge-Kutta steps of four calls each, or a first step taken twice.

    The denoiser is called exactly len(timesteps) times.

    Raises ValueError naming the argument that is out of range, or when denoiser returns another shape.
    """
    check_integer("order", order, 1, len(WEIGHTS))
    return multistep(denoiser, x_T, "x_T", downwards(schedule, timesteps, end), order, _update, on_step)


def encode_ipndm(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    order: int = 4,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_T of x_0's shape (N, ...): the same rule run upwards, as `encode_exponential` is in all else."""
    check_integer("order", order, 1, len(WEIGHTS))
    return multistep(denoiser, x_0, "x_0", upwards(schedule, timesteps), order, _update, on_step)


def _update(x: Tensor, history: Sequence[Prediction], there: Level) -> Tensor:
    here, weights = history[0].level, WEIGHTS[len(history) - 1]
    eps = weights[0] * history[0].eps
    for weight, prediction in zip(weights[1:], history[1:], strict=True):
        eps = eps + weight * prediction.eps
    return ddim_step(Prediction(here, (x - here.sigma * eps) / here.signal, eps), there)
