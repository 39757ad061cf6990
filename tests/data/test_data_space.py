"""uint8 <-> [-1, 1]: exact on all 256 values, rounded in between, clamped outside."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim.data import Pixels, to_model_space, to_uint8

ALL_VALUES = torch.arange(256, dtype=torch.uint8)


def test_ends_of_the_range_and_dtype() -> None:
    x = to_model_space(ALL_VALUES)
    assert x.dtype == torch.float32
    assert x[0] == -1.0 and x[255] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact_on_all_values(dtype: torch.dtype) -> None:
    assert torch.equal(to_uint8(to_model_space(ALL_VALUES).to(dtype)), ALL_VALUES)


@settings(deadline=None)
@given(value=st.integers(0, 254), fraction=st.floats(0.01, 0.99).filter(lambda f: abs(f - 0.5) > 0.01))
def test_values_in_between_go_to_the_nearest(value: int, fraction: float) -> None:
    x = torch.tensor([(value + fraction) / 127.5 - 1.0], dtype=torch.float64)
    assert to_uint8(x).item() == value + (fraction > 0.5)


def test_outside_values_are_clamped() -> None:
    x = torch.tensor([-float("inf"), -7.0, -1.001, 1.001, 7.0, float("inf")])
    assert to_uint8(x).tolist() == [0, 0, 0, 255, 255, 255]


def test_low_precision_is_widened_before_the_arithmetic() -> None:
    x = to_model_space(ALL_VALUES).to(torch.bfloat16)
    assert torch.equal(to_uint8(x), to_uint8(x.to(torch.float64)))


@pytest.mark.parametrize(
    ("convert", "argument", "message"),
    [
        (to_model_space, torch.zeros(1), "uint8"),
        (to_model_space, torch.zeros(1, dtype=torch.int64), "uint8"),
        (to_uint8, ALL_VALUES, "floating-point"),
        (to_uint8, torch.tensor([0.0, float("nan")]), "NaN"),
    ],
)
def test_wrong_arguments_are_refused(convert, argument, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        convert(argument)


def test_pixels_are_a_space_of_images() -> None:
    space = Pixels((1, 16, 16))
    images = ALL_VALUES.reshape(1, 1, 16, 16)
    assert (space.kind, space.shape) == ("images", (1, 16, 16))
    assert torch.equal(space.to_model(images), to_model_space(images))
    assert torch.equal(space.to_stored(space.to_model(images) * 2), to_uint8(to_model_space(images) * 2))
