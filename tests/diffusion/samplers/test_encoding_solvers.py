"""Encoding by the solvers of higher order: where it leads, and the way up and back."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ddim.diffusion import SAMPLERS, NoiseSchedule, encode, sample

LINEAR = NoiseSchedule.linear()
STD = 0.5
INVERTIBLE = [name for name, sampler in SAMPLERS.items() if sampler.inverse is not None]
ORDERS = [("ddim", {}, 1), ("deis", {}, 3), ("dpmpp", {}, 2), ("lms", {}, 4), ("heun", {}, 2)]
ORDERS += [("deis", {"order": p, "interpolates": f}, p) for f in ("x0", "v") for p in (1, 2, 3, 4)]
# The corrector adds one to UniPC's order; without it the order is the predictor's.
ORDERS += [("unipc", {"order": p}, p + 1) for p in (1, 2, 3)]
ORDERS += [("unipc", {"order": p, "corrector": False}, p) for p in (1, 2, 3)]


def orders(errors):
    return [math.log2(before / after) for before, after in pairwise(errors)]


@pytest.fixture
def errors(schedule_at, stretch, gaussian_denoiser):
    def of(name, options, steps, inner=()):
        """(of x_T from the state that the first step led to, of the whole way up and back)."""
        found = []
        for count in steps:
            # The first level is so low that what its step costs is nothing to speak of.
            schedule = schedule_at(stretch(count, low=-1.0, high=8.0, inner=inner))
            exact_eps = gaussian_denoiser(schedule, std=STD)
            deviation = (schedule.alpha_bar * STD**2 + 1 - schedule.alpha_bar).sqrt()
            x_0, states = torch.ones(1, 1, dtype=torch.float64), []
            timesteps = range(0, schedule.num_timesteps, len(inner) + 1)
            x_T = SAMPLERS[name].encode(exact_eps, x_0, schedule, timesteps, on_step=states.append, **options)
            exact = states[0].x.item() * float(deviation[-1] / deviation[0])
            back = SAMPLERS[name].run(exact_eps, x_T, schedule, timesteps, **options)
            found.append((abs(x_T.item() - exact), abs(back.item() - 1)))
        return zip(*found, strict=True)

    return of


@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
def test_errors_fall_with_the_order(name, options, order, errors):
    up, round_trip = errors(name, options, (160, 320, 640))
    assert orders(up)[-1] == pytest.approx(order, abs=0.2)
    # Way up and way back make opposite errors where the order is even, which leaves the next one.
    assert orders(round_trip)[0] > order - 0.2


@pytest.mark.parametrize(("name", "order", "inner"), [("dpm2", 2, (1 / 2,)), ("dpm3", 3, (1 / 3, 2 / 3))])
def test_errors_of_solvers_that_ask_inside_a_step_fall_with_the_order(name, order, inner, errors):
    # Of dpm3 the term of third order is small, and outweighs the next one only with this many steps.
    up, round_trip = errors(name, {}, (640, 1280), inner)
    assert orders(up)[-1] == pytest.approx(order, abs=0.2)
    assert orders(round_trip)[0] > order - 0.2


def test_ipndm_encodes_with_a_second_order_error_on_smooth_steps(errors):
    up, _ = errors("ipndm", {}, (320, 640))
    assert orders(up)[0] > 1.8


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_first_step_costs_the_square_of_the_first_noise_level(name, gaussian_denoiser):
    exact = gaussian_denoiser(LINEAR, std=STD)
    x_0 = torch.ones(1, 1, dtype=torch.float64)
    found = {}
    for t in (0, 40, 80):
        x_T = SAMPLERS[name].encode(exact, x_0, LINEAR, [t])
        ratio = math.sqrt((1 - LINEAR.alpha_bar[t]) / LINEAR.alpha_bar[t])
        found[t] = abs(SAMPLERS[name].run(exact, x_T, LINEAR, [t]).item() - 1) / ratio**2
    assert found[40] == pytest.approx(found[80], rel=0.5)
    assert found[0] < 0.01 * found[40]


@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("tau", [[0], [999], [0, 100, 900], [5, 60, 100, 200, 500]])
def test_constant_predictions_are_inverted_exactly(name, tau):
    x_0 = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    states = []
    x_T = SAMPLERS[name].encode(lambda x, t: torch.full_like(x, 0.3), x_0, LINEAR, tau, on_step=states.append)
    alpha_bar = LINEAR.alpha_bar[tau[-1]]
    torch.testing.assert_close(x_T, alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * 0.3, rtol=1e-9, atol=1e-9)
    assert [(s.previous_timestep, s.timestep) for s in states] == list(zip([-1, *tau[:-1]], tau, strict=True))
    assert [s.step for s in states] == list(range(len(tau)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deis", {"order": 1}),
        ("dpmpp", {"order": 1}),
        ("ipndm", {"order": 1}),
        ("unipc", {"order": 1, "corrector": False}),
    ],
)
def test_order_one_is_the_encoding_of_ddim(name, options):
    x_0 = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def denoiser(x, t):
        return torch.tanh(0.8 * x + (t.reshape(-1, 1) / 300).sin())

    for tau in ([0], [3, 70, 71, 500, 999]):
        mine = SAMPLERS[name].encode(denoiser, x_0, LINEAR, tau, **options)
        torch.testing.assert_close(mine, encode(denoiser, x_0, LINEAR, tau), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            SAMPLERS[name].run(denoiser, x_0, LINEAR, tau, **options),
            sample(denoiser, x_0, LINEAR, tau),
            rtol=1e-12,
            atol=1e-12,
        )


def test_a_sampler_without_an_inverse_says_so():
    with pytest.raises(ValueError, match=r"^this sampler cannot be run from the data to x_T$"):
        SAMPLERS["sde"].encode(lambda x, t: x, torch.ones(1, 1), LINEAR, [0, 5])
