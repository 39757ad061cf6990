"""Schedules against the formulas of their papers."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import NoiseSchedule

NAMES = ("linear", "cosine", "scaled_linear", "sigmoid")


def test_linear_is_the_product_of_one_minus_beta():
    schedule = NoiseSchedule.linear()
    product, expected = 1.0, []
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        expected.append(product)
    torch.testing.assert_close(schedule.alpha_bar, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert schedule.betas[0].item() == pytest.approx(1e-4, rel=1e-10)
    assert schedule.betas[-1].item() == pytest.approx(0.02, rel=1e-10)


def test_scaled_linear_has_linear_roots():
    roots = NoiseSchedule.scaled_linear(50).betas.sqrt()
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(49), rtol=1e-8, atol=0)
    assert roots[0].item() == pytest.approx(math.sqrt(0.00085))
    assert roots[-1].item() == pytest.approx(math.sqrt(0.012))


def test_cosine_follows_its_curve_until_beta_is_limited():
    schedule = NoiseSchedule.cosine(1000)
    s = 0.008

    def f(u: float) -> float:
        return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2

    expected = torch.tensor([f((t + 1) / 1000) / f(0) for t in range(999)], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha_bar[:999], expected, rtol=1e-9, atol=0)
    assert schedule.betas[-1].item() == pytest.approx(0.999)


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1.0), (0, 3, 0.5)])
def test_sigmoid_follows_its_curve(start, end, tau):
    schedule = NoiseSchedule.sigmoid(200, start, end, tau)
    u = torch.arange(1, 200, dtype=torch.float64) / 200
    low, high = (torch.sigmoid(torch.tensor(v / tau, dtype=torch.float64)) for v in (start, end))
    expected = (high - torch.sigmoid((start + u * (end - start)) / tau)) / (high - low)
    torch.testing.assert_close(schedule.alpha_bar[:199], expected, rtol=1e-9, atol=0)


@given(name=st.sampled_from(NAMES), num_timesteps=st.integers(1, 1200))
@settings(deadline=None, max_examples=40)
def test_every_schedule_falls_inside_the_unit_interval_and_is_rebuilt_from_its_params(name, num_timesteps):
    schedule = NoiseSchedule.from_name(name, num_timesteps=num_timesteps)
    assert schedule.num_timesteps == num_timesteps
    assert schedule.alpha_bar.dtype == torch.float64
    assert bool((schedule.alpha_bar.diff() < 0).all())
    assert 0 < schedule.alpha_bar[-1] <= schedule.alpha_bar[0] < 1
    torch.testing.assert_close(torch.cumprod(1 - schedule.betas, 0), schedule.alpha_bar, rtol=1e-9, atol=0)
    assert NoiseSchedule.from_name(schedule.name, **schedule.params) == schedule


def test_alpha_bar_at_reads_minus_one_as_clean_data():
    schedule = NoiseSchedule.linear(10)
    assert schedule.alpha_bar_at(-1) == 1.0
    assert schedule.alpha_bar_at(9) == float(schedule.alpha_bar[9])
    t = torch.tensor([[-1, 0], [3, 9]])
    expected = torch.tensor([[1.0, schedule.alpha_bar[0]], [schedule.alpha_bar[3], schedule.alpha_bar[9]]])
    assert schedule.alpha_bar_at(t).dtype == torch.float64
    torch.testing.assert_close(schedule.alpha_bar_at(t), expected.double(), rtol=1e-7, atol=0)


def test_schedule_is_a_value():
    schedule = NoiseSchedule.cosine(20)
    schedule.alpha_bar_at(torch.tensor([1]))
    assert copy.deepcopy(schedule) == schedule == pickle.loads(pickle.dumps(schedule))
    assert hash(schedule) == hash(NoiseSchedule.cosine(20))
    assert schedule != NoiseSchedule.linear(20)
    with pytest.raises(AttributeError):
        schedule.name = "other"
    source = torch.tensor([0.9, 0.5], dtype=torch.float64)
    custom = NoiseSchedule(source)
    source[0] = 0.1
    assert custom.alpha_bar.tolist() == [0.9, 0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.linear(0), "num_timesteps.*got 0"),
        (lambda: NoiseSchedule.linear(2.5), "num_timesteps.*got 2.5"),
        (lambda: NoiseSchedule.cosine(-1), "num_timesteps.*got -1"),
        (lambda: NoiseSchedule.linear(10, beta_start=0.0), "beta_start=0.0"),
        (lambda: NoiseSchedule.linear(10, beta_end=1.0), "beta_end=1.0"),
        (lambda: NoiseSchedule.scaled_linear(10, 0.5, 0.1), "beta_start=0.5, beta_end=0.1"),
        (lambda: NoiseSchedule.linear(10, float("nan")), "beta_start=nan"),
        (lambda: NoiseSchedule.cosine(10, s=-1.0), "s must.*got -1.0"),
        (lambda: NoiseSchedule.cosine(10, max_beta=1.0), "max_beta.*got 1.0"),
        (lambda: NoiseSchedule.sigmoid(10, start=3, end=-3), "start=3 and end=-3"),
        (lambda: NoiseSchedule.sigmoid(10, tau=0.0), "tau.*got 0.0"),
        (lambda: NoiseSchedule.from_name("cosin"), "linear, cosine, scaled_linear, sigmoid, got 'cosin'"),
        (lambda: NoiseSchedule.from_name("cosine", beta_end=1), "no parameter 'beta_end'; it has num_timesteps, s"),
        (lambda: NoiseSchedule.linear(100_000, 0.5, 0.5), "alpha_bar must fall strictly.*100000 timesteps"),
        (lambda: NoiseSchedule(torch.tensor([0.5, 0.5])), "alpha_bar must fall strictly"),
        (lambda: NoiseSchedule(torch.tensor([1.0, 0.5])), "alpha_bar must fall strictly"),
        (lambda: NoiseSchedule(torch.tensor([0.5, float("nan")])), "alpha_bar must fall strictly"),
        (lambda: NoiseSchedule(torch.zeros(0)), r"alpha_bar must have shape \(T,\).*\(0,\)"),
        (lambda: NoiseSchedule.linear(10).alpha_bar_at(10), r"t must be in \[-1, 9\], got 10"),
        (lambda: NoiseSchedule.linear(10).alpha_bar_at(-2), r"t must be in \[-1, 9\], got -2"),
        (lambda: NoiseSchedule.linear(10).alpha_bar_at(torch.tensor([0, 10])), "got values from 0 to 10"),
        (lambda: NoiseSchedule.linear(10).alpha_bar_at(torch.tensor([0.5])), "t must be an integer tensor.*float32"),
    ],
)
def test_bad_schedules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
