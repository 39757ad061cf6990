"""Sampling against closed forms: Gaussian data, a point mass, the DDPM posterior."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import (
    SPACINGS,
    NoiseSchedule,
    NoiseSource,
    StepState,
    generalized_step,
    sample,
    select_timesteps,
    step_table,
)
from ddim.diffusion.samplers.generalized import eta_coefficients

LINEAR = NoiseSchedule.linear()
taus = st.sets(st.integers(0, 999), min_size=1, max_size=12).map(sorted)
etas = st.floats(0, 1)


def exact_moments(denoiser, schedule, tau, eta, variance="eta") -> tuple[float, float]:
    """Mean and standard deviation of x_0 for x_T ~ N(0, 1) under a denoiser that is affine in x.

    x_0 is then affine in (x_T, z_1, ..., z_S): each row of the batch probes one of these directions.
    """
    x_T = torch.zeros(len(tau) + 2, 1, dtype=torch.float64)
    x_T[1] = 1

    def one_direction(step, like):
        z = torch.zeros_like(like)
        z[step + 2] = 1
        return z

    x_0 = sample(denoiser, x_T, schedule, tau, eta, variance=variance, noise=one_direction)
    return x_0[0].item(), (x_0[1:] - x_0[0]).square().sum().sqrt().item()


@pytest.mark.parametrize(("name", "spacing"), [("linear", "linear"), ("linear", "quadratic"), ("cosine", "linear")])
def test_gaussian_std_error_falls_as_one_over_the_number_of_steps(name, spacing, gaussian_denoiser):
    schedule = NoiseSchedule.from_name(name)
    denoiser = gaussian_denoiser(schedule, std=0.5)
    errors = {}
    for num_steps in (20, 40, 80, 160):
        tau = select_timesteps(1000, num_steps, spacing)
        errors[num_steps] = abs(exact_moments(denoiser, schedule, tau, 0.0)[1] - 0.5)
    assert errors[20] < 0.08
    for num_steps in (20, 40, 80):
        assert 1.8 < errors[num_steps] / errors[2 * num_steps] < 2.2


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
def test_full_tau_recovers_the_gaussian(eta, gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, mean=0.3, std=0.5)
    mean, std = exact_moments(denoiser, LINEAR, torch.arange(1000), eta)
    assert mean == pytest.approx(0.3, abs=2e-3)
    assert std == pytest.approx(0.5, abs=5e-3)


def test_fewer_steps_cost_ddpm_more_than_ddim(gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, std=0.5)
    for num_steps in (5, 10, 20, 50, 100):
        tau = select_timesteps(1000, num_steps, "linear")
        errors = [abs(exact_moments(denoiser, LINEAR, tau, eta)[1] - 0.5) for eta in (0.0, 0.5, 1.0)]
        assert errors == sorted(errors)


@given(tau=taus, eta=etas, point=st.floats(-1, 1), seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=40)
@pytest.mark.parametrize("variance", ["eta", "sigma_hat_official"])
def test_point_mass_is_recovered_at_any_tau_and_eta(variance, tau, eta, point, seed, gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, mean=point, std=0.0)
    indices = torch.arange(3)
    x_T = NoiseSource(seed).initial(indices, (2, 2)).double()
    eta = eta if variance == "eta" else 1.0
    x_0 = sample(denoiser, x_T, LINEAR, tau, eta, variance=variance, noise=NoiseSource(seed).bind(indices))
    torch.testing.assert_close(x_0, torch.full_like(x_0, point), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tau", [[0], [0, 10, 500], [300, 999]])
def test_sigma_hat_leaves_the_last_noise_on_a_point_mass(tau, gaussian_denoiser):
    denoiser = gaussian_denoiser(LINEAR, mean=0.4, std=0.0)
    mean, std = exact_moments(denoiser, LINEAR, tau, 1.0, "sigma_hat")
    assert mean == pytest.approx(0.4)
    assert std == pytest.approx(math.sqrt(1 - LINEAR.alpha_bar[tau[0]]))


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled_linear", "sigmoid"])
@pytest.mark.parametrize("variance", ["eta", "sigma_hat"])
def test_eta_one_on_the_full_tau_is_the_ddpm_posterior_at_every_t(name, variance):
    schedule = NoiseSchedule.from_name(name)
    x_T = torch.tensor([0.0, 0.0, 1.3], dtype=torch.float64)
    states: list[StepState] = []
    # Every step is judged alone, from the state that came before it.
    x_before = [x_T]

    def record(state):
        states.append(state)
        x_before.append(state.x)

    noise = torch.tensor([0.0, 1.0, -0.7], dtype=torch.float64)
    sample(
        lambda x, t: torch.sin(3 * x + t),
        x_T,
        schedule,
        torch.arange(1000),
        1.0,
        variance=variance,
        noise=lambda step, like: noise,
        on_step=record,
    )
    for x_t, state in zip(x_before, states, strict=False):
        beta = schedule.betas[state.timestep]
        alpha_bar = schedule.alpha_bar[state.timestep]
        alpha_bar_prev = schedule.alpha_bar[state.timestep - 1] if state.timestep else torch.ones(()).double()
        mean = (
            alpha_bar_prev.sqrt() * beta / (1 - alpha_bar) * state.x_0
            + (1 - beta).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar) * x_t
        )
        posterior_variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta if variance == "eta" else beta
        expected = mean + posterior_variance.sqrt() * noise
        torch.testing.assert_close(state.x, expected, rtol=1e-8, atol=1e-8)


@given(tau=taus, eta=etas)
@settings(deadline=None, max_examples=50)
def test_every_step_keeps_the_marginal_variance(tau, eta):
    # q(x_prev | x_0) must have variance 1 - alpha_bar_prev for every eta (DDIM lemma 1).
    for step in step_table(LINEAR, tau, eta):
        assert step.direction**2 + step.sigma**2 == pytest.approx(1 - step.alpha_bar_prev, abs=1e-15)
        assert 0 <= step.sigma <= math.sqrt(1 - step.alpha_bar / step.alpha_bar_prev)


@given(t=st.integers(0, 999), eta=etas)
@settings(deadline=None, max_examples=50)
def test_a_repeated_timestep_would_change_nothing(t, eta):
    alpha_bar = float(LINEAR.alpha_bar[t])
    direction, sigma = eta_coefficients(alpha_bar, alpha_bar, eta)
    assert sigma == 0
    assert direction == pytest.approx(math.sqrt(1 - alpha_bar), rel=1e-12)


@pytest.mark.parametrize("tau", [[0], [999], [0, 500], range(0, 1000, 100)])
def test_the_last_step_goes_to_the_clean_data(tau):
    states = []
    x_0 = sample(lambda x, t: 0.1 * x, torch.ones(1, 2), LINEAR, list(tau), on_step=states.append)
    assert [s.step for s in states] == list(range(len(tau)))
    assert [s.timestep for s in states] == list(reversed(tau))
    assert [s.previous_timestep for s in states] == [*list(reversed(tau))[1:], -1]
    torch.testing.assert_close(states[-1].x, states[-1].x_0, rtol=0, atol=0)
    torch.testing.assert_close(x_0, states[-1].x, rtol=0, atol=0)
    assert step_table(LINEAR, list(tau))[-1].alpha_bar_prev == 1.0


@pytest.mark.parametrize(
    ("eta", "variance", "noisy"),
    [(0.0, "eta", 0), (0.3, "eta", 3), (1.0, "sigma_hat", 4), (1.0, "sigma_hat_official", 3)],
)
def test_network_and_noise_are_called_as_often_as_promised(eta, variance, noisy):
    timesteps, steps = [], []

    def denoiser(x, t):
        assert t.dtype == torch.long and t.shape == (5,)
        assert len(set(t.tolist())) == 1
        timesteps.append(int(t[0]))
        return x

    def noise(step, like):
        steps.append(step)
        return torch.zeros_like(like)

    sample(denoiser, torch.ones(5, 2), LINEAR, [1, 10, 100, 900], eta, variance=variance, noise=noise)
    assert timesteps == [900, 100, 10, 1]
    assert steps == list(range(noisy))


@pytest.mark.parametrize(("eta", "variance"), [(0.0, "eta"), (1.0, "eta"), (1.0, "sigma_hat_official")])
def test_clipping_bounds_x_0_and_steps_from_it(eta, variance):
    states = []
    x_T = torch.linspace(-3, 3, 7, dtype=torch.float64)
    tau = [0, 400, 800]
    sample(
        lambda x, t: -x,
        x_T,
        LINEAR,
        tau,
        eta,
        variance=variance,
        clip_denoised=variance == "eta",
        noise=lambda step, like: torch.zeros_like(like),
        on_step=states.append,
    )
    x_t = x_T
    for state, step in zip(states, step_table(LINEAR, tau, eta, variance), strict=True):
        assert state.x_0.abs().max() <= 1
        eps = (x_t - math.sqrt(step.alpha_bar) * state.x_0) / math.sqrt(1 - step.alpha_bar)
        torch.testing.assert_close(state.x, generalized_step(state.x_0, eps, step), rtol=1e-12, atol=1e-12)
        x_t = state.x
    assert x_t.abs().max() <= 1
    unclipped = sample(lambda x, t: -x, x_T, LINEAR, tau)
    assert unclipped.abs().max() > 1


@pytest.mark.parametrize(
    ("x_dtype", "eps_dtype", "state_dtype"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_state_is_at_least_float32_whatever_the_denoiser(x_dtype, eps_dtype, state_dtype):
    def denoiser(x, t):
        assert x.dtype == x_dtype
        return (0.5 * x).to(eps_dtype)

    states = []
    x_0 = sample(denoiser, torch.ones(2, 3, dtype=x_dtype), LINEAR, [0, 100], 1.0, on_step=states.append)
    assert {
        x_0.dtype,
        *(s.x.dtype for s in states),
        *(s.x_0.dtype for s in states),
        *(s.eps.dtype for s in states),
    } == {state_dtype}


def test_low_precision_predictions_are_raised_before_arithmetic():
    def denoiser(x, t):
        return torch.tanh(x).bfloat16()

    x_T = torch.linspace(-1, 1, 7)
    expected = sample(lambda x, t: denoiser(x, t).float(), x_T, LINEAR, [0, 300, 600])
    assert torch.equal(sample(denoiser, x_T, LINEAR, [0, 300, 600]), expected)


@given(data=st.data(), eta=etas, spacing=st.sampled_from(SPACINGS))
@settings(deadline=None, max_examples=20)
def test_samples_do_not_depend_on_the_batch(data, eta, spacing, gaussian_denoiser):
    denoiser, source = gaussian_denoiser(LINEAR), NoiseSource(7)
    tau = select_timesteps(1000, 6, spacing, schedule=LINEAR)

    def run(indices):
        x_T = source.initial(indices, (3, 5))
        return sample(denoiser, x_T, LINEAR, tau, eta, noise=source.bind(indices))

    order = torch.tensor(data.draw(st.permutations(range(9))))
    cut = data.draw(st.integers(0, 9))
    pieces = torch.cat([run(order[:cut]), run(order[cut:])])
    torch.testing.assert_close(pieces, run(torch.arange(9))[order], rtol=0, atol=0)


def test_gradients_flow_and_inference_mode_is_allowed(gaussian_denoiser):
    denoiser, tau = gaussian_denoiser(LINEAR), [0, 250, 500, 750]
    x_T = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    sample(denoiser, x_T, LINEAR, tau).sum().backward()
    factor = exact_moments(denoiser, LINEAR, tau, 0.0)[1]
    torch.testing.assert_close(x_T.grad, torch.full((2, 1), factor, dtype=torch.float64))
    with torch.inference_mode():
        assert sample(denoiser, x_T.detach(), LINEAR, tau).shape == (2, 1)


def test_default_noise_is_the_global_generator():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(sample(lambda x, t: x, torch.ones(2, 3), LINEAR, [0, 500], 1.0))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_x_T_is_left_alone():
    x_T = torch.ones(2, 3)
    sample(lambda x, t: x, x_T, LINEAR, [0, 500], 1.0, clip_denoised=True)
    assert torch.equal(x_T, torch.ones(2, 3))


def run(**changed):
    arguments = {"denoiser": lambda x, t: x, "x_T": torch.ones(2, 3), "schedule": LINEAR, "timesteps": [0, 500]}
    return sample(**(arguments | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eta": -0.1}, r"eta must be in \[0, 1\], got -0.1"),
        ({"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ({"eta": float("nan")}, r"eta must be in \[0, 1\], got nan"),
        ({"variance": "small"}, "variance must be one of eta, sigma_hat, sigma_hat_official, got 'small'"),
        ({"variance": "sigma_hat"}, "eta must be 1 with variance='sigma_hat'.*got 0.0"),
        ({"variance": "sigma_hat_official", "eta": 0.5}, "eta must be 1 with variance='sigma_hat_official'.*got 0.5"),
        ({"timesteps": []}, "timesteps must be a list of at least one integer"),
        ({"timesteps": [0, 1000]}, r"timesteps must be in \[0, 999\], got 1000"),
        ({"timesteps": [500, 0]}, "timesteps must increase strictly"),
        ({"x_T": torch.ones(2, 3, dtype=torch.uint8)}, "x_T must be a floating point tensor.*torch.uint8"),
        ({"x_T": torch.tensor(1.0)}, "x_T must be a floating point tensor"),
        ({"denoiser": lambda x, t: x.repeat(1, 2)}, r"denoiser must return shape \(2, 3\), got \(2, 6\)"),
        ({"eta": 1.0, "noise": lambda step, like: like[:, :1]}, r"noise must return shape \(2, 3\), got \(2, 1\)"),
    ],
)
def test_bad_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        run(**changed)
