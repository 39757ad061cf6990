"""The short name of a set of tensors: the same for the same values, another for anything else."""

from __future__ import annotations

import pytest
import torch

from ddim.evaluation.kept.hashes import tensors_sha256

STATE = {"a": torch.arange(24.0).reshape(1, 2, 3, 4), "b": torch.tensor(1.5), "c": torch.empty(0)}


def test_it_is_the_same_for_the_same_values():
    again = {name: STATE[name].clone() for name in reversed(STATE)}
    again["a"] = again["a"].to(memory_format=torch.channels_last)
    assert tensors_sha256(again) == tensors_sha256(STATE) and len(tensors_sha256(again)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.arange(24.0).reshape(1, 2, 3, 4) + torch.eye(4)[0] * 1e-6},
        {"a": torch.arange(24.0).reshape(1, 2, 4, 3)},
        {"b": torch.tensor([1.5])},
        {"b": torch.tensor(1.5, dtype=torch.float64)},
        {"d": torch.empty(0)},
    ],
)
def test_it_tells_names_shapes_types_and_values_apart(change):
    assert tensors_sha256({**STATE, **change}) != tensors_sha256(STATE)
