"""The loop of every linear multistep solver: one call of the denoiser a step, and the last few predictions kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser, initial_state
from ddim.diffusion.samplers.levels import Level, OnStep, Prediction, ddim_step, predict, tell

# (x, predictions with the newest first and at x, the level to reach) -> x at that level
Update = Callable[[Tensor, Sequence[Prediction], Level], Tensor]


def multistep(
    denoiser: Denoiser,
    x: Tensor,
    name: str,
    path: Sequence[Level],
    order: int,
    update: Update,
    on_step: OnStep | None = None,
) -> Tensor:
    """x (N, ...), called `name` in errors, taken along `path`; the denoiser is called exactly len(path) - 1 times.

    The order grows from 1 as predictions come in. A step to or from the clean data is a DDIM step, and what was
    predicted there is not kept: it was read at t = 0 and so belongs to no level.
    """
    state, history = initial_state(name, x), list[Prediction]()
    for number, (here, there) in enumerate(pairwise(path)):
        prediction = predict(denoiser, state, here, x.dtype)
        if here.is_clean or there.is_clean:
            state = ddim_step(prediction, there)
        else:
            history = [prediction, *history[: order - 1]]
            state = update(state, history, there)
        tell(on_step, number, there, state, prediction)
    return state
