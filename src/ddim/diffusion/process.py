"""The forward process q(x_t | x_0), and the translations between x_0, eps and v at a given x_t.

Everywhere x has any shape (N, ...), t is an integer tensor (N,) with one timestep per sample, and the result has x's
shape. Arithmetic is done in x's dtype, or float32 if that is less precise; coefficients come from float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddim.diffusion.schedule import NoiseSchedule


def q_sample(x_0: Tensor, t: Tensor, noise: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (DDPM eq. 4), for noise of x_0's shape."""
    signal, sigma = _coefficients(t, x_0, schedule)
    return signal * x_0 + sigma * _same_shape("noise", noise, x_0)


def predict_x0(x_t: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The x_0 that, with noise eps, gives x_t (DDIM eq. 9)."""
    signal, sigma = _coefficients(t, x_t, schedule)
    return (x_t - sigma * _same_shape("eps", eps, x_t)) / signal


def eps_from_x0(x_t: Tensor, x_0: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The noise that takes x_0 to x_t: the inverse of `predict_x0`."""
    signal, sigma = _coefficients(t, x_t, schedule)
    return (x_t - signal * _same_shape("x_0", x_0, x_t)) / sigma


def v_from_eps(x_0: Tensor, eps: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho 2022, section 4)."""
    signal, sigma = _coefficients(t, x_0, schedule)
    return signal * _same_shape("eps", eps, x_0) - sigma * x_0


def x0_from_v(x_t: Tensor, v: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v; unlike `predict_x0` it divides by nothing small."""
    signal, sigma = _coefficients(t, x_t, schedule)
    return signal * x_t - sigma * _same_shape("v", v, x_t)


def eps_from_v(x_t: Tensor, v: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """eps = sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v."""
    signal, sigma = _coefficients(t, x_t, schedule)
    return sigma * x_t + signal * _same_shape("v", v, x_t)


def _coefficients(t: Tensor, x: Tensor, schedule: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped (N, 1, ...) to multiply x."""
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"x must be a floating point tensor (N, ...), got {x.dtype} {tuple(x.shape)}")
    if tuple(t.shape) != (len(x),):
        raise ValueError(f"t must have shape ({len(x)},), one timestep per sample, got {tuple(t.shape)}")
    alpha_bar = schedule.alpha_bar_at(t)
    dtype = torch.promote_types(x.dtype, torch.float32)
    shape = (-1,) + (1,) * (x.ndim - 1)
    signal, sigma = alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype)
    return signal.to(x.device).reshape(shape), sigma.to(x.device).reshape(shape)


def _same_shape(name: str, value: Tensor, x: Tensor) -> Tensor:
    if value.shape != x.shape:
        raise ValueError(f"{name} must have shape {tuple(x.shape)}, got {tuple(value.shape)}")
    return value
