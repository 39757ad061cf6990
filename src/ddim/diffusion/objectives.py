"""Training losses of a noise-predicting denoiser: L_simple and its reweighted relatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddim.diffusion.process import q_sample
from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.schedule import NoiseSchedule


def simple(snr: Tensor) -> Tensor:
    """1: DDPM eq. 14."""
    return torch.ones_like(snr)


def snr_truncated(snr: Tensor) -> Tensor:
    """max(1, 1/SNR), that is max(SNR, 1) on the squared error of x_0 (Salimans and Ho 2022, section 4)."""
    return (1 / snr).clamp(min=1.0)


def min_snr(snr: Tensor, gamma: float = 5.0) -> Tensor:
    """min(1, gamma/SNR), that is min(SNR, gamma) on the squared error of x_0 (Hang et al. 2023); gamma > 0."""
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma!r}")
    return (gamma / snr).clamp(max=1.0)


# (SNR, float64 (N,), **its own parameters) -> the factors on the squared error of eps (N,). One line per weighting.
WEIGHTINGS: dict[str, Callable[..., Tensor]] = {
    "simple": simple,
    "snr_truncated": snr_truncated,
    "min_snr": min_snr,
}


def loss_weights(t: Tensor, schedule: NoiseSchedule, weighting: str = "simple", **parameters: Any) -> Tensor:
    """float64 (N,): the factor on the squared error of eps at timesteps t (N,), from SNR = alpha_bar / (1 - alpha_bar).

    weighting: one of WEIGHTINGS, whose function says what it is. parameters: its own, such as gamma of "min_snr".

    Raises ValueError for another weighting, a parameter that it does not have or refuses, or factors of another shape.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    known = list(inspect.signature(WEIGHTINGS[weighting]).parameters)[1:]
    for name in parameters:
        if name not in known:
            raise ValueError(f"weighting {weighting} has no parameter {name}; its own are {', '.join(known) or 'none'}")
    alpha_bar = schedule.alpha_bar_at(t)
    weights = WEIGHTINGS[weighting](alpha_bar / (1 - alpha_bar), **parameters)
    if weights.shape != t.shape:
        raise ValueError(
            f"weighting {weighting} must give one factor for each timestep, shape {tuple(t.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    return weights.to(alpha_bar.dtype)


def simple_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    weighting: str = "simple",
    **parameters: Any,
) -> Tensor:
    """Per-sample weighted mean squared error (N,) of the noise predicted at x_t: DDPM eq. 14 by default.

    x_0 and noise: floating point (N, ...); t: LongTensor (N,) in [0, T - 1]; weighting, parameters: see `loss_weights`.
    The error is formed in at least float32 whatever the denoiser returns.

    Raises ValueError for mismatched shapes or an unknown weighting.
    """
    weights = loss_weights(t, schedule, weighting, **parameters)
    x_t = q_sample(x_0, t, noise, schedule)
    eps = denoiser(x_t, t)
    if eps.shape != x_t.shape:
        raise ValueError(f"denoiser must return shape {tuple(x_t.shape)}, got {tuple(eps.shape)}")
    error = (eps.to(x_t.dtype) - noise).square().unsqueeze(-1).flatten(1).mean(dim=1)
    return weights.to(error.dtype).to(error.device) * error
