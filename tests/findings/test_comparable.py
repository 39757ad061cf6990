"""Which rows may stand side by side."""

from __future__ import annotations

import pytest

from ddim.findings.comparable import by_calls, cost, group_rows, provenance, told_apart


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", "cifar10"),
        ("checkpoint", "other.ckpt"),
        ("weights", "raw"),
        ("weights_hash", "83de4d7d29a1ab94"),
        ("sampler", "heun"),
        ("tau", "quadratic"),
        ("num_samples", 500),
        ("seed", 1),
        ("seeds", (0, 1)),
        ("features", "pixels"),
        ("resize", "bilinear"),
        ("reference", "00ff"),
        ("compute_precision", "bf16-mixed"),
        ("preprocessing", "0123456789abcdef"),
        ("clip_denoised", True),
    ],
)
def test_rows_of_other_provenance_are_kept_apart(result, name: str, value: object) -> None:
    rows = [result(), result(**{name: value}), result(eta=1.0, steps=50)]
    groups = group_rows(rows)
    assert [members for _, members in groups] == [[rows[0], rows[2]], [rows[1]]]
    assert all(len(differs) == 1 for differs, _ in groups)
    assert groups[0][0] != groups[1][0]


def test_explicit_lists_of_timesteps_are_kept_apart(result) -> None:
    lists = [(0, 500), (0, 400), range(0, 1000, 2), range(1, 1001, 2)]
    assert len(group_rows([result(tau="explicit", timesteps=steps) for steps in lists])) == 4
    assert len(group_rows([result(tau="linear", timesteps=steps) for steps in lists])) == 1


def test_samplers_may_share_a_table_and_not_a_line(result) -> None:
    rows = [result(), result(sampler="deis"), result(sampler="deis", options=(("order", 2),))]
    assert len(group_rows(rows)) == 3 and len(group_rows(rows, told_apart)) == 1
    assert provenance(rows[2])["sampler"] == "deis order=2"
    assert len(group_rows([*rows, result(sampler="deis", tau="karras")], told_apart)) == 2


def test_a_mean_over_seeds_says_so(result) -> None:
    assert provenance(result(seeds=(0, 1, 2)))["seed"] == "mean over 0 1 2"
    assert provenance(result(seed=3))["seed"] == "3"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}, {"eta": 1.0}, {"steps": 20, "nfe": 20}], False),
        ([{"sampler": "heun", "nfe": 19}], False),
        ([{}, {"sampler": "heun"}], True),
        ([{"sampler": "deis"}, {"sampler": "deis", "options": (("order", 2),)}], True),
        ([{"nfe_limit": 10}], True),
        ([{}, {"nfe_limit": 10, "eta": 1.0}], True),
    ],
)
def test_s_says_what_a_sample_costs_for_one_sampler_without_a_limit(result, changes, expected) -> None:
    assert by_calls([result(**one) for one in changes]) is expected


def test_the_cost_is_s_or_the_calls_that_were_asked_for_or_made(result) -> None:
    asked, made = result(steps=5, nfe=9, nfe_limit=10), result(steps=5, nfe=9)
    assert [cost(row, True) for row in (asked, made)] == [10, 9]
    assert [cost(row, False) for row in (asked, made)] == [5, 5]
