"""Epsilon scaling: a denoiser whose noise is a little smaller, against the exposure bias of sampling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.samplers.options import check_number
from ddim.diffusion.tau import explicit_timesteps


def scale_eps(
    denoiser: Denoiser,
    constant: float = 1.0,
    slope: float = 0.0,
    *,
    timesteps: Sequence[int] | Tensor | None = None,
) -> Denoiser:
    """(x, t) -> eps / (constant + slope n): a denoiser like the one given (Ning et al. 2023).

    A network sees states that were sampled in place of noised data, and these call for less noise than it predicts;
    about 1.005 to 1.02 is usual for the constant.

    n: with `timesteps` the number of them below t, the step as the paper counts it (0 is the last one, whatever S);
        without them the timestep t itself, so that the scale is a property of the network and not of the grid.

    Raises ValueError unless the constant is a finite number above 0 and the slope one of at least 0.
    """
    check_number("eps_scale constant", constant, 0.0)
    if constant == 0:
        raise ValueError("eps_scale constant must be above 0, got 0")
    check_number("eps_scale slope", slope, 0.0)
    counted = None if timesteps is None else explicit_timesteps(torch.iinfo(torch.long).max, timesteps)

    def scaled(x: Tensor, t: Tensor) -> Tensor:
        eps = denoiser(x, t)
        n = t if counted is None else torch.searchsorted(counted.to(t.device), t)
        scale = constant + slope * n.to(torch.promote_types(eps.dtype, torch.float32))
        return eps / scale.reshape(-1, *[1] * (x.ndim - 1)).to(eps.dtype)

    return scaled
