"""Searched grids: the dynamic programme against brute force, the prices against direct computation."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import SPACINGS, NoiseSchedule, NoiseSource, sample, select_timesteps
from ddim.diffusion.likelihood.bound import bound_terms, variational_bound
from ddim.diffusion.search.elbo import bound_costs, elbo
from ddim.diffusion.search.gits import gits, jump_costs, teacher_trajectory
from ddim.diffusion.search.paths import candidate_timesteps, cheapest_paths

LINEAR = NoiseSchedule.linear()


def latents(count: int, *shape: int, first: int = 0) -> torch.Tensor:
    return NoiseSource(3).initial(torch.arange(first, first + count), shape).double()


def price(costs: torch.Tensor, nodes: tuple[int, ...], coefficient: float) -> float:
    edges = pairwise((0, *nodes, len(costs) - 1))
    return sum(coefficient**number * float(costs[i, j]) for number, (i, j) in enumerate(edges))


@given(
    size=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    coefficient=st.sampled_from([1.0, 1.15, 0.5]),
    blocked=st.floats(0, 0.4),
)
@settings(deadline=None, max_examples=60)
def test_cheapest_paths_are_those_of_brute_force(size, seed, coefficient, blocked):
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(size + 2, size + 2, generator=generator, dtype=torch.float64)
    costs[torch.rand(costs.shape, generator=generator) < blocked] = math.inf
    candidates = [10 * i for i in range(size)]
    for steps in range(1, size + 1):
        prices = {nodes: price(costs, nodes, coefficient) for nodes in combinations(range(1, size + 1), steps)}
        best = min(prices, key=lambda nodes: prices[nodes])
        if math.isinf(prices[best]):
            with pytest.raises(ValueError, match=f"costs leave no path of {steps} steps"):
                cheapest_paths(costs, candidates, [steps], coefficient=coefficient)
            continue
        (found,) = cheapest_paths(costs, candidates, [steps], coefficient=coefficient)
        assert found.cost == pytest.approx(prices[best], rel=1e-12)
        assert found.timesteps == tuple(10 * (size - node) for node in reversed(best))


def test_all_wanted_numbers_come_from_one_run_in_their_order_and_ties_start_noisier():
    costs = torch.ones(6, 6, dtype=torch.float64)
    found = cheapest_paths(costs, [0, 1, 2, 3], [3, 1, 4])
    assert [result.timesteps for result in found] == [(1, 2, 3), (3,), (0, 1, 2, 3)]
    assert cheapest_paths(costs, [0, 1, 2, 3], []) == ()


@pytest.mark.parametrize(
    ("size", "wanted", "message"),
    [(5, [1], r"costs must have shape \(6, 6\) for 4 candidates"), (6, [5], r"in \[1, 4\], got 5"), (6, [0], "got 0")],
)
def test_bad_searches_are_refused(size, wanted, message):
    with pytest.raises(ValueError, match=message):
        cheapest_paths(torch.ones(size, size), [0, 1, 2, 3], wanted)


@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule.cosine(), NoiseSchedule.linear(50)])
@pytest.mark.parametrize("count", [2, 5, 50])
def test_candidates_reach_both_ends(schedule, count):
    tau = candidate_timesteps(schedule, count)
    assert tau[0] == 0
    assert tau[-1] == schedule.num_timesteps - 1
    assert count / 2 <= len(tau) <= count + 1
    assert bool((tau.diff() > 0).all())


def nonlinear(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x + (t / 400).reshape(-1, 1, 1).sin())


@pytest.mark.parametrize("order", [1, 2])
def test_prices_are_the_distances_of_real_jumps_from_the_teacher(order):
    candidates, x_T = [0, 30, 200, 600, 999], latents(7, 2, 3)
    teacher = teacher_trajectory(nonlinear, x_T, LINEAR, candidates, batch_size=3)
    found = jump_costs(teacher, weighting="none", order=order)
    states, eps = [x_T], []
    sample(nonlinear, x_T, LINEAR, candidates, on_step=lambda s: (states.append(s.x), eps.append(s.eps)))
    levels = [*reversed(candidates), -1]
    signal = [math.sqrt(LINEAR.alpha_bar_at(t)) for t in levels]
    sigma = [math.sqrt(1 - a * a) / a for a in signal]
    assert teacher.calls == 7 * 5
    assert teacher.timesteps == (999, 600, 200, 30, 0)
    for i, j in combinations(range(6), 2):
        slope = eps[i] if order == 1 or j == 5 else (eps[i] + eps[j]) / 2
        miss = states[i] / signal[i] + (sigma[j] - sigma[i]) * slope - states[j] / signal[j]
        expected = miss.square().mean(dim=(1, 2)).sqrt().mean()
        assert float(found[i + 1, j + 1]) == pytest.approx(float(expected), rel=1e-6, abs=1e-6)
    spread = torch.stack([(x / a).var(dim=0, correction=0).mean().sqrt() for x, a in zip(states, signal, strict=True)])
    torch.testing.assert_close(teacher.spread(), spread, rtol=1e-9, atol=1e-9)
    weighted = jump_costs(teacher, order=order)
    torch.testing.assert_close(weighted[1:, 1:].triu(1), (found[1:, 1:] * spread[-1] / spread).triu(1).nan_to_num(0))
    for j in range(5):
        miss = (x_T / signal[j] - states[j] / signal[j]).square().mean(dim=(1, 2)).sqrt().mean()
        assert float(weighted[0, j + 1]) == pytest.approx(float(miss * spread[-1] / spread[j]), rel=1e-6, abs=1e-6)
    assert found[0].isfinite().tolist() == [False, True, False, False, False, False, False]


def test_a_teachers_batches_change_nothing():
    x_T = latents(7, 2, 3)
    whole = gits(nonlinear, x_T, LINEAR, [2, 5], candidates=range(0, 1000, 50))
    assert gits(nonlinear, x_T, LINEAR, [2, 5], candidates=range(0, 1000, 50), batch_size=2) == whole
    assert [len(found.timesteps) for found in whole] == [2, 5]


def gaussian_error(denoiser, tau) -> float:
    """Distance of DDIM's x_0 from that of 1,000 steps, for latents that no search has seen."""
    x_T = latents(64, 4, first=1000)
    reference = sample(denoiser, x_T, LINEAR, range(1000))
    return float((sample(denoiser, x_T, LINEAR, tau) - reference).square().mean().sqrt())


@pytest.mark.parametrize("std", [0.2, 0.5])
def test_gits_beats_every_fixed_grid_on_gaussian_data(std, gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, std=std)
    found = gits(denoiser, latents(64, 4), LINEAR, [3, 5, 10])
    for steps, searched in zip((3, 5, 10), found, strict=True):
        fixed = [
            gaussian_error(denoiser, select_timesteps(1000, steps, spacing, schedule=LINEAR)) for spacing in SPACINGS
        ]
        assert gaussian_error(denoiser, searched.timesteps) < 0.8 * min(fixed)
    # The price is the error of x_0, as far as errors add up.
    assert found[1].cost == pytest.approx(gaussian_error(denoiser, found[1].timesteps), rel=0.5)


def test_the_papers_prices_beat_fixed_grids_with_the_same_ends(gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, std=0.5)
    (found,) = gits(denoiser, latents(64, 4), LINEAR, [5], weighting="none")
    assert found.timesteps[-1] == 999
    for spacing in ("trailing", "karras", "logsnr"):
        tau = select_timesteps(1000, 5, spacing, schedule=LINEAR)
        assert gaussian_error(denoiser, found.timesteps) < gaussian_error(denoiser, tau)


def test_a_search_over_all_of_few_candidates_finds_ddims_best(gaussian_denoiser):
    """Errors of Gaussian data add up almost exactly when steps are small: the search and brute force nearly agree."""
    denoiser = gaussian_denoiser(LINEAR, std=0.5)
    candidates = [0, 50, 120, 250, 400, 600, 800]
    (found,) = gits(denoiser, latents(64, 4), LINEAR, [4], candidates=candidates)
    errors = sorted(gaussian_error(denoiser, tau) for tau in combinations(candidates, 4))
    assert gaussian_error(denoiser, found.timesteps) <= errors[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "l2"}, "weighting must be one of contraction, none, got 'l2'"),
        ({"order": 3}, "order must be 1 or 2, got 3"),
        ({"x_T": latents(1, 2, 3)}, "at least two latents"),
        ({"x_T": latents(0, 2, 3)}, "at least one latent"),
        ({"candidates": [5, 5]}, "increase strictly"),
        ({"wanted": [21]}, r"in \[1, 20\], got 21"),
    ],
)
def test_bad_gits_are_refused(options, message):
    arguments = {"x_T": latents(3, 2, 3), "wanted": [2], "candidates": range(0, 1000, 50), **options}
    with pytest.raises(ValueError, match=message):
        gits(nonlinear, schedule=LINEAR, **arguments)


@pytest.fixture(scope="module")
def terms():
    std = 0.2
    x = ((std * latents(40, 6)).clamp(-1, 1).add(1) * 127.5).round() / 127.5 - 1

    def denoiser(x_t, t):
        alpha_bar = LINEAR.alpha_bar[t].unsqueeze(1)
        return (1 - alpha_bar).sqrt() * x_t / (alpha_bar * std**2 + 1 - alpha_bar)

    return bound_terms(denoiser, x, LINEAR, range(1000), NoiseSource(1).bind(torch.arange(40), "validation"))


@pytest.mark.parametrize("variance", ["eta", "sigma_hat"])
@pytest.mark.parametrize("steps", [1, 3, 5, 20])
def test_elbo_is_below_the_bound_of_every_fixed_grid(steps, variance, terms):
    (found,) = elbo(terms, [steps], variance=variance)
    bits = variational_bound(terms, found.timesteps, variance=variance).total.mean()
    assert found.cost == pytest.approx(float(bits), rel=1e-10)
    for spacing in SPACINGS:
        tau = select_timesteps(1000, steps, spacing, schedule=LINEAR)
        assert found.cost <= float(variational_bound(terms, tau, variance=variance).total.mean()) + 1e-12


def test_elbo_equals_brute_force_over_bounds(terms):
    few = [0, 5, 40, 150, 400, 700, 999]
    columns = [terms.timesteps.index(t) for t in few]
    part = type(terms)(LINEAR, tuple(few), terms.error[:, columns], terms.decoder[:, columns], terms.prior[:, columns])
    for steps in (1, 2, 4, 7):
        bits = {tau: float(variational_bound(part, tau).total.mean()) for tau in combinations(few, steps)}
        (found,) = elbo(part, [steps])
        assert found.timesteps == min(bits, key=lambda tau: bits[tau])
        assert found.cost == pytest.approx(min(bits.values()), rel=1e-12)
    assert bound_costs(part).shape == (9, 9)
