"""Missing values of vectors and series: which are known, and by whom."""

from __future__ import annotations

import pytest
import torch

from ddim.diffusion.restoration.operators.inpainting import Inpainting, line_mask
from ddim.diffusion.restoration.operators.table import OperatorSettings, build_operator


@pytest.mark.parametrize("shape", [(7,), (2, 6)])
def test_the_known_values_are_measured_and_the_others_are_zero(shape):
    operator = build_operator("inpainting", shape, OperatorSettings(keep=0.5, seed=3))
    known = line_mask("random", shape, keep=0.5, seed=3)
    x = torch.arange(1.0, 1 + 3 * len(known) * (shape[0] if len(shape) > 1 else 1)).reshape(3, *shape)
    assert operator.A(x).tolist() == x[..., known].flatten(1).tolist()
    assert torch.equal(operator.A_dagger(operator.A(x)), torch.where(known, x, 0.0))
    assert int((operator.singular_values == 0).sum()) == int((~known).sum()) * (shape[0] if len(shape) > 1 else 1)


def test_masks_of_a_series_are_gaps_in_time():
    assert line_mask("box", (2, 8), box=0.5).tolist() == [True, True, False, False, False, False, True, True]
    assert line_mask("half", (2, 5)).tolist() == [True, True, False, False, False]
    assert int(line_mask("random", (3, 10), keep=0.3).sum()) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("box", (4,)), "needs an order, which columns have none of"),
        (("random", (4,), 0.0), "leaves no one of 4 values"),
        (("random", (4,), 1.0), "leaves every one of 4 values"),
        (("stripe", (4,)), "mask must be one of random, box, half"),
    ],
)
def test_a_mask_that_leaves_nothing_to_do_is_refused(arguments, sentence):
    name, shape, *keep = arguments
    with pytest.raises(ValueError, match=sentence):
        line_mask(name, shape, keep=keep[0] if keep else 0.5)
    with pytest.raises(ValueError, match="each of 4 values"):
        Inpainting((4,), torch.ones(5, dtype=torch.bool))
