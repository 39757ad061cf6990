"""Schedules whose timesteps lie exactly where a test wants them, so that rounding to integers spoils no order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch

from ddim.diffusion import NoiseSchedule


@pytest.fixture(scope="session")
def schedule_at() -> Callable[[Sequence[float]], NoiseSchedule]:
    """Half log signal-to-noise ratios, noisiest (lowest) first -> a schedule of just these levels, t = 0 the last."""

    def make(half_log_snr: Sequence[float]) -> NoiseSchedule:
        return NoiseSchedule(torch.sigmoid(2 * torch.tensor(list(half_log_snr)[::-1], dtype=torch.float64)))

    return make


@pytest.fixture(scope="session")
def stretch() -> Callable[..., list[float]]:
    """(steps, low, high, smooth, inner) -> the levels of a grid, noisiest first.

    With smooth=True the first and last steps are shorter by 1 / steps, so that what a multistep solver loses there to
    its lower order does not hide the order it has later. `inner` are places inside each step, as shares of it.
    """

    def make(
        steps: int, low: float = -1.0, high: float = 2.0, smooth: bool = True, inner: Sequence[float] = ()
    ) -> list[float]:
        shares = [i / steps for i in range(steps + 1)]
        ends = [low + (high - low) * (u * u * (3 - 2 * u) if smooth else u) for u in shares]
        return [a + (b - a) * place for a, b in pairwise(ends) for place in (0.0, *inner)] + [ends[-1]]

    return make
