"""Several seeds as one row, and points against the best of their cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import pytest
import torch

from ddim.diffusion import NoiseSchedule
from ddim.diffusion.grid import GridPoint, SamplerConfig
from ddim.evaluation.kept.finished import Finished
from ddim.evaluation.repetition import compared, repeated
from ddim.findings.rows import GridResult
from ddim.metrics import Jackknife, compare, simultaneous_multiple

SCHEDULE = NoiseSchedule.linear(100)
N, BLOCKS = 1000, 10
Rows = dict[GridPoint, dict[str, Any]]


def row(seed: int = 0, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        **{"dataset": "noise", "checkpoint": "a.ckpt", "weights": "ema", "seed": seed, "features": "pixels"},
        **{"sampler": "ddim", "eta": 0.0, "variance": "eta", "tau": "linear", "steps": 5, "nfe": 5},
        **{"num_samples": N, "frechet_distance": 1.0, "seconds": 2.0, "images_per_second": 500.0},
    }
    return GridResult(**{**values, **changes}).as_record()


def finished(*rows: dict[str, Any]) -> dict[int, Finished]:
    return {number: Finished(one, torch.full((1, 1, 2, 2), number)) for number, one in enumerate(rows)}


def left_out(value: float, salt: int, width: float = 0.01) -> tuple[float, ...]:
    """A distance and what it is without each block."""
    return (value, *(value + width * math.sin(1 + 7 * block + 31 * salt) for block in range(BLOCKS)))


class TestRepeated:
    def test_one_seed_is_the_row_that_it_is(self):
        parts = finished(row(3, kid_mean=0.5, kid_mean_sd=0.1))
        assert repeated(parts) is parts[0] and "seeds" not in parts[0].row

    def test_three_seeds_have_their_means_and_the_deviation_of_one(self):
        rows = [
            row(
                seed,
                frechet_distance=distance,
                frechet_distance_sd=0.5,
                frechet_distance_unbiased=distance - 1,
                kid_mean=distance / 10,
                kid_std=distance / 100,
                recall=0.5,
                other_metrics=(("sharpness", 10 * distance), ("coverage", 0.25)),
                seconds=distance,
            )
            for seed, distance in ((7, 1.0), (8, 2.0), (9, 6.0))
        ]
        whole = repeated({2: finished(*rows)[2], **finished(*rows)})
        found = GridResult(**whole.row)
        assert (found.seeds, found.seed) == ((7, 8, 9), 7)
        # Deviations from 3: -2, -1 and 3, so 14 / (3 - 1) is the variance.
        assert (found.frechet_distance, found.frechet_distance_unbiased) == (3.0, 2.0)
        assert found.frechet_distance_sd == pytest.approx(math.sqrt(7))
        assert (found.kid_mean, found.kid_std) == pytest.approx((0.3, 0.03))
        assert found.kid_mean_sd == pytest.approx(math.sqrt(7) / 10)
        assert (found.recall, found.recall_sd) == (0.5, 0.0)
        assert dict(found.other_metrics or ()) == pytest.approx({"sharpness": 30.0, "coverage": 0.25})
        assert (found.seconds, found.images_per_second) == (3.0, pytest.approx(N / 3))
        assert whole.images.flatten()[0] == 0, "of the first seed"
        assert found.as_record() == whole.row

    def test_what_nobody_measured_stays_so(self):
        found = GridResult(**repeated(finished(row(0), row(1))).row)
        assert (found.precision, found.precision_sd, found.inception_score_mean_sd) == (None, None, None)
        assert (found.other_metrics, found.leave_one_out, found.frechet_distance_unbiased) == (None, None, None)

    @pytest.mark.parametrize(
        "missing", [{"kid_mean": None}, {"other_metrics": None}, {"leave_one_out": None}, {"frechet_distance": None}]
    )
    def test_what_one_seed_lacks_the_mean_lacks(self, missing):
        full = {"kid_mean": 0.5, "other_metrics": (("own", 4.0),), "leave_one_out": (left_out(1.0, 0),)}
        found = GridResult(**repeated(finished(row(0, **full), row(1, **{**full, **missing}))).row)
        (name,) = missing
        assert getattr(found, name) is None
        assert getattr(found, f"{name}_sd", None) is None
        others = [key for key in full if key != name]
        assert all(getattr(found, key) is not None for key in others)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_number_that_is_not_finite_has_no_deviation(self, value):
        found = GridResult(**repeated(finished(row(0), row(1, frechet_distance=value))).row)
        assert not math.isfinite(found.frechet_distance) and found.frechet_distance_sd is None

    def test_the_numbers_behind_deviations_are_kept_in_the_order_of_the_seeds(self):
        parts = finished(*(row(seed, leave_one_out=(left_out(1.0 + seed, seed),)) for seed in range(3)))
        found = GridResult(**repeated(dict(reversed(parts.items()))).row)
        assert found.leave_one_out == tuple(left_out(1.0 + seed, seed) for seed in range(3))


def grid(distances: Callable[[GridPoint], float], seeds: int = 1, width: float = 0.01, **settings: Any) -> Rows:
    """Rows of the points of a grid, each with its jackknife."""
    found: Rows = {}
    for number, point in enumerate(SamplerConfig(**{"eta": 0.0, "steps": 5, **settings}).points(SCHEDULE)):
        found[point] = row(
            **{name: getattr(point, name) for name in ("sampler", "eta", "variance", "tau", "steps", "nfe")},
            **{"nfe_limit": point.nfe_limit, "frechet_distance": distances(point)},
            leave_one_out=tuple(left_out(distances(point), 10 * number + seed, width) for seed in range(seeds)),
            seeds=tuple(range(seeds)) if seeds > 1 else None,
        )
    return found


def jackknives(row: dict[str, Any]) -> list[Jackknife]:
    return [Jackknife(numbers[0], numbers[1:], N) for numbers in row["leave_one_out"]]


DISTANCES = {"ddim": 1.5, "deis": 1.0, "unipc": 1.02, "lms": 9.0}


def by_name(point: GridPoint) -> float:
    return DISTANCES[point.sampler]


class TestCompared:
    @pytest.mark.parametrize("seeds", [1, 3])
    def test_differences_are_those_of_the_metrics_room(self, seeds):
        rows = grid(by_name, seeds, width=0.02, name=list(DISTANCES))
        expected = compare(
            [jackknives(one) for one in rows.values()],
            multiple=simultaneous_multiple(4, seeds * (BLOCKS - 1) + 1),
        )
        found = list(compared(rows).values())
        assert [one["difference"] for one in found] == pytest.approx([d.value for d in expected.differences])
        assert [one["difference_sd"] for one in found] == pytest.approx([d.sd for d in expected.differences])
        assert [one["as_good"] for one in found] == list(expected.as_good)
        assert expected.as_good[1] and not expected.as_good[3]
        assert [type(one["as_good"]) for one in found] == [bool] * 4
        assert [{**one, "difference": 0, "difference_sd": 0, "as_good": 0} for one in found] == [
            {**one, "difference": 0, "difference_sd": 0, "as_good": 0} for one in rows.values()
        ], "all else is as it was"

    def test_by_hand_of_equal_blocks(self):
        """B = 10 equal blocks: (B - 1) / B times the sum of squares, and B v - (B - 1) times the mean."""
        rows = grid(by_name, name=["ddim", "deis"])
        a, b = (one["leave_one_out"][0] for one in rows.values())
        gaps = [x - y for x, y in zip(a[1:], b[1:], strict=True)]
        sd = math.sqrt(0.9 * sum((gap - fmean(gaps)) ** 2 for gap in gaps))
        ddim, deis = compared(rows).values()
        assert ddim["difference"] == pytest.approx(10 * (a[0] - b[0]) - 9 * fmean(gaps))
        assert ddim["difference_sd"] == pytest.approx(sd)
        assert (deis["difference"], deis["difference_sd"], deis["as_good"]) == (0, 0, True)

    def test_more_seeds_are_asked_of_a_narrower_student(self):
        """9 degrees of freedom need 2.3 deviations of one pair, 27 need less: a gap in between tells them apart."""
        one, three = simultaneous_multiple(2, BLOCKS), simultaneous_multiple(2, 3 * (BLOCKS - 1) + 1)
        assert three < one
        gap = (one + three) / 2
        ddim, deis = SamplerConfig(eta=0.0, steps=5, name=["ddim", "deis"]).points(SCHEDULE)
        blocks = [(-1.0) ** block for block in range(BLOCKS)]
        # The gap of each seed; its deviation is 3, that of the mean over three of them 3 / 3^(1/2).
        for seeds, as_good in ((1, True), (3, False)):
            first = (10 + gap * 3 / math.sqrt(seeds), *(10 + gap * 3 / math.sqrt(seeds) + b for b in blocks))
            rows = {
                ddim: row(sampler="ddim", leave_one_out=(first,) * seeds),
                deis: row(sampler="deis", leave_one_out=((10.0,) * 11,) * seeds),
            }
            assert compared(rows)[ddim]["as_good"] is as_good

    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            ({"name": ["ddim", "deis"], "steps": [5, 10]}, lambda p: p.steps),
            ({"name": ["ddim", "deis"], "tau": ["linear", "trailing"]}, lambda p: p.tau),
            ({"name": ["ddim", "heun"], "nfe": [5, 10]}, lambda p: p.nfe_limit),
            ({"eta": [0.0, 1.0], "steps": [5, 10]}, lambda p: p.steps),
        ],
    )
    def test_only_points_of_one_cost_and_one_spacing_are_compared(self, settings, key):
        rows = grid(lambda p: 1.0 + p.nfe + (p.sampler == "ddim") + p.eta, **settings)
        found = compared(rows)
        groups = [[point for point in rows if key(point) == value] for value in dict.fromkeys(map(key, rows))]
        assert len(groups) == 2
        for members in groups:
            assert [point for point in members if found[point]["difference"] == 0] == [
                min(members, key=lambda point: rows[point]["frechet_distance"])
            ]

    def test_without_a_limit_samplers_are_compared_at_the_calls_that_they_made(self):
        rows = grid(lambda p: 1.0 + p.steps, name=["ddim", "heun"], steps=[5, 9])
        found = {(point.sampler, point.steps): one for point, one in compared(rows).items()}
        assert found["heun", 5]["difference"] == 0
        assert found["ddim", 9]["difference"] > 3, "both with 9 calls"
        assert "difference" not in found["ddim", 5] and "difference" not in found["heun", 9]

    def test_a_point_alone_is_compared_with_nothing(self):
        rows = grid(by_name)
        assert compared(rows) == rows

    @pytest.mark.parametrize("lacking", [[0], [1], [0, 1]])
    def test_where_the_numbers_are_missing_nothing_is_said(self, lacking):
        rows = grid(by_name, name=["ddim", "deis"])
        for number in lacking:
            del rows[list(rows)[number]]["leave_one_out"]
        assert compared(rows) == rows

    def test_points_of_other_numbers_of_seeds_are_not_paired(self):
        rows = grid(by_name, 3, name=["ddim", "deis"])
        first = next(iter(rows.values()))
        first["leave_one_out"] = first["leave_one_out"][:2]
        assert compared(rows) == rows

    def test_the_rows_that_were_given_are_left_alone(self):
        rows = grid(by_name, name=["ddim", "deis"])
        before = {point: dict(one) for point, one in rows.items()}
        assert compared(rows) != before and rows == before
