"""Data that have L evenly spaced levels in [-1, 1], as 8-bit images do: the probability of a level, and dequantisation.

Level k is -1 + k w with w = 2 / (L - 1); its bin reaches w / 2 to both sides. Bins of the two ends are open where a
docstring says so, as in DDPM section 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddim.diffusion.schedule import NoiseSchedule

DEQUANTIZATIONS = ("uniform", "truncated_normal")


def double(x: Tensor) -> Tensor:
    """x in float64, where its device has it, else on the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def check_levels(x_0: Tensor, levels: int) -> None:
    """Raise ValueError unless x_0 (N, ...) holds nothing but the `levels` values between -1 and 1."""
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels must be an integer >= 2, got {levels!r}")
    index = (double(x_0) + 1) * (levels - 1) / 2
    # A hundredth of a bin is far above the rounding of float32, and far below any noise that was added.
    if not bool(((index - index.round()).abs() < 1e-2).all()) or not bool(
        ((index > -0.5) & (index < levels - 0.5)).all()
    ):
        raise ValueError(f"x_0 must hold the {levels} evenly spaced values from -1 to 1, without noise or resizing")


def log_probability(x_0: Tensor, mean: Tensor, std: float | Tensor, levels: int | None) -> Tensor:
    """float64 of x_0's shape, nats: log of the mass that N(mean, std^2) has in x_0's bin, end bins open (DDPM eq. 13).

    mean has x_0's shape; std > 0 is a number or broadcasts to it. levels=None: the log density at x_0. Exact in the
    far tails too, where a difference of two distribution functions would be 0.
    """
    z = double(x_0) - double(mean)
    if levels is None:
        scale = torch.as_tensor(std, dtype=torch.float64, device=z.device)
        return -0.5 * (z / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
    half = 1 / (levels - 1)
    lower, upper = (z - half) / std, (z + half) / std
    lower = lower.masked_fill(_is_lowest(x_0, levels).to(z.device), -math.inf)
    upper = upper.masked_fill(_is_highest(x_0, levels).to(z.device), math.inf)
    return _log_mass(lower, upper)


def dequantize(
    x_0: Tensor, normal: Tensor, schedule: NoiseSchedule, kind: str, levels: int | None
) -> tuple[Tensor, Tensor]:
    """A state x at timestep 0 for each x_0 (N, ...), float64, and log q(x | x_0), float64 (N,) in nats.

    E[log p(x) - log q(x | x_0)] over x is a lower bound of the log mass that p has in the bins of
    sqrt(alpha_bar_0) x_0, for every density p.

    "uniform": x = sqrt(alpha_bar_0) (x_0 + w (u - 1/2)), u uniform in [0, 1); all bins closed.
    "truncated_normal": x = sqrt(alpha_bar_0) x_0 + sqrt(1 - alpha_bar_0) e with e normal inside the bin, as the
        network saw data in training (Zheng et al. 2023, i-DODE); end bins are open, so that a black area costs
        nothing but the noise's other half.
    With levels=None there is nothing to add: x = sqrt(alpha_bar_0) x_0.

    normal: standard normal of x_0's shape, of which the randomness is made; unused with levels=None.

    Raises ValueError for another kind, and for data that `check_levels` refuses.
    """
    if kind not in DEQUANTIZATIONS:
        raise ValueError(f"dequantization must be one of {', '.join(DEQUANTIZATIONS)}, got {kind!r}")
    alpha_bar = schedule.alpha_bar_at(0)
    signal, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    clean = double(x_0)
    if levels is None:
        return signal * clean, torch.full((len(x_0),), -_size(x_0) * math.log(signal), dtype=torch.float64)
    check_levels(x_0, levels)
    uniform = torch.special.ndtr(double(normal))
    if kind == "uniform":
        width = 2 / (levels - 1)
        x = signal * (clean + width * (uniform - 0.5))
        return x, torch.full((len(x_0),), -_size(x_0) * math.log(signal * width), dtype=torch.float64)
    half = torch.full_like(clean, signal / (levels - 1) / sigma)
    lower = (-half).masked_fill(_is_lowest(x_0, levels).to(clean.device), -math.inf)
    upper = half.masked_fill(_is_highest(x_0, levels).to(clean.device), math.inf)
    below = torch.special.ndtr(lower)
    mass = torch.special.ndtr(upper) - below
    e = torch.special.ndtri((below + uniform * mass).clamp(1e-15, 1 - 1e-15))
    log_q = -0.5 * e.square() - 0.5 * math.log(2 * math.pi) - math.log(sigma) - mass.log()
    return signal * clean + sigma * e, log_q.flatten(1).sum(dim=1).cpu()


def _size(x: Tensor) -> int:
    return math.prod(x.shape[1:])


def _is_lowest(x_0: Tensor, levels: int) -> Tensor:
    return x_0 < -1 + 1 / (levels - 1)


def _is_highest(x_0: Tensor, levels: int) -> Tensor:
    return x_0 > 1 - 1 / (levels - 1)


def _log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log(Phi(upper) - Phi(lower)), lower < upper."""
    # Both tails are computed as the lower one, in which small masses keep their digits.
    mirrored = lower + upper > 0
    low, high = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))
