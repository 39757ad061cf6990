"""Which rows may stand side by side."""

from __future__ import annotations

import pytest

from ddim.findings.comparable import group_rows


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
