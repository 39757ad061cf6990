"""Stochastic solvers and eta over the steps: variance, order, and what eta = 0 and order 1 are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import NoiseSchedule, NoiseSource, sample, select_timesteps, step_table
from ddim.diffusion.samplers.etas import ETA_SCHEDULES, eta_of_tau, eta_per_step
from ddim.diffusion.samplers.exponential import exponential
from ddim.diffusion.samplers.generalized import eta_coefficients
from ddim.diffusion.samplers.stochastic import stochastic

LINEAR = NoiseSchedule.linear()
TAU = [0, 3, 40, 200, 350, 600, 800, 999]
taus = st.sets(st.integers(0, 999), min_size=1, max_size=12).map(sorted)


def denoiser(x, t):
    return torch.tanh(0.8 * x + (t.reshape(-1, 1) / 300).sin())


def latents():
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def noise(step, like):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(step), dtype=like.dtype)


def moments(function, denoiser, schedule, tau, **options) -> tuple[list[float], list[float]]:
    """Mean and deviation after every step from x_T ~ N(0, 1), for a denoiser affine in x: one row per direction."""
    x_T = torch.zeros(len(tau) + 2, 1, dtype=torch.float64)
    x_T[1] = 1
    means, deviations = [], []

    def one_direction(step, like):
        z = torch.zeros_like(like)
        z[step + 2] = 1
        return z

    def record(state):
        means.append(state.x[0].item())
        deviations.append((state.x[1:] - state.x[0]).square().sum().sqrt().item())

    function(denoiser, x_T, schedule, tau, noise=one_direction, on_step=record, **options)
    return means, deviations


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9999999, 1.0, [0.0, 1.0, 0.2, 0.0, 1.0, 0.7, 0.5, 0.3]])
def test_order_one_is_generalized_ddim(eta):
    mine = stochastic(denoiser, latents(), LINEAR, TAU, eta, order=1, noise=noise)
    torch.testing.assert_close(mine, sample(denoiser, latents(), LINEAR, TAU, eta, noise=noise), rtol=1e-12, atol=1e-12)


def test_eta_zero_is_the_deterministic_solver_of_order_two():
    def none(step, like):
        raise AssertionError("no noise is needed")

    mine = stochastic(denoiser, latents(), LINEAR, TAU, 0.0, noise=none)
    torch.testing.assert_close(
        mine, exponential(denoiser, latents(), LINEAR, TAU, order=2, interpolates="x0"), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("order", [1, 2])
@given(tau=taus, eta=st.floats(0, 1), point=st.floats(-1, 1))
@settings(deadline=None, max_examples=30)
def test_every_step_keeps_the_marginal_of_a_point_mass(order, tau, eta, point, gaussian_denoiser):
    # x_0 is known, so x at every level is N(signal x_0, sigma^2) if it is so at first; a state of N(0, 1) is not
    # quite, by signal x_0 / sigma in the mean and 1 - sigma in the deviation.
    top = LINEAR.alpha_bar[tau[-1]].item()
    exact = gaussian_denoiser(LINEAR, mean=point, std=0.0)

    def from_marginal(denoise, x_T, *rest, **options):
        start = math.sqrt(top) * point + math.sqrt(1 - top) * x_T
        return stochastic(denoise, start, *rest, **options)

    means, deviations = moments(from_marginal, exact, LINEAR, tau, order=order, eta=eta)
    for mean, deviation, t in zip(means, deviations, [*reversed(tau[:-1]), -1], strict=True):
        alpha_bar = LINEAR.alpha_bar_at(t)
        assert mean == pytest.approx(math.sqrt(alpha_bar) * point, abs=1e-9)
        assert deviation == pytest.approx(math.sqrt(1 - alpha_bar), abs=1e-7)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("order", [1, 2])
def test_deviation_of_gaussian_data_is_reached_with_the_order(order, eta, schedule_at, stretch, gaussian_denoiser):
    # With a constant tau, whose noise does not shrink with the steps as that of a constant eta < 1 does.
    errors, std = [], 0.5
    for steps in (160, 320):
        schedule = schedule_at(stretch(steps))
        deviation = (schedule.alpha_bar * std**2 + 1 - schedule.alpha_bar).sqrt()

        def from_marginal(denoise, x_T, *rest, start=deviation[-1], **options):
            return stochastic(denoise, start * x_T, *rest, **options)

        _, deviations = moments(
            from_marginal,
            gaussian_denoiser(schedule, std=std),
            schedule,
            range(steps + 1),
            order=order,
            eta=eta,
            eta_schedule="constant_tau",
        )
        # The last step goes to the clean data; the one before it reaches timestep 0.
        errors.append(abs(deviations[-2] - deviation[0].item()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2), errors


@pytest.mark.parametrize("function", [sample, stochastic])
def test_full_steps_keep_the_variance_of_the_data_whatever_the_etas(function, gaussian_denoiser):
    exact = gaussian_denoiser(LINEAR, mean=0.3, std=0.5)
    for name in ETA_SCHEDULES:
        options = {"eta": 0.8, "eta_schedule": name}
        means, deviations = moments(function, exact, LINEAR, torch.arange(0, 1000, 2), **options)
        assert means[-1] == pytest.approx(0.3, abs=4e-3)
        assert deviations[-1] == pytest.approx(0.5, abs=1e-2)


def test_middle_adds_noise_in_the_middle_only():
    tau = [0, 199, 200, 500, 800, 801]
    assert eta_per_step(0.7, LINEAR, tau, "middle") == (0.0, 0.7, 0.7, 0.7, 0.0, 0.0)
    noisy = []
    sample(denoiser, latents(), LINEAR, tau, 0.7, eta_schedule="middle", noise=lambda i, like: noisy.append(i) or like)
    assert noisy == [1, 2, 3]


@given(tau=st.floats(1e-3, 1), h=st.floats(1e-4, 20))
@settings(deadline=None, max_examples=100)
def test_eta_of_tau_is_the_noise_of_the_reverse_equation(tau, h):
    # sigma(eta) = sigma' sqrt(1 - exp(-2 tau^2 h)), here from levels that are h apart.
    here, there = (1 / (1 + math.exp(-2 * lam)) for lam in (-h / 2, h / 2))
    _, sigma = eta_coefficients(here, there, eta_of_tau(tau, h))
    assert sigma == pytest.approx(math.sqrt(1 - there) * math.sqrt(-math.expm1(-2 * tau * tau * h)), rel=1e-6)


def test_a_list_of_one_number_is_that_number():
    for eta in (0.0, 0.4, 1.0):
        assert step_table(LINEAR, TAU, [eta] * len(TAU)) == step_table(LINEAR, TAU, eta)
    table = step_table(LINEAR, TAU, [0.0] * 7 + [1.0])
    assert [step.sigma > 0 for step in table] == [False] * 8
    assert step_table(LINEAR, TAU, [1.0] + [0.0] * 7)[0] == step_table(LINEAR, TAU, 1.0)[0]


def test_numbers_in_words_are_the_shares_of_eta_step_by_step():
    tau = [0, 250, 500]
    assert eta_per_step(0.8, LINEAR, tau, "1 0.5 0") == (0.8, 0.4, 0.0)
    assert step_table(LINEAR, tau, 0.8, eta_schedule="1 0.5 0") == step_table(LINEAR, tau, [0.8, 0.4, 0.0])
    assert eta_per_step(0.8, LINEAR, [400], 0.5) == (0.4,)  # a configuration reads one word as the number it is


def test_samples_do_not_depend_on_the_batch(gaussian_denoiser):
    source, exact = NoiseSource(7), gaussian_denoiser(LINEAR)
    tau = select_timesteps(1000, 6)

    def run(indices):
        return stochastic(exact, source.initial(indices, (3, 5)), LINEAR, tau, 0.5, noise=source.bind(indices))

    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(torch.cat([run(order[:2]), run(order[2:])]), run(torch.arange(5))[order], rtol=0, atol=0)


@pytest.mark.parametrize("function", [sample, stochastic])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"^eta must be in \[0, 1\], got 1.5$"),
        ({"eta": float("nan")}, r"^eta must be in \[0, 1\], got nan$"),
        ({"eta": [0.1, 0.2]}, "^eta must be one number, or one for each of the 3 steps, got 2$"),
        ({"eta": [0.1, 0.2, 2]}, r"^eta must be in \[0, 1\], got 2$"),
        ({"eta": [0.1, 0.2, 0.3], "eta_schedule": "middle"}, "^eta must be one number with the eta schedule 'middle'"),
        (
            {"eta_schedule": "wavy"},
            "^eta_schedule must be one of constant, middle, constant_tau, one number per step, got 'wavy'$",
        ),
        (
            {"eta_schedule": "1 0.5"},
            "^eta_schedule must have one number for each of the 3 steps, got 2: '1 0.5'$",
        ),
        ({"eta_schedule": "1 0.5 -1"}, r"^eta_schedule must be in \[0, 1\], got -1.0$"),
        ({"eta": 1.0, "noise": lambda step, like: like[:, :1]}, r"^noise must return shape \(4, 3\), got \(4, 1\)$"),
    ],
)
def test_wrong_options_are_refused(function, options, message):
    with pytest.raises(ValueError, match=message):
        function(denoiser, latents(), LINEAR, [0, 10, 500], **options)
