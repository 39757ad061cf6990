"""Training losses of a noise-predicting denoiser: L_simple and its reweighted relatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.diffusion.process import q_sample
from ddim.diffusion.samplers.base import Denoiser
from ddim.diffusion.schedule import NoiseSchedule

WEIGHTINGS = ("simple", "snr_truncated", "min_snr")


def loss_weights(t: Tensor, schedule: NoiseSchedule, weighting: str = "simple", gamma: float = 5.0) -> Tensor:
    """float64 (N,): the factor on the squared error of eps at timesteps t (N,); SNR = alpha_bar / (1 - alpha_bar).

    "simple": 1, DDPM eq. 14. "snr_truncated": max(1, 1/SNR), that is max(SNR, 1) on the squared error of x_0
    (Salimans and Ho 2022, section 4). "min_snr": min(1, gamma/SNR), that is min(SNR, gamma) on the squared error of
    x_0 (Hang et al. 2023); gamma > 0 is used by it alone.

    Raises ValueError for another weighting or gamma.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma!r}")
    alpha_bar = schedule.alpha_bar_at(t)
    inverse_snr = (1 - alpha_bar) / alpha_bar
    if weighting == "snr_truncated":
        return inverse_snr.clamp(min=1.0)
    if weighting == "min_snr":
        return (gamma * inverse_snr).clamp(max=1.0)
    return torch.ones_like(alpha_bar)


def simple_loss(
    denoiser: Denoiser,
    x_0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    *,
    weighting: str = "simple",
    gamma: float = 5.0,
) -> Tensor:
    """Per-sample weighted mean squared error (N,) of the noise predicted at x_t: DDPM eq. 14 by default.

    x_0 and noise: floating point (N, ...); t: LongTensor (N,) in [0, T - 1]; weighting, gamma: see `loss_weights`.
    The error is formed in at least float32 whatever the denoiser returns.

    Raises ValueError for mismatched shapes or an unknown weighting.
    """
    weights = loss_weights(t, schedule, weighting, gamma)
    x_t = q_sample(x_0, t, noise, schedule)
    eps = denoiser(x_t, t)
    if eps.shape != x_t.shape:
        raise ValueError(f"denoiser must return shape {tuple(x_t.shape)}, got {tuple(eps.shape)}")
    error = (eps.to(x_t.dtype) - noise).square().unsqueeze(-1).flatten(1).mean(dim=1)
    return weights.to(error.dtype).to(error.device) * error
