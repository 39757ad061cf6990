"""The learning rate over a training, against its closed forms."""

from __future__ import annotations

import math

import pytest

from ddim.errors import UserError
from ddim.training.rates import RATES, learning_rate
from ddim.training.settings import OptimizerConfig


@pytest.mark.parametrize("schedule", RATES)
def test_it_rises_linearly_to_the_full_rate(schedule):
    rate = learning_rate({"warmup_steps": 10, "schedule": schedule}, 1000)
    assert [rate(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rate(10) == pytest.approx(1.0)


def test_after_it_each_has_its_form():
    after = {name: learning_rate({"warmup_steps": 100, "schedule": name}, 1100) for name in RATES}
    assert after["constant"](1099) == 1.0
    assert [after["cosine"](step) for step in (100, 600, 1100, 5000)] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert after["cosine"](350) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [after["inverse_sqrt"](step) for step in (100, 400, 10_000)] == pytest.approx([1.0, 0.5, 0.1])


def test_one_that_is_not_named_is_constant():
    assert learning_rate({"warmup_steps": 1}, None)(10**6) == 1.0


def test_a_cosine_needs_an_end():
    with pytest.raises(UserError, match=r"optimizer\.schedule=cosine needs to know .* trainer\.max_steps=N"):
        learning_rate({"warmup_steps": 1, "schedule": "cosine"}, None)


@pytest.mark.parametrize(("images", "batch", "steps"), [(None, 64, 5000), (1000, 128, 8), (1024, 128, 8), (0, 128, 0)])
def test_a_warm_up_in_images_goes_with_the_batch(images, batch, steps):
    plain = OptimizerConfig(warmup_images=images).with_images_per_step(batch)
    assert plain["warmup_steps"] == steps and "warmup_images" not in plain
