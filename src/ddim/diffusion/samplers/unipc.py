"""UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that reuses the next step's call of the denoiser.

Both integrate the polynomial through x_0 in lambda, half the log signal-to-noise ratio, the corrector with the value
at the step's end included. The paper solves a linear system for the weights of differences divided by B(h); B cancels
wherever the system is solved, and the weights are those of the integrated polynomial. It is left in the two places
where the published solver writes 1/2 for the solution: the predictor of order 2 and the corrector of order 1. So bh1
and bh2 differ there alone, which for order 3 is in the first steps and the last but one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, initial_state
from ddim.diffusion.samplers.levels import Level, OnStep, Prediction, ddim_step, downwards, predict, tell, upwards
from ddim.diffusion.samplers.options import check_choice, check_flag, check_integer
from ddim.diffusion.samplers.weights import exponential_weights
from ddim.diffusion.schedule import NoiseSchedule

VARIANTS = ("bh1", "bh2")
MAX_ORDER = 3


def unipc(
    denoiser: Denoiser,
    x_T: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    order: int = 3,
    variant: str = "bh2",
    corrector: bool = True,
    end: int = -1,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_0 of x_T's shape (N, ...) by UniPC with data prediction; the arguments without a word are those of `sample`.

    order: p in 1 to 3. The predictor has order p and the corrector p + 1, and so the whole. The order grows from 1
        over the first steps and, on the way to the clean data, falls to 1 over the last ones whatever their number.
    variant: "bh1", B(h) = h, or "bh2", B(h) = exp(h) - 1.
    corrector: without it the solver is UniP: order 1 is then DDIM, and order 2 of bh2 is DPM-Solver++(2M).
    end: the timestep to stop at, -1 being the clean data. With another one the order does not fall.

    The denoiser is called exactly len(timesteps) times: once for each predicted state, never again for the corrected
    one, and the last state is not corrected. `on_step` is told of the corrected states. This is
    `UniPCMultistepScheduler` of diffusers with final_sigmas_type="zero".

    Raises ValueError naming the argument that is out of range, or when denoiser returns another shape.
    """
    path = downwards(schedule, timesteps, end)
    return _unipc(denoiser, x_T, "x_T", path, order, variant, corrector, on_step)


def encode_unipc(
    denoiser: Denoiser,
    x_0: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | Tensor,
    *,
    order: int = 3,
    variant: str = "bh2",
    corrector: bool = True,
    on_step: OnStep | None = None,
) -> Tensor:
    """x_T of x_0's shape (N, ...): the same solver from the clean data to the last timestep, with as many calls.

    The first step is DDIM's with eps read at t = 0, and neither corrected nor remembered, as in `encode_exponential`;
    the order then grows from 1 and does not fall. The other arguments and errors as in `unipc`.
    """
    return _unipc(denoiser, x_0, "x_0", upwards(schedule, timesteps), order, variant, corrector, on_step)


def _unipc(
    denoiser: Denoiser,
    x: Tensor,
    name: str,
    path: Sequence[Level],
    order: int,
    variant: str,
    corrector: bool,
    on_step: OnStep | None,
) -> Tensor:
    check_integer("order", order, 1, MAX_ORDER)
    check_choice("variant", variant, VARIANTS)
    check_flag("corrector", corrector)
    steps = len(path) - 1
    state = initial_state(name, x)
    history = [predict(denoiser, state, path[0], x.dtype)]
    for number, (here, there) in enumerate(pairwise(path)):
        used = min(order, steps - number) if path[-1].is_clean else order
        before, recent = history[0], history[:used]
        predicted = ddim_step(before, there) if here.is_clean else _predicted(state, recent, there, variant)
        if number == steps - 1:
            state = predicted
        else:
            new = predict(denoiser, predicted, there, x.dtype)
            state = _corrected(state, recent, new, variant) if corrector and not here.is_clean else predicted
            # lambda is infinite at the clean data: nothing can be interpolated from there.
            history = [new] if here.is_clean else [new, *history[: order - 1]]
        tell(on_step, number, there, state, before)
    return state


def _predicted(x: Tensor, history: Sequence[Prediction], there: Level, variant: str) -> Tensor:
    if len(history) == 1:
        return ddim_step(_read_again(x, history[0]), there)
    if len(history) == 2:
        return _half(x, history[0], history[1], there, variant)
    return _integrated(x, history[0].level, history, there)


def _corrected(x: Tensor, history: Sequence[Prediction], new: Prediction, variant: str) -> Tensor:
    if len(history) == 1:
        return _half(x, history[0], new, new.level, variant)
    return _integrated(x, history[0].level, [*history, new], new.level)


def _read_again(x: Tensor, prediction: Prediction) -> Prediction:
    # x_0 was predicted from the state before its correction; eps follows from it and the corrected one.
    level = prediction.level
    return Prediction(level, prediction.x_0, (x - level.signal * prediction.x_0) / level.sigma)


def _half(x: Tensor, current: Prediction, other: Prediction, there: Level, variant: str) -> Tensor:
    """The DDIM step plus B / 2 times the slope of x_0 between two predictions, in units of the step."""
    start, stop = current.level.half_log_snr, there.half_log_snr
    scale = stop - start if variant == "bh1" else -math.expm1(start - stop)
    slope = (other.x_0 - current.x_0) * ((stop - start) / (other.level.half_log_snr - start))
    return ddim_step(_read_again(x, current), there) + there.signal * scale / 2 * slope


def _integrated(x: Tensor, here: Level, predictions: Sequence[Prediction], there: Level) -> Tensor:
    times = [p.level.half_log_snr for p in predictions]
    x = there.sigma / here.sigma * x
    for weight, p in zip(exponential_weights(times, here.half_log_snr, there.half_log_snr), predictions, strict=True):
        x = x + there.signal * weight * p.x_0
    return x
