"""The levels inside a step: what the denoiser is told, where the state is, and how often it is asked."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.samplers.levels import level_at
from ddim.diffusion.samplers.single_step import dpm2, dpm3, dpm_calls, encode_heun, heun, heun_calls, inner_levels

LINEAR = NoiseSchedule.linear()
taus = st.sets(st.integers(0, 999), min_size=1, max_size=12).map(sorted)


def timesteps_asked(function, tau, **options):
    asked = []

    def denoiser(x, t):
        asked.append(int(t[0]))
        return 0.1 * x

    function(denoiser, torch.ones(1, 1), LINEAR, tau, **options)
    return asked


@pytest.mark.parametrize("function", [dpm2, dpm3])
@given(tau=taus, eps=st.floats(-2, 2))
@settings(deadline=None, max_examples=30)
def test_the_state_is_at_the_level_of_the_timestep_that_is_asked(function, tau, eps):
    # With a constant eps every state is signal x_0 + sigma eps at its own level, whichever timestep that is.
    x_0, top = 0.7, LINEAR.alpha_bar[tau[-1]]
    seen = []

    def denoiser(x, t):
        seen.append((int(t[0]), x.item()))
        return torch.full_like(x, eps)

    x_T = (top.sqrt() * x_0 + (1 - top).sqrt() * eps).reshape(1, 1)
    assert function(denoiser, x_T, LINEAR, tau).item() == pytest.approx(x_0, abs=1e-9)
    for t, x in seen:
        assert x == pytest.approx(math.sqrt(LINEAR.alpha_bar[t]) * x_0 + math.sqrt(1 - LINEAR.alpha_bar[t]) * eps)
    assert [t for t, _ in seen] == sorted({t for t, _ in seen}, reverse=True)


@given(tau=taus)
@settings(deadline=None, max_examples=50)
def test_calls_are_counted_as_they_are_made(tau):
    assert len(timesteps_asked(heun, tau)) == heun_calls(len(tau)) == 2 * len(tau) - 1
    assert len(timesteps_asked(encode_heun, tau)) == 2 * len(tau) - 1
    assert len(timesteps_asked(dpm2, tau)) == dpm_calls(2, LINEAR, tau)
    assert len(timesteps_asked(dpm3, tau)) == dpm_calls(3, LINEAR, tau)


@pytest.mark.parametrize(
    ("tau", "two", "three"),
    [
        ([500], 1, 1),
        ([500, 501], 2, 2),
        # One timestep inside is enough for order 2 and not for order 3.
        ([500, 502], 3, 3),
        ([500, 503], 3, 4),
        ([100, 400, 900], 5, 7),
        # Near the data a few timesteps are far apart in lambda: none is near a third of the way.
        ([0, 3], 3, 3),
    ],
)
def test_a_step_that_is_too_short_costs_less(tau, two, three):
    assert (dpm_calls(2, LINEAR, tau), dpm_calls(3, LINEAR, tau)) == (two, three)


def test_trap_8_steps_are_timesteps_and_heun_calls_two_each_but_the_last():
    assert timesteps_asked(heun, [10, 400, 900]) == [900, 400, 400, 10, 10]
    assert timesteps_asked(heun, [400, 900], end=10) == [900, 400, 400, 10]
    assert heun_calls(2, end=10) == 4


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("high", "low"), [(900, 400), (300, 20), (999, 0), (41, 30)])
def test_inner_levels_are_the_nearest_in_the_log_signal_to_noise_ratio(order, high, low):
    def lam(t):
        return 0.5 * math.log(LINEAR.alpha_bar[t] / (1 - LINEAR.alpha_bar[t]))

    found = inner_levels(LINEAR, level_at(LINEAR, high), level_at(LINEAR, low), order)
    assert len(found) == order - 1
    for level, fraction in zip(found, (1 / 2,) if order == 2 else (1 / 3, 2 / 3), strict=True):
        wanted = lam(high) + fraction * (lam(low) - lam(high))
        best = min(range(low + 1, high), key=lambda t: abs(lam(t) - wanted))
        assert level.timestep == best
