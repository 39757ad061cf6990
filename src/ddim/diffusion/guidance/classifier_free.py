"""Classifier-free guidance (Ho & Salimans 2022), also in an interval of noise levels (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

from torch import Tensor

from ddim.diffusion.guidance.base import EVERYWHERE, Conditional, check_interval, check_scale, in_interval
from ddim.diffusion.samplers.base import Denoiser


def classifier_free(model: Conditional, scale: float = 2.0, interval: tuple[float, float] = EVERYWHERE) -> Denoiser:
    """(x, t) -> eps_null + scale (eps_condition - eps_null).

    Scale 0 is unconditional, 1 conditional, and above 1 what tells the two apart is exaggerated. In terms of Ho &
    Salimans' w, whose 0 is conditional, the scale is 1 + w.

    interval: the noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar) that are guided; the others are conditional,
        as at scale 1.

    Raises ValueError for another scale or interval, and where the network has no condition that stands for none.
    """
    check_scale(scale)
    check_interval(interval)
    if model.condition is None:
        raise ValueError("the network is unconditional")
    if model.null is None:
        raise ValueError("the network has no condition that stands for none")

    def guided(x: Tensor, t: Tensor) -> Tensor:
        if scale == 0:
            return model.unconditional(x, t)
        if scale == 1:
            return model(x, t)
        conditional, unconditional = model.both(x, t)
        return unconditional + scale * (conditional - unconditional)

    return in_interval(model.schedule, interval, guided, model)
