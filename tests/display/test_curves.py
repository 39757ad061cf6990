"""Figures of a quantity against S, whatever values there are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ddim.display.curves import steps_figure
from ddim.findings.telling import Panel


@pytest.mark.parametrize(
    "lines",
    [
        {"a": [(10, 0.5)]},
        {"a": [(5, 0.5), (10, 0.0), (20, None)], "b": [(5, math.nan), (20, 1e-9)]},
        {"a": [(steps, 1 / steps) for steps in range(1, 200)]},
        {"a": []},
    ],
)
@pytest.mark.parametrize("log", [True, False])
def test_whatever_there_is_is_drawn(lines, log):
    picture = steps_figure([Panel("value", lines, log=log, level=(0.0, "nothing"))] * 2, "title", "subtitle")
    assert picture.size[0] == 1400 and picture.mode == "RGB"
    assert np.asarray(picture, float).std() > 5
