"""Sub-sequences: the official rules, their traps, and explicit lists."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import SPACINGS, NoiseSchedule, explicit_timesteps, select_timesteps
from ddim.diffusion.tau import OF_NOISE_LEVELS, half_log_snr

LINEAR, COSINE = NoiseSchedule.linear(), NoiseSchedule.cosine()


@given(
    data=st.data(),
    num_timesteps=st.integers(1, 2000),
    spacing=st.sampled_from(SPACINGS),
    make=st.sampled_from([NoiseSchedule.linear, NoiseSchedule.cosine, NoiseSchedule.sigmoid]),
)
@settings(deadline=None, max_examples=200)
def test_every_tau_increases_inside_the_range(data, num_timesteps, spacing, make):
    num_steps = data.draw(st.integers(1, num_timesteps))
    tau = select_timesteps(num_timesteps, num_steps, spacing, schedule=make(num_timesteps))
    assert tau.dtype == torch.long
    assert tau[0] >= 0
    assert tau[-1] < num_timesteps
    assert bool((tau.diff() > 0).all())
    assert 1 <= len(tau) <= num_steps if spacing == "quadratic" else len(tau) == num_steps
    if spacing in ("linear", "quadratic") or (spacing in OF_NOISE_LEVELS and num_steps > 1):
        assert tau[0] == 0


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


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_single_step_and_full_sequence(spacing, schedule):
    noisiest = 995 if schedule is COSINE and spacing in OF_NOISE_LEVELS else 999
    first = select_timesteps(1000, 1, spacing, schedule=schedule).tolist()
    assert first == [0 if spacing in ("linear", "quadratic") else noisiest]
    if spacing != "quadratic":
        assert select_timesteps(1000, 1000, spacing, schedule=schedule).tolist() == list(range(1000))


@pytest.mark.parametrize("num_steps", [3, 7, 16, 61, 103, 999])
def test_trailing_ends_at_the_noisiest_timestep_and_never_below_zero(num_steps):
    tau = select_timesteps(1000, num_steps, "trailing").tolist()
    assert tau[-1] == 999
    assert tau[0] >= 0
    # arange(1000, 0, -1000 / 61) reaches a value just above 0, which would be timestep -1.
    assert len(tau) == num_steps
    np.testing.assert_allclose(tau, (np.arange(num_steps) + 1) * 1000 / num_steps - 1, atol=0.5)


def level(t: int) -> float:
    return float(half_log_snr(LINEAR.alpha_bar)[t])


@pytest.mark.parametrize("num_steps", [2, 5, 10, 20])
def test_levels_are_equally_spaced_up_to_rounding(num_steps):
    table = half_log_snr(LINEAR.alpha_bar).numpy()
    for spacing, to_axis in (("logsnr", lambda x: x), ("karras", lambda x: np.exp(-x / 7))):
        tau = select_timesteps(1000, num_steps, spacing, schedule=LINEAR).numpy()
        axis = to_axis(table)
        ideal = np.linspace(axis[0], axis[-1], num_steps)
        # No timestep is nearer to the ideal level than the chosen one, measured in lambda.
        levels = ideal if spacing == "logsnr" else -7 * np.log(ideal)
        distances = np.abs(table[:, None] - levels)
        np.testing.assert_allclose(distances[tau, np.arange(num_steps)], distances.min(axis=0), atol=1e-12)


def test_half_log_snr_at_both_ends():
    assert level(0) == pytest.approx(math.log(math.sqrt((1 - 1e-4) / 1e-4)))
    assert level(999) == pytest.approx(-5.0588, abs=1e-4)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE])
@pytest.mark.parametrize("spacing", OF_NOISE_LEVELS)
def test_levels_that_share_a_timestep_move_apart_to_the_nearest_free_ones(spacing, schedule):
    tau = select_timesteps(1000, 200, spacing, schedule=schedule).tolist()
    assert len(set(tau)) == 200
    # Crowded where timesteps are far apart in lambda: the first ones are then all used, without a gap.
    assert tau[:10] == list(range(10))
    if schedule is COSINE:
        assert tau[-5:] == [991, 992, 993, 994, 995]


@pytest.mark.parametrize("spacing", OF_NOISE_LEVELS)
def test_cosine_levels_stop_where_no_signal_is_left(spacing):
    for num_steps in (1, 5, 20, 50, 200, 996):
        tau = select_timesteps(1000, num_steps, spacing, schedule=COSINE)
        assert half_log_snr(COSINE.alpha_bar)[tau[-1]] > -5.1
    assert half_log_snr(COSINE.alpha_bar)[-1] < -9


def test_a_schedule_that_is_noisy_throughout_still_has_a_grid():
    schedule = NoiseSchedule(torch.tensor([3e-5, 2e-5, 1e-5], dtype=torch.float64))
    assert select_timesteps(3, 1, "logsnr", schedule=schedule).tolist() == [0]
    assert select_timesteps(3, 3, "karras", schedule=schedule).tolist() == [0, 1, 2]


@pytest.mark.parametrize("spacing", OF_NOISE_LEVELS)
def test_spacings_of_noise_levels_need_the_schedule(spacing):
    with pytest.raises(ValueError, match=f"schedule must be given with spacing='{spacing}'"):
        select_timesteps(1000, 10, spacing)
    with pytest.raises(ValueError, match="schedule must have num_timesteps=1000 timesteps, got 50"):
        select_timesteps(1000, 10, spacing, schedule=NoiseSchedule.linear(50))


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
        ((1000, 10, "quad"), "spacing must be one of linear, quadratic, trailing, logsnr, karras, got 'quad'"),
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
