"""Data distributions whose best noise prediction is known exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ddim.diffusion import Denoiser, NoiseSchedule


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gaussian_denoiser() -> Callable[..., Denoiser]:
    """(schedule, mean, std) -> E[eps | x_t] for data N(mean, std^2); std = 0 is a point mass."""

    def make(schedule: NoiseSchedule, mean: float = 0.0, std: float = 0.5) -> Denoiser:
        def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            alpha_bar = schedule.alpha_bar[t].reshape(-1, *[1] * (x.ndim - 1))
            centred = x - alpha_bar.sqrt() * mean
            return ((1 - alpha_bar).sqrt() * centred / (alpha_bar * std**2 + 1 - alpha_bar)).to(x.dtype)

        return denoiser

    return make
