"""How fast the solvers' error falls, on data whose flow is known in closed form, and what order 1 is."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ddim.diffusion import NoiseSchedule, sample, select_timesteps
from ddim.diffusion.samplers.exponential import exponential
from ddim.diffusion.samplers.ipndm import ipndm
from ddim.diffusion.samplers.single_step import dpm2, dpm3, heun
from ddim.diffusion.samplers.stochastic import stochastic
from ddim.diffusion.samplers.unipc import unipc

LINEAR = NoiseSchedule.linear()
STD = 0.5


def orders(errors) -> list[float]:
    return [math.log2(before / after) for before, after in pairwise(errors)]


def flow(schedule, start, end) -> float:
    """What the probability flow multiplies a state by, for data N(0, STD^2)."""
    variance = schedule.alpha_bar * STD**2 + 1 - schedule.alpha_bar
    return float((variance[end] / variance[start]).sqrt())


@pytest.fixture
def error(schedule_at, stretch, gaussian_denoiser):
    def of(function, steps, *, smooth=True, inner=(), **options) -> float:
        schedule = schedule_at(stretch(steps, smooth=smooth, inner=inner))
        timesteps = [(len(inner) + 1) * (i + 1) for i in range(steps)]
        x = torch.ones(1, 1, dtype=torch.float64)
        reached = function(gaussian_denoiser(schedule, std=STD), x, schedule, timesteps, end=0, **options)
        return abs(reached.item() - flow(schedule, timesteps[-1], 0))

    return of


@pytest.mark.parametrize(
    ("function", "options", "order"),
    [
        (sample, {}, 1),
        *[(exponential, {"order": p, "interpolates": f}, p) for f in ("eps", "x0", "v") for p in (1, 2, 3, 4)],
        *[(unipc, {"order": p, "variant": b}, p + 1) for b in ("bh1", "bh2") for p in (1, 2, 3)],
        *[(unipc, {"order": p, "variant": b, "corrector": False}, p) for b in ("bh1", "bh2") for p in (1, 2, 3)],
        (heun, {}, 2),
        # Its steps differ smoothly, which is worth one order; on other grids it has the first only.
        (ipndm, {"order": 4}, 2),
    ],
)
def test_error_falls_with_the_order(function, options, order, error):
    found = orders([error(function, steps, **options) for steps in (80, 160, 320)])
    assert found[-1] == pytest.approx(order, abs=0.2), found


@pytest.mark.parametrize("inner", [(1 / 2,), (0.42,), (0.6,)])
def test_dpm2_has_second_order_wherever_the_inner_timestep_is(inner, error):
    assert orders([error(dpm2, s, smooth=False, inner=inner) for s in (40, 80)]) == pytest.approx([2], abs=0.2)


@pytest.mark.parametrize("inner", [(1 / 3, 2 / 3), (0.27, 0.74), (0.41, 0.58)])
def test_dpm3_has_third_order_wherever_the_inner_timesteps_are(inner, error):
    # At (0.41, 0.58) the published weights, which suppose 1/3 and 2/3, would leave second order.
    assert orders([error(dpm3, s, smooth=False, inner=inner) for s in (40, 80)]) == pytest.approx([3], abs=0.2)


def power_flow(schedule):
    """eps = g(rho) x / signal with g = (R - rho)^4: flat at the start, so that a multistep start costs nothing."""
    ratio = ((1 - schedule.alpha_bar) / schedule.alpha_bar).sqrt()

    def denoiser(x, t):
        return (ratio[-1] - ratio[t][:, None]) ** 4 * x / schedule.alpha_bar[t][:, None].sqrt()

    start, end = ratio[-1], ratio[0]
    exact = math.exp(-((start - end) ** 5) / 5) * (schedule.alpha_bar[0] / schedule.alpha_bar[-1]).sqrt()
    return denoiser, float(exact)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("function", [ipndm, exponential])
def test_equal_steps_in_sigma_give_ipndm_its_order(function, order, schedule_at):
    errors = []
    for steps in (200, 400):
        ratios = [1.5 + (0.1 - 1.5) * i / steps for i in range(steps + 1)]
        schedule = schedule_at([-math.log(r) for r in ratios])
        denoiser, exact = power_flow(schedule)
        x = torch.ones(1, 1, dtype=torch.float64)
        reached = function(denoiser, x, schedule, range(1, steps + 1), order=order, end=0).item()
        errors.append(abs(reached - exact))
    assert orders(errors) == pytest.approx([order], abs=0.2)


def test_equal_steps_in_sigma_make_ipndm_and_the_variable_step_method_one(schedule_at):
    schedule = schedule_at([-math.log(2 - 0.19 * i) for i in range(11)])
    denoiser, _ = power_flow(schedule)
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for order in (1, 2, 3, 4):
        mine, other = (f(denoiser, x, schedule, range(11), order=order) for f in (ipndm, exponential))
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def alternating(steps, ratio):
    """Levels whose steps in sigma are by turns `ratio` times as long as each other: never smooth."""
    lengths = [1.0, ratio] * (steps // 2)
    places = [sum(lengths[:i]) / sum(lengths) for i in range(steps + 1)]
    return [-math.log(1.5 - 1.4 * place) for place in places]


def test_trap_1_and_2_constant_weights_have_first_order_on_uneven_steps_and_the_right_ones_third(schedule_at):
    errors = {ipndm: [], exponential: []}
    for steps in (80, 160):
        schedule = schedule_at(alternating(steps, 3.0))
        denoiser, exact = power_flow(schedule)
        x = torch.ones(1, 1, dtype=torch.float64)
        for function, found in errors.items():
            reached = function(denoiser, x, schedule, range(1, steps + 1), order=3, end=0).item()
            found.append(abs(reached - exact))
    assert orders(errors[exponential])[0] == pytest.approx(3, abs=0.2)
    assert orders(errors[ipndm])[0] == pytest.approx(1, abs=0.2)


ETA_ZERO = {"eta": 0.0}


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (exponential, {"order": 1, "interpolates": "eps"}),
        (exponential, {"order": 1, "interpolates": "x0"}),
        (ipndm, {"order": 1}),
        (unipc, {"order": 1, "corrector": False}),
        (stochastic, {"order": 1, "eta": 0.0}),
    ],
)
@pytest.mark.parametrize("tau", [[0], [999], [0, 1, 2, 500], *[select_timesteps(1000, 20, s) for s in ("linear",)]])
def test_order_one_is_ddim(function, options, tau):
    x_T = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def denoiser(x, t):
        return torch.tanh(0.8 * x + (t.reshape(-1, 1) / 300).sin())

    ours = function(denoiser, x_T, LINEAR, tau, **options)
    torch.testing.assert_close(ours, sample(denoiser, x_T, LINEAR, tau), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("function", [heun, dpm2, dpm3])
def test_a_single_step_solver_without_room_is_ddim(function):
    # One timestep has only the step to the clean data; neighbouring ones have no timestep inside.
    def denoiser(x, t):
        return torch.tanh(0.8 * x + (t.reshape(-1, 1) / 300).sin())

    x_T = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for tau in [[700]] if function is heun else [[700], [3, 4, 5]]:
        ours = function(denoiser, x_T, LINEAR, tau)
        torch.testing.assert_close(ours, sample(denoiser, x_T, LINEAR, tau), rtol=1e-12, atol=1e-12)


def test_order_one_of_v_is_euler_in_the_angle():
    x_T = torch.ones(1, 1, dtype=torch.float64)
    here, there = (math.acos(LINEAR.alpha_bar[t] ** 0.5) for t in (500, 100))
    v = math.cos(here) * 0.3 - math.sin(here) * (1 - math.sin(here) * 0.3) / math.cos(here)
    ours = exponential(lambda x, t: torch.full_like(x, 0.3), x_T, LINEAR, [500], order=1, interpolates="v", end=100)
    assert ours.item() == pytest.approx(1 + (there - here) * v, rel=1e-12)


@pytest.mark.parametrize("interpolates", ["eps", "x0"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_what_is_interpolated_is_integrated_exactly_up_to_the_degree(interpolates, order, schedule_at):
    # A prediction that is a polynomial of degree order - 1 in the solver's own variable, on an irregular grid, leaves
    # an error only in the first steps, which have fewer points: here the polynomial is constant there.
    levels = [-1.0, -0.8, -0.7, -0.3, -0.1, 0.6, 0.8]
    schedule = schedule_at(levels)
    top = len(levels) - 1
    variable = [math.exp(-lam) for lam in levels] if interpolates == "eps" else levels
    # Only the last step is judged, from the level 1 to 0, so every state before it may be what it is.
    coefficients = [0.3, -0.5, 0.7, 0.2][:order]

    def f(u):
        return sum(c * u**m for m, c in enumerate(coefficients))

    def denoiser(x, t):
        value = f(variable[top - int(t[0])])
        if interpolates == "eps":
            return torch.full_like(x, value)
        alpha_bar = schedule.alpha_bar[t[0]]
        return (x - alpha_bar.sqrt() * value) / (1 - alpha_bar).sqrt()

    states = []
    x = torch.ones(1, 1, dtype=torch.float64)
    exponential(
        denoiser,
        x,
        schedule,
        range(1, top + 1),
        order=order,
        interpolates=interpolates,
        end=0,
        on_step=lambda s: states.append(s.x.item()),
    )
    before, after = states[-2:]
    (a, s), (a2, s2) = (
        (schedule.alpha_bar[t].sqrt().item(), (1 - schedule.alpha_bar[t]).sqrt().item()) for t in (1, 0)
    )
    steps = 20000
    u, u2 = variable[-2:]
    middles = [u + (u2 - u) * (i + 0.5) / steps for i in range(steps)]
    weight = (lambda w: 1.0) if interpolates == "eps" else math.exp
    integral = sum(f(w) * weight(w) for w in middles) * (u2 - u) / steps
    exact = a2 * (before / a + integral) if interpolates == "eps" else s2 * (before / s + integral)
    assert after == pytest.approx(exact, abs=1e-8)
