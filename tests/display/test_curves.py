"""Figures of a quantity against S, whatever values there are."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from ddim.display.curves import _draw, steps_figure
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


def axes_of(panel):
    figure = Figure()
    axes = figure.subplots()
    _draw(axes, panel)
    FigureCanvasAgg(figure).draw()
    return axes


@pytest.mark.parametrize("x_log", [True, False])
def test_values_are_written_out_whatever_the_axes_are(x_log):
    """Matplotlib itself writes 2 x 10^0, one label above the other."""
    axes = axes_of(Panel("distance", {"a": [(1, 1.8), (9, 0.25), (10, 2.1)]}, x_log=x_log))
    low, high = axes.get_ylim()
    labels = zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    shown = [label.get_text() for label, place in labels if low < place < high]
    assert shown == ["0.5", "1", "2"] and not len(axes.yaxis.get_minorticklocs())


def test_a_value_axis_need_not_begin_at_zero():
    """Decibels have no zero to compare with."""
    panel = Panel("PSNR", {"a": [(5, 17.0), (10, 18.0)]}, log=False)
    assert axes_of(panel).get_ylim()[0] == 0
    low, high = axes_of(replace(panel, from_zero=False)).get_ylim()
    assert 16.5 < low < 17 and 18 < high < 18.5


def test_a_line_goes_the_way_it_is_said_where_places_are_no_steps():
    """Scales of guidance: their accuracy may fall again, and two may have the same."""
    line = [(5, 2.0), (10, 1.0), (10, 3.0), (9, 4.0)]
    (drawn,) = axes_of(Panel("distance", {"a": line}, x_log=False)).get_lines()
    assert list(zip(*drawn.get_data(), strict=True)) == line
    (drawn,) = axes_of(Panel("distance", {"a": line[::-1]})).get_lines()
    assert list(drawn.get_xdata()) == sorted(place for place, _ in line)


@pytest.mark.parametrize("log", [True, False])
def test_bars_are_one_deviation_up_and_down(log):
    points = [(5, 2.0), (10, 1.0), (20, None)]
    axes = axes_of(Panel("value", {"a": points}, log=log, bars={"a": [(5, 2.0, 0.5), (10, 1.0, 3.0)]}))
    (bars,) = (found for found in axes.containers if isinstance(found, ErrorbarContainer))
    ends = [segment[:, 1].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [[1.5, 2.5], [pytest.approx(0.1) if log else -2.0, 4.0]]
    assert axes.get_legend() is None, "of one line"
