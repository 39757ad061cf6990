"""What a file of whatever format holds: which of its weights are taken."""

from __future__ import annotations

import pytest

from ddim.denoisers.formats.contents import UNSTATED, Pretrained
from ddim.errors import UserError


@pytest.mark.parametrize(
    ("held", "asked", "selected"),
    [
        ({"ema", "raw"}, "ema", "ema"),
        ({"ema", "raw"}, "raw", "raw"),
        ({"raw"}, "raw", "raw"),
        ({"ema"}, "ema", "ema"),
        ({UNSTATED}, "ema", UNSTATED),
        ({"raw"}, "ema", r"X holds no EMA weights; take the raw ones \(weights=raw\)"),
        ({"ema"}, "raw", r"X holds no raw weights; take the EMA weights \(weights=ema\)"),
        ({UNSTATED}, "raw", r"X holds one set of weights and does not say that they are raw; .* \(weights=ema\)"),
    ],
)
def test_which_weights_are_taken(held, asked, selected):
    found = Pretrained("X", "official", {}, None, None, {label: {} for label in held})
    if selected in held:
        assert found.select(asked) == selected
    else:
        with pytest.raises(UserError, match=selected):
            found.select(asked)
