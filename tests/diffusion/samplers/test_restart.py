"""Restart: which stretches are run, what the jumps do to the distribution, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch

from ddim.diffusion import NoiseSchedule, sample, select_timesteps
from ddim.diffusion.samplers.exponential import exponential
from ddim.diffusion.samplers.restart import Segment, restart, restart_plan
from ddim.diffusion.samplers.single_step import heun

LINEAR = NoiseSchedule.linear()
TAU = select_timesteps(1000, 18, "quadratic")


def ratio(t):
    return math.sqrt((1 - LINEAR.alpha_bar[t]) / LINEAR.alpha_bar[t])


def test_the_plan_goes_down_jumps_up_k_times_and_ends_at_the_data():
    plan = restart_plan(LINEAR, TAU, t_min=0.06, t_max=0.3, restarts=2, restart_steps=4)
    assert [s.renoised for s in plan] == [False, True, True, False]
    low = plan[0].end
    assert low == min(TAU.tolist(), key=lambda t: abs(math.log(ratio(t) / 0.06)))
    assert [*plan[-1].timesteps, *plan[0].timesteps] == TAU.tolist()
    assert (plan[-1].timesteps[-1], plan[-1].end) == (low, -1)
    for jump in plan[1:3]:
        assert jump.end == low and len(jump.timesteps) == 3
        wanted = [(0.3 ** (1 / 7) + i / 3 * (ratio(low) ** (1 / 7) - 0.3 ** (1 / 7))) ** 7 for i in (2, 1, 0)]
        assert [ratio(t) for t in jump.timesteps] == pytest.approx(wanted, rel=0.03)


def test_no_restart_is_the_solver_itself_when_it_keeps_nothing():
    x_T = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(
        restart(lambda x, t: torch.sin(x), x_T, LINEAR, TAU, solver=heun, restarts=0),
        heun(lambda x, t: torch.sin(x), x_T, LINEAR, TAU),
    )


def test_close_levels_are_not_visited_twice():
    plan = restart_plan(LINEAR, [0, 5, 6, 500], t_min=ratio(5), t_max=ratio(7), restarts=1, restart_steps=9)
    assert plan[1] == Segment((6, 7), 5, renoised=True)


@pytest.mark.parametrize("tau", [[0], [0, 100, 200], select_timesteps(1000, 10)])
def test_a_coarse_grid_has_a_place_to_restart_from(tau):
    plan = restart_plan(LINEAR, tau)
    assert all(segment.timesteps and segment.end < segment.timesteps[0] for segment in plan)


def test_the_jump_is_upwards_even_where_the_nearest_timestep_is_the_one_above():
    plan = restart_plan(LINEAR, [0, 88, 300], t_min=0.29, t_max=ratio(88), restarts=1)
    assert (plan[1].end, plan[1].timesteps[-1]) == (0, 88)


@pytest.mark.parametrize("solver", [heun, exponential, sample])
def test_the_distribution_of_gaussian_data_is_kept(solver, gaussian_denoiser):
    # x_0 is affine in x_T and the K noises: one row of the batch for each.
    exact, restarts = gaussian_denoiser(LINEAR, mean=0.3, std=0.5), 3
    x_T = torch.zeros(restarts + 2, 1, dtype=torch.float64)
    x_T[1] = 1

    def one_direction(step, like):
        z = torch.zeros_like(like)
        z[step + 2] = 1
        return z

    x_0 = restart(
        exact,
        x_T,
        LINEAR,
        torch.arange(0, 1000, 2),
        solver=solver,
        restarts=restarts,
        restart_steps=60,
        noise=one_direction,
    )
    assert x_0[0].item() == pytest.approx(0.3, abs=5e-3)
    parts = (x_0[1:] - x_0[0]).squeeze()
    assert parts.norm().item() == pytest.approx(0.5, abs=1e-2)
    assert parts[1:].abs().min() > 0.05


def test_a_jump_is_the_forward_process_between_the_two_levels():
    seen, jumped = [], []

    def denoiser(x, t):
        seen.append((int(t[0]), x.clone()))
        return torch.full_like(x, 0.4)

    def noise(step, like):
        jumped.append((len(seen), like.clone()))
        return torch.full_like(like, 0.7)

    tau = [0, 150, 600]
    x_T = torch.ones(1, 2, dtype=torch.float64)
    restart(denoiser, x_T, LINEAR, tau, solver=sample, t_min=ratio(150), t_max=ratio(400), restarts=1, noise=noise)
    (number, before), kept = jumped[0], LINEAR.alpha_bar[400] / LINEAR.alpha_bar[150]
    assert seen[number][0] == 400
    torch.testing.assert_close(seen[number][1], kept.sqrt() * before + (1 - kept).sqrt() * 0.7, rtol=1e-12, atol=0)


def test_it_contracts_an_error_of_the_start(gaussian_denoiser):
    exact = gaussian_denoiser(LINEAR, std=0.5)
    x_T = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    noise = lambda step, like: torch.zeros_like(like)  # noqa: E731
    apart = [
        restart(exact, x_T, LINEAR, TAU, solver=heun, t_max=1.0, restarts=k, noise=noise).diff(dim=0).item()
        for k in (0, 1, 2)
    ]
    assert apart[0] > 1.5 * apart[1] > 2 * apart[2] > 0


def test_steps_are_numbered_through_and_the_jumps_are_not_told():
    states, asked = [], []
    restart(
        lambda x, t: 0.1 * x,
        torch.ones(1, 1),
        LINEAR,
        TAU,
        solver=heun,
        noise=lambda i, like: asked.append(i) or like,
        on_step=states.append,
    )
    plan = restart_plan(LINEAR, TAU)
    assert [s.step for s in states] == list(range(sum(len(s.timesteps) for s in plan)))
    assert asked == [0, 1]
    assert states[-1].previous_timestep == -1


def test_the_denoiser_gets_the_dtype_of_the_latents_all_along():
    dtypes = set()

    def denoiser(x, t):
        dtypes.add(x.dtype)
        return 0.1 * x

    x_0 = restart(denoiser, torch.ones(1, 2, dtype=torch.bfloat16), LINEAR, TAU, solver=heun)
    assert dtypes == {torch.bfloat16}
    assert x_0.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_min": 0.0}, "^0 < t_min < t_max must hold, got t_min=0.0, t_max=0.3$"),
        ({"t_min": 0.3}, "^0 < t_min < t_max must hold, got t_min=0.3, t_max=0.3$"),
        ({"t_min": "low"}, "^t_min must be a finite number >= 0, got 'low'$"),
        ({"t_max": float("inf")}, "^t_max must be a finite number >= 0, got inf$"),
        ({"restarts": -1}, "^restarts must be an integer >= 0, got -1$"),
        ({"restart_steps": 1}, "^restart_steps must be an integer >= 2, got 1$"),
        ({"timesteps": [500, 900]}, "^t_max=0.3 must lie above the first timestep, 500, and is at timestep 88$"),
        ({"noise": lambda step, like: like[:, :1]}, r"^noise must return shape \(2, 3\), got \(2, 1\)$"),
    ],
)
def test_wrong_options_are_refused(options, message):
    arguments = {"x_T": torch.ones(2, 3), "schedule": LINEAR, "timesteps": TAU, "solver": heun}
    with pytest.raises(ValueError, match=message):
        restart(lambda x, t: x, **(arguments | options))
