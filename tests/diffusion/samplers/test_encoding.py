"""Encoding as the inverse of deterministic sampling."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import NoiseSchedule, encode, sample, select_timesteps

LINEAR = NoiseSchedule.linear()


@pytest.mark.parametrize("spacing", ["linear", "quadratic"])
def test_round_trip_error_falls_with_the_number_of_steps(spacing, gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, mean=0.2, std=0.5)
    x_0 = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3)
    errors = []
    for num_steps in (10, 20, 40, 80, 160):
        tau = select_timesteps(1000, num_steps, spacing)
        errors.append((sample(denoiser, encode(denoiser, x_0, LINEAR, tau), LINEAR, tau) - x_0).abs().max().item())
    ratios = [before / after for before, after in pairwise(errors)]
    assert all(1.6 < ratio < 2.2 for ratio in ratios), errors
    assert errors[-1] < 0.05


def test_round_trip_from_the_latent_side(gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, std=0.5)
    tau = torch.arange(1000)
    x_T = torch.linspace(-2, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(
        encode(denoiser, sample(denoiser, x_T, LINEAR, tau), LINEAR, tau), x_T, rtol=2e-2, atol=0
    )


def test_encoding_follows_the_exact_solution_for_gaussian_data(gaussian_denoiser):
    # The flow maps the quantiles of N(mean, std^2) to those of x_T's distribution.
    mean, std = 0.2, 0.5
    denoiser = gaussian_denoiser(LINEAR, mean, std)
    x_0 = torch.linspace(-1, 1, 5, dtype=torch.float64)
    states = []
    encode(denoiser, x_0, LINEAR, torch.arange(1000), on_step=states.append)
    for state in states:
        alpha_bar = LINEAR.alpha_bar_at(state.timestep)
        scale = math.sqrt(alpha_bar * std**2 + 1 - alpha_bar)
        exact = math.sqrt(alpha_bar) * mean + scale * (x_0 - mean) / std
        torch.testing.assert_close(state.x, exact, rtol=0, atol=0.02)


@given(eps=st.floats(-2, 2), tau=st.sets(st.integers(0, 999), min_size=1, max_size=10).map(sorted))
@settings(deadline=None, max_examples=50)
def test_constant_eps_is_inverted_exactly(eps, tau):
    # With a constant eps the equation has no discretisation error.
    x_0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)

    def denoiser(x, t):
        return torch.full_like(x, eps)

    x_T = encode(denoiser, x_0, LINEAR, tau)
    alpha_bar = LINEAR.alpha_bar[tau[-1]]
    torch.testing.assert_close(x_T, alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sample(denoiser, x_T, LINEAR, tau), x_0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tau", [[0], [999], [0, 100, 900], [5, 100]])
def test_network_is_called_once_per_step_at_the_level_it_starts_from(tau):
    seen, states = [], []

    def denoiser(x, t):
        assert t.dtype == torch.long and t.shape == (2,)
        seen.append(int(t[0]))
        return 0.1 * x

    encode(denoiser, torch.ones(2, 3), LINEAR, tau, on_step=states.append)
    assert seen == [0, *tau[:-1]]
    assert [(s.previous_timestep, s.timestep) for s in states] == list(zip([-1, *tau[:-1]], tau, strict=True))


def test_nothing_is_clipped_and_low_precision_is_raised():
    x_0 = torch.full((1, 2), 5.0, dtype=torch.bfloat16)
    x_T = encode(lambda x, t: torch.zeros_like(x), x_0, LINEAR, [0, 10])
    assert x_T.dtype == torch.float32
    torch.testing.assert_close(x_T, torch.full((1, 2), 5 * float(LINEAR.alpha_bar[10].sqrt())))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"timesteps": [3, 3]}, "timesteps must increase strictly"),
        ({"x_0": torch.ones(2, dtype=torch.long)}, "x_0 must be a floating point tensor.*torch.int64"),
        ({"denoiser": lambda x, t: x[:1]}, r"denoiser must return shape \(2, 3\), got \(1, 3\)"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    arguments = {"denoiser": lambda x, t: x, "x_0": torch.ones(2, 3), "schedule": LINEAR, "timesteps": [0, 500]}
    with pytest.raises(ValueError, match=message):
        encode(**(arguments | changed))
