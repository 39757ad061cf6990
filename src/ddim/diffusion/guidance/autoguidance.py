"""Autoguidance (Karras et al. 2024): away from what a smaller or less trained version of the same network says."""

from __future__ import annotations

from torch import Tensor

from ddim.diffusion.guidance.base import EVERYWHERE, Conditional, check_interval, check_scale, in_interval
from ddim.diffusion.samplers.base import Denoiser


def autoguidance(model: Conditional, scale: float = 2.0, interval: tuple[float, float] = EVERYWHERE) -> Denoiser:
    """(x, t) -> eps_guide + scale (eps - eps_guide), both of the samples' own conditions where the network takes any.

    Scale 0 is the guide alone, 1 the network alone. Unlike classifier-free guidance it keeps the variety of samples,
    and unconditional networks can be guided.

    interval: the noise levels sigma = sqrt((1 - alpha_bar) / alpha_bar) that are guided; elsewhere it is the network
        alone.

    Raises ValueError for another scale or interval, and where there is no guide.
    """
    check_scale(scale)
    check_interval(interval)
    guide = model.guide
    if guide is None:
        raise ValueError("there is no second network to guide with")

    def guided(x: Tensor, t: Tensor) -> Tensor:
        if scale == 0:
            return guide(x, t)
        if scale == 1:
            return model(x, t)
        worse = guide(x, t)
        return worse + scale * (model(x, t) - worse)

    return in_interval(model.schedule, interval, guided, model)
