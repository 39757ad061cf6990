"""tau, the increasing sub-sequence of {0, ..., T - 1} that is sampled (DDIM section 4.2 and appendix D.2).

The official code spaces tau quadratically for CIFAR10 and linearly elsewhere; which one is used moves the FID.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral

import torch
from torch import Tensor

SPACINGS = ("linear", "quadratic")


def select_timesteps(num_timesteps: int, num_steps: int, spacing: str = "linear") -> Tensor:
    """tau as an increasing LongTensor (S,) that starts at 0.

    "linear": floor(i T / S) for i < S, exactly S values. Where S divides T it is the official `range(0, T, T // S)`,
    which elsewhere gives more than S (31 for S = 30).

    "quadratic": the official int(linspace(0, sqrt(0.8 T), S)^2). Small indices repeat; a repeated timestep changes
    nothing, so it is dropped and fewer than S values may come back (49 for S = 50 and T = 1000).

    With S = 1 both rules give tau = (0,); `explicit_timesteps` can start a single step elsewhere.

    Raises ValueError unless 1 <= num_steps <= num_timesteps and spacing is one of SPACINGS.
    """
    if not _is_int(num_timesteps) or num_timesteps < 1:
        raise ValueError(f"num_timesteps must be an integer >= 1, got {num_timesteps!r}")
    if not _is_int(num_steps) or not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps must be an integer in [1, {num_timesteps}], got {num_steps!r}")
    if spacing == "linear":
        return torch.tensor([i * num_timesteps // num_steps for i in range(num_steps)], dtype=torch.long)
    if spacing == "quadratic":
        last = math.sqrt(0.8 * num_timesteps)
        width = last / max(num_steps - 1, 1)
        roots = [i * width for i in range(num_steps - 1)] + [last if num_steps > 1 else 0.0]
        return torch.tensor(sorted({int(root * root) for root in roots}), dtype=torch.long)
    raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


def explicit_timesteps(num_timesteps: int, timesteps: Sequence[int] | Tensor) -> Tensor:
    """The given timesteps as a LongTensor (S,) on the CPU, checked.

    Raises ValueError unless they are integers, at least one, strictly increasing, all in [0, num_timesteps - 1].
    """
    given = timesteps.tolist() if isinstance(timesteps, Tensor) else timesteps
    values = list(given) if isinstance(given, Iterable) else []
    if not values:
        raise ValueError(f"timesteps must be a list of at least one integer, got {timesteps!r}")
    for value in values:
        if not _is_int(value):
            raise ValueError(f"timesteps must be integers, got {value!r}")
        if not 0 <= value < num_timesteps:
            raise ValueError(f"timesteps must be in [0, {num_timesteps - 1}], got {value}")
    for before, after in pairwise(values):
        if after <= before:
            raise ValueError(f"timesteps must increase strictly, got {after} after {before}")
    return torch.tensor(values, dtype=torch.long)


def _is_int(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
