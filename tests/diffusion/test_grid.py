"""The evaluation grid as values."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import NoiseSchedule, select_timesteps
from ddim.diffusion.grid import NAMED_VARIANCES, GridPoint, grid_points
from ddim.errors import UserError

SCHEDULE = NoiseSchedule.linear(1000)
SMALL = NoiseSchedule.linear(50)


def grid(steps=10, etas=0.0, tau="linear", **more):
    return grid_points(SCHEDULE, steps=steps, etas=etas, tau=tau, **more)


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=5, unique=True),
    etas=st.lists(st.floats(0, 1) | st.sampled_from(NAMED_VARIANCES), min_size=1, max_size=4, unique=True),
    tau=st.sampled_from(["linear", "quadratic"]),
    clip=st.booleans(),
)
def test_every_eta_with_every_number_of_steps(steps, etas, tau, clip):
    points = grid_points(SMALL, steps=steps, etas=etas, tau=tau, clip_denoised=clip)
    expected = [(eta, count) for eta in etas for count in steps]
    assert len(points) == len(set(points)) == len(expected)
    for point, (eta, count) in zip(points, expected, strict=True):
        assert (point.eta, point.variance) == ((1.0, eta) if isinstance(eta, str) else (eta, "eta"))
        assert (point.steps, point.tau, point.clip_denoised) == (count, tau, clip)
        assert torch.equal(point.timesteps_tensor(), select_timesteps(50, count, tau))
        assert point.nfe == len(point.timesteps) <= count


def test_single_values_are_grids_of_one():
    assert grid(10, 0) == grid([10], [0.0]) == grid((10,), (0,))
    (point,) = grid(10, 1)
    assert isinstance(point.eta, float) and point.timesteps_tensor().dtype == torch.long


def test_steps_are_what_was_asked_for_and_nfe_what_is_run():
    (point,) = grid(50, tau="quadratic")
    assert (point.steps, point.nfe) == (50, 49)


def test_an_explicit_list_stands_for_itself_whatever_the_steps():
    points = grid([10, 20], [0, "sigma_hat"], tau=[0, 100, 999])
    assert [(point.steps, point.nfe, point.tau, point.timesteps) for point in points] == [
        (3, 3, "explicit", (0, 100, 999))
    ] * 2


def test_several_spacings_are_a_grid_too():
    points = grid([5, 10], [0, 1], tau=["linear", "quadratic"])
    assert [(point.eta, point.tau, point.steps) for point in points] == [
        (eta, tau, steps) for eta in (0, 1) for tau in ("linear", "quadratic") for steps in (5, 10)
    ]
    assert points[2].timesteps == tuple(select_timesteps(1000, 5, "quadratic").tolist())
    with pytest.raises(UserError, match="twice"):
        grid(tau=["linear", "linear"])


def test_a_point_is_a_value():
    (point,) = grid()
    assert hash(point) == hash(GridPoint(10, 0.0, "eta", "linear", tuple(range(0, 1000, 100))))
    with pytest.raises(FrozenInstanceError):
        point.eta = 1.0


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ({"steps": 0}, "steps", "0"),
        ({"steps": -5}, "steps", "-5"),
        ({"steps": 1001}, "steps", "1001"),
        ({"steps": 1.5}, "steps", "1.5"),
        ({"steps": 10.0}, "steps", "10.0"),
        ({"steps": "10"}, "steps", "10"),
        ({"steps": True}, "steps", "True"),
        ({"steps": None}, "steps", "None"),
        ({"steps": []}, "steps", "[]"),
        ({"steps": [10, 0]}, "steps", "0"),
        ({"steps": [10, 10]}, "steps", "[10, 10]"),
        ({"etas": -0.1}, "eta", "-0.1"),
        ({"etas": 1.0001}, "eta", "1.0001"),
        ({"etas": math.nan}, "eta", "nan"),
        ({"etas": math.inf}, "eta", "inf"),
        ({"etas": "0.5"}, "eta", "0.5"),
        ({"etas": True}, "eta", "True"),
        ({"etas": None}, "eta", "None"),
        ({"etas": []}, "eta", "[]"),
        ({"etas": [0, 2]}, "eta", "2"),
        ({"etas": [1, 1.0]}, "eta", "[1, 1.0]"),
        ({"tau": "cubic"}, "tau", "cubic"),
        ({"tau": ""}, "tau", ""),
        ({"tau": []}, "tau", "[]"),
        ({"tau": [5, 1]}, "tau", "[5, 1]"),
        ({"tau": [1, 1]}, "tau", "[1, 1]"),
        ({"tau": [0, 1000]}, "tau", "[0, 1000]"),
        ({"tau": [-1]}, "tau", "[-1]"),
        ({"tau": [0.5]}, "tau", "[0.5]"),
        ({"tau": ["a"]}, "tau", "a"),
        ({"tau": ["linear", "a"]}, "tau", "a"),
        ({"tau": ["linear", 5]}, "tau", "['linear', 5]"),
        ({"tau": 7}, "tau", "7"),
        ({"tau": None}, "tau", "None"),
    ],
)
@pytest.mark.parametrize("prefix", ["sampler", "callbacks.evaluation"])
def test_wrong_values_are_named(arguments, key, value, prefix):
    with pytest.raises(UserError) as error:
        grid(**arguments, prefix=prefix)
    assert str(error.value).startswith(
        (f"{prefix}.{key}={value} ", f"{prefix}.steps={arguments.get('steps', 10)} with")
    )
    assert value in str(error.value)


def test_named_variances_are_the_samplers():
    from ddim.diffusion import VARIANCES

    assert set(VARIANCES) == {"eta", *NAMED_VARIANCES}
