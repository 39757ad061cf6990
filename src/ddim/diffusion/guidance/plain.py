"""No guidance: what the network says of each sample's own condition."""

from __future__ import annotations

from ddim.diffusion.guidance.base import Conditional
from ddim.diffusion.samplers.base import Denoiser


def plain(model: Conditional) -> Denoiser:
    """(x, t) -> eps(x, t, condition)."""
    return model
