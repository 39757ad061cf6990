"""Sub-sequences: the official rules, their traps, and explicit lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import SPACINGS, explicit_timesteps, select_timesteps


@given(data=st.data(), num_timesteps=st.integers(1, 2000), spacing=st.sampled_from(SPACINGS))
@settings(deadline=None, max_examples=200)
def test_every_tau_increases_from_zero_inside_the_range(data, num_timesteps, spacing):
    num_steps = data.draw(st.integers(1, num_timesteps))
    tau = select_timesteps(num_timesteps, num_steps, spacing)
    assert tau.dtype == torch.long
    assert tau[0] == 0
    assert tau[-1] < num_timesteps
    assert bool((tau.diff() > 0).all())
    assert len(tau) == num_steps if spacing == "linear" else 1 <= len(tau) <= num_steps


@given(num_timesteps=st.integers(1, 1000))
@settings(deadline=None, max_examples=30)
def test_linear_equals_the_official_range_where_it_divides(num_timesteps):
    for num_steps in range(1, num_timesteps + 1):
        if num_timesteps % num_steps == 0:
            official = list(range(0, num_timesteps, num_timesteps // num_steps))
            assert select_timesteps(num_timesteps, num_steps, "linear").tolist() == official


def test_linear_has_exactly_30_steps_where_the_official_range_has_31():
    assert len(range(0, 1000, 1000 // 30)) == 31
    assert len(select_timesteps(1000, 30, "linear")) == 30


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 10, 1000, 4000])
def test_quadratic_is_the_official_rule_without_repeats(num_timesteps):
    for num_steps in {1, 2, 3, 5, 7, 10, 20, 50, 100, 333, num_timesteps}:
        if num_steps <= num_timesteps:
            official = [int(s) for s in np.linspace(0, np.sqrt(num_timesteps * 0.8), num_steps) ** 2]
            assert select_timesteps(num_timesteps, num_steps, "quadratic").tolist() == sorted(set(official))


@pytest.mark.parametrize(("num_steps", "distinct"), [(10, 10), (20, 20), (50, 49), (100, 96), (1000, 688)])
def test_quadratic_repeats_at_1000_timesteps(num_steps, distinct):
    tau = select_timesteps(1000, num_steps, "quadratic")
    assert len(tau) == distinct
    assert tau[-1] == 800


@pytest.mark.parametrize("spacing", SPACINGS)
def test_single_step_and_full_sequence(spacing):
    assert select_timesteps(1000, 1, spacing).tolist() == [0]
    if spacing == "linear":
        assert select_timesteps(1000, 1000, spacing).tolist() == list(range(1000))


@pytest.mark.parametrize(
    "given_timesteps", [[3, 7, 999], (3, 7, 999), torch.tensor([3, 7, 999]), np.array([3, 7, 999])]
)
def test_explicit_timesteps_keep_their_values(given_timesteps):
    tau = explicit_timesteps(1000, given_timesteps)
    assert tau.dtype == torch.long
    assert tau.tolist() == [3, 7, 999]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1000, 0, "linear"), r"num_steps must be an integer in \[1, 1000\], got 0"),
        ((1000, 1001, "linear"), "num_steps.*got 1001"),
        ((1000, -5, "quadratic"), "num_steps.*got -5"),
        ((1000, 10.0, "linear"), "num_steps.*got 10.0"),
        ((1000, True, "linear"), "num_steps.*got True"),
        ((1000, "10", "linear"), "num_steps.*got '10'"),
        ((0, 1, "linear"), "num_timesteps.*got 0"),
        ((1000, 10, "quad"), "spacing must be one of linear, quadratic, got 'quad'"),
    ],
)
def test_bad_selections_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        select_timesteps(*arguments)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], r"timesteps must be a list of at least one integer, got \[\]"),
        (5, "timesteps must be a list of at least one integer, got 5"),
        (torch.tensor(5), "timesteps must be a list of at least one integer"),
        ([0, 10], r"timesteps must be in \[0, 9\], got 10"),
        ([-1, 3], r"timesteps must be in \[0, 9\], got -1"),
        ([0, 3, 3], "increase strictly, got 3 after 3"),
        ([5, 3], "increase strictly, got 3 after 5"),
        ([0, 1.0], "timesteps must be integers, got 1.0"),
        ([False, True], "timesteps must be integers, got False"),
        ("123", "timesteps must be integers, got '1'"),
        (torch.tensor([[1, 2]]), r"timesteps must be integers, got \[1, 2\]"),
    ],
)
def test_bad_explicit_timesteps_are_refused(timesteps, message):
    with pytest.raises(ValueError, match=message):
        explicit_timesteps(10, timesteps)
