"""The settings of the studies: refused by name before anything is sampled, and what they mean where none are given."""

from __future__ import annotations

import pytest

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import SamplerConfig
from ddim.errors import UserError
from ddim.evaluation.settings import evaluation_schema, plan

SCHEDULE = NoiseSchedule.linear(1000)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("interpolation.steps", 0, "evaluation.interpolation.steps=0 must be a whole number of at least 1"),
        ("interpolation.steps", 2000, "evaluation.interpolation.steps=2000 must be a whole number from 1 to 1000"),
        ("interpolation.lines", 0, "evaluation.interpolation.lines=0 must be a whole number of at least 1"),
        ("interpolation.points", 2, "evaluation.interpolation.points=2 must be a whole number of at least 3"),
        ("interpolation.corners", 1, "evaluation.interpolation.corners=1 must be a whole number of at least 2"),
        ("trajectory.steps", 0, "evaluation.trajectory.steps=0 must be a whole number of at least 1"),
        ("trajectory.eta", 2.0, "evaluation.trajectory.eta=2.0 must be a number from 0 to 1"),
        ("trajectory.eta", [], r"evaluation.trajectory.eta=\[\] is empty"),
        ("trajectory.num_images", 0, "evaluation.trajectory.num_images=0 must be a whole number of at least 1"),
        ("trajectory.shown", 1, "evaluation.trajectory.shown=1 must be a whole number of at least 2"),
        ("trajectory.frame_milliseconds", 5, "evaluation.trajectory.frame_milliseconds=5 must be .* at least 20"),
        ("diversity.steps", -1, "evaluation.diversity.steps=-1 must be a whole number of at least 1"),
        ("diversity.eta", ["none"], "evaluation.diversity.eta=none must be a number from 0 to 1"),
        ("diversity.shown", 0, "evaluation.diversity.shown=0 must be a whole number of at least 1"),
    ],
)
def test_bad_values_are_refused_by_name(key, value, expected):
    part, _, name = key.partition(".")
    config = evaluation_schema()(parts=[part])
    setattr(getattr(config, part), name, value)
    with pytest.raises(UserError, match=expected):
        config.check()
        plan(SamplerConfig(), config, SCHEDULE)


@pytest.mark.parametrize("part", ["interpolation", "trajectory", "diversity"])
def test_without_steps_of_its_own_a_part_takes_the_largest_of_the_grid(part):
    config = evaluation_schema()(parts=[part])
    config.check()
    points = plan(SamplerConfig(steps=[5, 20, 10]), config, SCHEDULE)[part]
    assert {point.steps for point in points} == {20}
    assert [point.eta for point in points] == ([0.0] if part == "interpolation" else [0.0, 1.0])
    getattr(config, part).steps = 7
    assert {point.steps for point in plan(SamplerConfig(), config, SCHEDULE)[part]} == {7}
