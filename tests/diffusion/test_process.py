"""The forward process and its inverses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import NoiseSchedule, eps_from_v, eps_from_x0, predict_x0, q_sample, v_from_eps, x0_from_v

SCHEDULE = NoiseSchedule.linear()
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@given(shape=shapes, seed=st.integers(0, 2**31), name=st.sampled_from(["linear", "cosine", "sigmoid"]))
@settings(deadline=None, max_examples=40)
def test_x0_eps_and_v_are_three_views_of_the_same_point(shape, seed, name):
    schedule = NoiseSchedule.from_name(name)
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    t = torch.randint(0, 1000, shape[:1], generator=generator)
    x_t = q_sample(x_0, t, eps, schedule)
    v = v_from_eps(x_0, eps, t, schedule)
    close = {"rtol": 1e-7, "atol": 1e-7}
    torch.testing.assert_close(predict_x0(x_t, eps, t, schedule), x_0, **close)
    torch.testing.assert_close(eps_from_x0(x_t, x_0, t, schedule), eps, **close)
    torch.testing.assert_close(x0_from_v(x_t, v, t, schedule), x_0, **close)
    torch.testing.assert_close(eps_from_v(x_t, v, t, schedule), eps, **close)


def test_v_is_the_derivative_of_x_t_along_the_angle():
    # With x = cos(phi) x_0 + sin(phi) eps, v = dx/dphi.
    phi = torch.tensor([0.3, 1.1], dtype=torch.float64)
    schedule = NoiseSchedule(phi.cos().square())
    x_0, eps = torch.tensor([0.7, -0.2], dtype=torch.float64), torch.tensor([-1.3, 0.4], dtype=torch.float64)
    h = 1e-6
    slope = ((phi + h).cos() - (phi - h).cos()) * x_0 + ((phi + h).sin() - (phi - h).sin()) * eps
    torch.testing.assert_close(
        v_from_eps(x_0, eps, torch.tensor([0, 1]), schedule), slope / (2 * h), rtol=1e-8, atol=1e-8
    )


def test_one_step_at_a_time_gives_the_same_distribution():
    # Iterating q(x_t | x_{t-1}) multiplies the mean by sqrt(1 - beta) and adds beta to the variance.
    mean, variance = 1.0, 0.0
    t = torch.arange(1000)
    ones, zeros = torch.ones(1000, dtype=torch.float64), torch.zeros(1000, dtype=torch.float64)
    signal, sigma = q_sample(ones, t, zeros, SCHEDULE), q_sample(zeros, t, ones, SCHEDULE)
    for i, beta in enumerate(SCHEDULE.betas.tolist()):
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
        assert signal[i].item() == pytest.approx(mean, rel=1e-10)
        assert sigma[i].item() ** 2 == pytest.approx(variance, rel=1e-10)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_arithmetic_is_at_least_float32(dtype, expected):
    x = torch.ones(2, 3, dtype=dtype)
    assert q_sample(x, torch.tensor([0, 999]), x, SCHEDULE).dtype == expected


def test_training_works_after_a_schedule_was_used_in_inference_mode():
    schedule = NoiseSchedule.linear(10)
    t = torch.tensor([3])
    with torch.inference_mode():
        q_sample(torch.ones(1, 2), t, torch.ones(1, 2), schedule)
    x_0 = torch.ones(1, 2, requires_grad=True)
    q_sample(x_0, t, torch.ones(1, 2), schedule).sum().backward()
    torch.testing.assert_close(x_0.grad, torch.full((1, 2), float(schedule.alpha_bar[3].sqrt())))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: q_sample(x, t, x[:, :1], SCHEDULE), r"noise must have shape \(2, 3\), got \(2, 1\)"),
        (lambda x, t: predict_x0(x, x[:1], t, SCHEDULE), r"eps must have shape \(2, 3\), got \(1, 3\)"),
        (lambda x, t: eps_from_x0(x, x[0], t, SCHEDULE), r"x_0 must have shape"),
        (lambda x, t: x0_from_v(x, x[0], t, SCHEDULE), r"v must have shape"),
        (lambda x, t: q_sample(x, t[:1], x, SCHEDULE), r"t must have shape \(2,\).*got \(1,\)"),
        (lambda x, t: q_sample(x, t + 1000, x, SCHEDULE), r"t must be in \[-1, 999\]"),
        (lambda x, t: q_sample(x, t.float(), x, SCHEDULE), "t must be an integer tensor, got torch.float32"),
        (lambda x, t: q_sample(x.to(torch.uint8), t, x, SCHEDULE), "x must be a floating point.*torch.uint8"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3), torch.tensor([0, 1]))
