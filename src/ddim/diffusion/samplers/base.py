"""What every sampler is made of: the types of its arguments, its state, and the one way the denoiser is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class StepState:
    """What `on_step` is told after each step.

    `step` counts from 0. `timestep` and `previous_timestep` (-1: the clean data) bound the step from above and below;
    sampling goes down from one to the other, encoding goes up. `x` (N, ...) is the state that was reached, `x_0` and
    `eps` (N, ...) are the predictions that led there.
    """

    step: int
    timestep: int
    previous_timestep: int
    x: Tensor
    x_0: Tensor
    eps: Tensor


def initial_state(name: str, x: Tensor) -> Tensor:
    """x (N, ...) in at least float32, so that rounding does not add up over the steps."""
    if not x.is_floating_point() or x.ndim == 0:
        raise ValueError(f"{name} must be a floating point tensor (N, ...), got {x.dtype} {tuple(x.shape)}")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def evaluate(denoiser: Denoiser, x: Tensor, timestep: int, dtype: torch.dtype) -> Tensor:
    """eps (N, ...) in x's dtype from a denoiser that is given x in `dtype`; ValueError if the shape is not x's."""
    t = torch.full((len(x),), timestep, dtype=torch.long, device=x.device)
    eps = denoiser(x.to(dtype), t)
    if eps.shape != x.shape:
        raise ValueError(f"denoiser must return shape {tuple(x.shape)}, got {tuple(eps.shape)}")
    return eps.to(x.dtype)


def global_noise(step: int, like: Tensor) -> Tensor:
    """The default `noise`: torch's global generator, in like's shape, dtype and device."""
    return torch.randn(like.shape, dtype=like.dtype, device=like.device)
