"""A row of the grid: what it is made of, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddim.findings.rows import COLUMNS, KNOWN_LATER, GridResult, cells_of, columns_of


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


# The header of results.csv before rows had limits, seeds and deviations.
AS_IT_WAS = [
    "dataset",
    "checkpoint",
    "weights",
    "sampler",
    "eta",
    "variance",
    "tau",
    "steps",
    "nfe",
    "num_samples",
    "seed",
    "features",
    "frechet_distance",
    "seconds",
    "images_per_second",
    "kid_mean",
    "kid_std",
    "precision",
    "recall",
    "inception_score_mean",
    "inception_score_std",
    "weights_hash",
    "clip_denoised",
    "schedule",
    "compute_precision",
    "device",
    "resize",
    "reference",
    "reference_source",
    "reference_images",
    "reference_split",
    "preprocessing",
    "timesteps",
]


class TestColumns:
    def test_rows_without_the_later_columns_have_the_header_that_they_had(self, some_rows) -> None:
        assert columns_of(some_rows) == AS_IT_WAS == list(COLUMNS)
        assert not set(KNOWN_LATER) & set(some_rows[0].as_record())

    def test_a_later_column_is_there_where_one_row_has_it_in_its_order(self, result) -> None:
        rows = [result(), result(as_good=False, seeds=(0, 1), recall_sd=0.1), result(nfe_limit=5, difference=0.0)]
        assert columns_of(rows) == [*COLUMNS, "nfe_limit", "seeds", "difference", "as_good", "recall_sd"]

    def test_the_numbers_behind_the_deviations_are_in_no_table(self, result) -> None:
        row = result(leave_one_out=((1.0, 2.0, 3.0),))
        assert columns_of([row]) == list(COLUMNS) and row.as_record()["leave_one_out"] == [[1.0, 2.0, 3.0]]

    def test_options_and_own_metrics_come_last_each_by_its_name(self, result) -> None:
        rows = [
            result(options=(("order", 2),), frechet_distance_sd=0.1),
            result(options=(("corrector", False), ("order", 3)), other_metrics=(("sharpness", 0.5),)),
        ]
        assert columns_of(rows) == [*COLUMNS, "frechet_distance_sd", "order", "corrector", "sharpness"]
        assert [cells_of(row).get("order") for row in rows] == [2, 3]
        assert cells_of(rows[1])["sharpness"] == 0.5 and "sharpness" not in cells_of(rows[0])
