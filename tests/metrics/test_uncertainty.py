"""The jackknife where everything is known: means, exact c/N, Student's t; pairs, marks, seeds."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from ddim.metrics import Jackknife, Measured, block_of, compare, difference, over_seeds, simultaneous_multiple
from ddim.metrics.blocks import block_sizes


def of_mean(samples, blocks=10):
    belongs = block_of(np.arange(len(samples)), blocks)
    left = tuple(float(samples[belongs != block].mean()) for block in range(blocks))
    return Jackknife(float(samples.mean()), left, len(samples))


def of_blocks(means, common=0.0):
    """Of a mean over equal blocks, given theirs."""
    means = np.asarray(means, float) + common
    left = (means.sum() - means) / (len(means) - 1)
    return Jackknife(means.mean(), tuple(left), 7 * len(means))


def test_the_deviation_of_a_mean_is_that_of_its_blocks():
    samples = np.random.default_rng(0).standard_normal(230)
    blocks = [samples[block_of(np.arange(230)) == block].mean() for block in range(10)]
    found = of_mean(samples)
    assert found.sd == pytest.approx(np.std(blocks, ddof=1) / np.sqrt(10), rel=1e-12)
    assert found.unbiased == pytest.approx(samples.mean(), rel=1e-12)
    measured = found.measured()
    assert measured == Measured(found.value, found.sd, "jackknife over 10 blocks")


def test_blocks_that_are_not_equal_enter_by_their_sizes():
    """Of 14 samples in 10 blocks some have two and some have one."""
    rng = np.random.default_rng(1)
    sds, draws = [], []
    for _ in range(3000):
        found = of_mean(rng.standard_normal(14))
        sds.append(found.sd**2)
        draws.append(found.unbiased)
    # sigma^2 / N.
    assert np.mean(sds) == pytest.approx(1 / 14, rel=0.04)
    assert np.mean(draws) == pytest.approx(0, abs=4 / np.sqrt(14 * 3000))


@given(count=st.integers(20, 500), blocks=st.integers(2, 20), limit=st.floats(-10, 10), slope=st.floats(-1000, 1000))
def test_a_bias_of_one_over_n_cancels_exactly(count, blocks, limit, slope):
    left = tuple(float(limit + slope / (count - size)) for size in block_sizes(count, blocks))
    found = Jackknife(limit + slope / count, left, count)
    assert found.unbiased == pytest.approx(limit, abs=1e-9 * (1 + abs(slope)))


def test_two_deviations_are_the_level_that_is_stated():
    blocks = np.random.default_rng(2).standard_normal((20_000, 10))
    inside = [abs(point.value) <= 2 * point.sd for point in map(of_blocks, blocks)]
    assert np.mean(inside) == pytest.approx(2 * student.cdf(2, 9) - 1, abs=0.006)
    assert 2 * student.cdf(2, 9) - 1 == pytest.approx(0.92, abs=0.005)


@pytest.mark.parametrize(("count", "stated"), [(2, 0.07), (5, 0.38), (9, 0.67), (25, 0.98)])
def test_how_often_one_of_many_equals_is_called_worse(count, stated):
    """At 2 deviations and at the fair multiple; points share most of their noise, which must not matter."""
    rng, repetitions = np.random.default_rng(count), 600
    fair = simultaneous_multiple(count)
    worse = np.zeros(2)
    for _ in range(repetitions):
        common = 5 * rng.standard_normal(10)
        points = [[of_blocks(noise, common)] for noise in rng.standard_normal((count, 10))]
        worse += [not all(compare(points, multiple=multiple).as_good) for multiple in (2, fair)]
    tolerance = 4 * np.sqrt(0.25 / repetitions)
    assert worse / repetitions == pytest.approx([stated, 0.05], abs=tolerance)
    assert worse[1] / repetitions < 0.1


def test_a_fair_multiple_for_two_points_is_students():
    assert simultaneous_multiple(2) == pytest.approx(student.ppf(0.975, 9), rel=0.04)
    assert simultaneous_multiple(2) < simultaneous_multiple(3) < simultaneous_multiple(24)
    assert simultaneous_multiple(5, 28) < simultaneous_multiple(5, 10)
    for wrong in ((1,), (2, 1), (2, 10, 1.0)):
        with pytest.raises(ValueError, match="must be at least 2"):
            simultaneous_multiple(*wrong)


def test_it_is_kept_as_json():
    found = of_mean(np.random.default_rng(0).standard_normal(57))
    again = Jackknife(**json.loads(json.dumps(asdict(found))))
    assert again == found and hash(again) == hash(found)


@pytest.mark.parametrize(("left", "count"), [((1.0,), 5), ((1.0, 2.0, 3.0), 2), ((), 5)])
def test_too_few_blocks_or_samples_are_refused(left, count):
    with pytest.raises(ValueError, match=f"{count} samples in {len(left)} blocks"):
        Jackknife(1.0, left, count)


def test_what_two_points_have_in_common_is_not_in_their_difference():
    rng = np.random.default_rng(3)
    common, own = rng.standard_normal(10), 0.1 * rng.standard_normal((2, 10))
    first, second = of_blocks(own[0] + 5, common), of_blocks(own[1], common)
    found = difference([first], [second])
    assert found.value == pytest.approx((own[0] - own[1]).mean() + 5)
    assert found.sd == pytest.approx(np.std(own[0] - own[1], ddof=1) / np.sqrt(10))
    assert found.sd < first.sd / 2 and found.how == "paired jackknife over 10 blocks"
    assert difference([first], [first]).value == difference([first], [first]).sd == 0


def test_a_difference_is_without_the_bias_or_with_it():
    first, second = Jackknife(1.0, (1.2, 1.4), 10), Jackknife(0.5, (0.5, 0.5), 10)
    assert difference([first], [second], unbiased=False).value == pytest.approx(0.5)
    assert difference([first], [second]).value == pytest.approx(2 * 1.0 - 1.3 - 0.5)


def test_seeds_are_averaged_pair_by_pair():
    rng = np.random.default_rng(4)
    first, second = ([of_blocks(rng.standard_normal(10)) for _ in range(3)] for _ in range(2))
    single = [difference([a], [b]) for a, b in zip(first, second, strict=True)]
    found = difference(first, second)
    assert found.value == pytest.approx(np.mean([one.value for one in single]))
    assert found.sd == pytest.approx(np.sqrt(np.sum([one.sd**2 for one in single])) / 3)


def test_only_the_same_samples_are_paired():
    point = of_blocks(np.arange(10))
    with pytest.raises(ValueError, match="not 70 samples in 10 blocks and 80 samples in 10 blocks"):
        difference([point], [Jackknife(0.0, point.leave_one_out, 80)])
    with pytest.raises(ValueError, match="70 samples in 2 blocks"):
        difference([point], [Jackknife(0.0, (1.0, 2.0), 70)])
    with pytest.raises(ValueError):
        difference([point, point], [point])


@pytest.mark.parametrize(
    ("better", "best", "as_good"), [("min", 1, (False, True, True)), ("max", 0, (True, False, False))]
)
def test_the_best_and_those_that_cannot_be_told_apart_from_it(better, best, as_good):
    """The first is far from the second by their difference, though each alone has a bar that spans both."""
    common, noise = np.random.default_rng(5).standard_normal(10), np.random.default_rng(6).standard_normal((3, 10))
    noise -= noise.mean(axis=1, keepdims=True)
    points = [[of_blocks(0.01 * noise[i] + shift, common)] for i, shift in enumerate((0.2, 0.0, 0.004))]
    assert points[0][0].sd > 0.2
    found = compare(points, better)
    assert (found.best, found.as_good) == (best, as_good)
    assert found.differences[best] == Measured(0, 0, "paired jackknife over 10 blocks")
    assert abs(found.differences[0].value - found.differences[1].value) == pytest.approx(0.2)
    wide = compare(points, better, multiple=1000)
    assert wide.as_good == (True, True, True)


def test_a_point_that_is_no_number_is_neither_best_nor_as_good():
    broken = Jackknife(float("nan"), (float("nan"),) * 10, 70)
    found = compare([[broken], [of_blocks(np.arange(10))]])
    assert (found.best, found.as_good) == (1, (False, True))


def test_seeds_give_a_mean_and_a_deviation():
    assert over_seeds([1.0, 2.0, 4.0]) == Measured(
        pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)), "standard deviation over 3 seeds"
    )
    with pytest.raises(ValueError, match="at least 2 of them, got 1"):
        over_seeds([1.0])


def test_the_minimum_of_three_is_as_far_off_as_stated():
    draws = NormalDist().samples(60_000, seed=0)
    assert np.reshape(draws, (-1, 3)).min(axis=1).mean() == pytest.approx(-0.85, abs=0.02)
