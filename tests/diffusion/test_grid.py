"""The evaluation grid as values."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.diffusion import SAMPLERS, SPACINGS, NoiseSchedule, select_timesteps
from ddim.diffusion.grid import NAMED_VARIANCES, GridPoint, SamplerConfig, grid_points
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


def points_of(schedule=SCHEDULE, **settings):
    return SamplerConfig(**{"steps": 10, "eta": 0.0, **settings}).points(schedule)


def refusal(**settings):
    with pytest.raises(UserError) as error:
        points_of(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestNetworkCalls:
    def counted_calls(self, sampler, spacing):
        """{S: calls} of every S with which the rule runs at all, counted while it does."""
        found = {}
        for steps in range(1, SMALL.num_timesteps + 1):
            timesteps, asked = select_timesteps(50, steps, spacing, schedule=SMALL), []

            def denoiser(x, t, asked=asked):
                asked.append(t)
                return x

            try:
                SAMPLERS[sampler].run(denoiser, torch.zeros(1, 1), SMALL, timesteps, eta=0.0, noise=lambda n, x: x)
            except ValueError:
                continue
            found[steps] = len(asked)
        return found

    @pytest.mark.parametrize("spacing", SPACINGS)
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_s_is_the_largest_whose_calls_stay_within_the_limit(self, sampler, spacing):
        calls = self.counted_calls(sampler, spacing)
        for limit in (1, 2, 7, 16, 50, 60, 200):
            possible = [steps for steps, count in calls.items() if count <= limit]
            if not possible:
                assert refusal(schedule=SMALL, name=sampler, tau=spacing, nfe=limit).startswith(f"sampler.nfe={limit} ")
                continue
            (point,) = points_of(SMALL, name=sampler, tau=spacing, nfe=limit)
            assert (point.steps, point.nfe) == (max(possible), calls[max(possible)])
            assert (point.nfe_limit, point.tau) == (limit, spacing)
            assert point.timesteps == tuple(select_timesteps(50, point.steps, spacing, schedule=SMALL).tolist())

    def test_the_quadratic_rule_repeats_timesteps_and_may_ask_for_more_of_them(self):
        (point,) = points_of(tau="quadratic", nfe=50)
        assert (point.steps, point.nfe) == (51, 50)

    def test_options_decide_as_well(self):
        one, two = (points_of(name="restart", nfe=40, options={"restarts": n})[0] for n in (1, 4))
        assert one.steps > two.steps and max(one.nfe, two.nfe) <= 40

    def test_several_limits_spacings_and_samplers_are_a_grid(self):
        points = points_of(name=["ddim", "heun"], nfe=[5, 8], tau=["linear", "karras"])
        assert [(p.sampler, p.tau, p.nfe_limit, p.steps, p.nfe) for p in points] == [
            (sampler, tau, *counts)
            for sampler, both in (("ddim", [(5, 5, 5), (8, 8, 8)]), ("heun", [(5, 3, 5), (8, 4, 7)]))
            for tau in ("linear", "karras")
            for counts in both
        ]

    @pytest.mark.parametrize("limits", [[5, 6], [6, 5]])
    def test_limits_that_lead_to_the_same_s_are_one_point_at_the_lowest_of_them(self, limits):
        ddim, heun = (points_of(name=name, nfe=limits) for name in ("ddim", "heun"))
        assert [point.nfe_limit for point in ddim] == limits
        assert [(point.steps, point.nfe, point.nfe_limit) for point in heun] == [(3, 5, 5)]

    def test_without_a_limit_calls_are_counted_all_the_same(self):
        points = [points_of(name=name)[0] for name in ("ddim", "heun", "dpm3")]
        assert [(point.nfe, point.nfe_limit) for point in points] == [(10, None), (19, None), (28, None)]

    def test_equality_is_of_what_is_sampled_and_not_of_what_led_to_it(self):
        (asked,), (limited,) = points_of(name="heun", steps=3), points_of(name="heun", nfe=6)
        assert (asked.nfe_limit, limited.nfe_limit) == (None, 6)
        assert asked == limited and hash(asked) == hash(limited)
        assert asked == replace(asked, nfe=99, nfe_limit=99) != replace(asked, steps=4)

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"nfe": 0}, "sampler.nfe=0 must be a whole number of at least 1."),
            ({"nfe": -3}, "sampler.nfe=-3 must be a whole number of at least 1."),
            ({"nfe": [5, 2.5]}, "sampler.nfe=2.5 must be a whole number of at least 1."),
            ({"nfe": True}, "sampler.nfe=True must be a whole number of at least 1."),
            ({"nfe": "ten"}, "sampler.nfe=ten must be a whole number of at least 1."),
            ({"nfe": []}, "sampler.nfe=[] is empty; give at least one value."),
            ({"nfe": [5, 8, 5]}, "sampler.nfe=[5, 8, 5] names a number of network calls twice."),
            ({"nfe": 5, "eta": [0, 0.0]}, "sampler.nfe=5 with sampler.eta=[0, 0.0] names a grid point twice."),
            (
                {"nfe": 5, "tau": [0, 9]},
                "sampler.nfe=5 chooses S, and sampler.tau=[0, 9] does as well; take a spacing's name.",
            ),
            ({"nfe": 5, "tau": []}, "sampler.tau=[] is empty; give at least one value."),
            (
                {"nfe": 5, "tau": 7},
                "sampler.nfe=5 chooses S, and sampler.tau=7 does as well; take a spacing's name.",
            ),
            (
                {"nfe": 8, "name": "restart"},
                "sampler.nfe=8 network calls are too few for sampler.name=restart; its fewest are 9.",
            ),
            (
                {"nfe": 2, "name": "restart", "tau": "trailing"},
                "sampler.nfe=2 is not possible with sampler.name=restart: t_max=0.3 must lie above the first "
                "timestep, 999, and is at timestep 88.",
            ),
        ],
    )
    def test_what_cannot_be_is_one_sentence(self, settings, sentence):
        assert refusal(**settings) == sentence

    def test_a_wrong_option_is_not_taken_for_too_few_calls(self):
        assert "solver must be one of" in refusal(name="restart", nfe=30, options={"solver": "none_such"})
        assert "t_min" in refusal(name="restart", nfe=30, options={"t_min": "low"})
        assert "order must be" in refusal(name="deis", nfe=30, options={"order": 9})


class TestSeveralSamplers:
    def test_points_stand_sampler_by_sampler_in_the_order_of_the_names(self):
        points = points_of(name=["unipc", "ddim"], steps=[5, 10])
        assert [(point.sampler, point.steps) for point in points] == [
            ("unipc", 5),
            ("unipc", 10),
            ("ddim", 5),
            ("ddim", 10),
        ]
        assert points_of(name=["ddim"]) == points_of(name="ddim")

    def test_each_is_the_point_that_it_is_alone(self):
        alone = [point for name in ("ddim", "deis", "sde") for point in points_of(name=name)]
        together = points_of(name=["ddim", "deis", "sde"])
        assert together == alone and list(map(hash, together)) == list(map(hash, alone))

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"name": ["ddim", "none_such"]}, "sampler.name=none_such is not known; choose one of ddim, "),
            ({"name": []}, "sampler.name=[] is empty"),
            ({"name": None}, "sampler.name=None is not known"),
            ({"name": ["ddim", 7]}, "sampler.name=7 is not known"),
            ({"name": [["ddim"]]}, "sampler.name=['ddim'] is not known"),
            ({"name": ["deis", "ddim", "deis"]}, "sampler.name=['deis', 'ddim', 'deis'] names a sampler twice."),
            ({"name": ["ddim", "deis"], "eta": [0, 1]}, "sampler.eta=1.0 is not possible with sampler.name=deis"),
            (
                {"name": ["ddim", "deis"], "clip_denoised": True},
                "sampler.clip_denoised=true is not possible with sampler.name=deis",
            ),
            (
                {"name": ["ddim", "deis"], "options": {"corrector": False}},
                "sampler.corrector=False is no option of any sampler in sampler.name=['ddim', 'deis'].",
            ),
            (
                {"name": "heun", "options": {"order": 2}},
                "sampler.order=2 is no option of sampler.name=heun; it has none of its own.",
            ),
        ],
    )
    def test_what_cannot_be_is_one_sentence(self, settings, sentence):
        assert refusal(**settings).startswith(sentence)

    def test_an_option_goes_to_those_that_have_it(self):
        points = points_of(name=["ddim", "deis", "heun", "ipndm"], options={"order": 2, "interpolates": "v"})
        assert [(point.sampler, point.options) for point in points] == [
            ("ddim", ()),
            ("deis", (("interpolates", "v"), ("order", 2))),
            ("heun", ()),
            ("ipndm", (("order", 2),)),
        ]

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_options_that_are_defaults_leave_the_point_as_it_was(self, name):
        (plain,) = points_of(name=name)
        (stated,) = points_of(name=name, options=dict(SAMPLERS[name].options))
        assert stated == plain and hash(stated) == hash(plain) and stated.options == ()

    def test_options_are_gathered_from_beside_the_other_keys(self):
        values = {"name": ["ddim", "deis"], "steps": 5, "order": 2, "corrector": True, "options": {"interpolates": "v"}}
        assert SamplerConfig.with_options(values) == {
            "name": ["ddim", "deis"],
            "steps": 5,
            "options": {"order": 2, "corrector": True, "interpolates": "v"},
        }
        assert SamplerConfig.with_options({"name": "ddim", "none_such": 1})["none_such"] == 1
