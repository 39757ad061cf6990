"""A row of the grid: what it is made of, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddim.findings.rows import GridResult


def test_tensors_and_numpy_scalars_become_plain_numbers(result) -> None:
    row = result(
        frechet_distance=torch.tensor(2.5), steps=np.int64(7), eta=np.float32(0.5), timesteps=torch.tensor([1, 2])
    )
    assert (row.frechet_distance, row.steps, row.eta, row.timesteps) == (2.5, 7, 0.5, (1, 2))
    assert [type(value) for value in (row.frechet_distance, row.steps, row.eta, row.timesteps)] == [
        float,
        int,
        float,
        tuple,
    ]
    assert GridResult(**row.as_record()) == row


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 2.5), ("steps", None), ("seconds", "fast"), ("clip_denoised", "maybe"), ("timesteps", 3), ("seed", "")],
)
def test_a_value_of_another_type_is_refused_by_name(result, name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        result(**{name: value})
