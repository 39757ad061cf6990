"""Samples that are no images, as small pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddim.display.presenter import draw
from ddim.display.samples import CELL, OVERVIEW, Frame, as_images, each, overview, together
from ddim.findings.telling import Against, Animation, Flow, Sheet, Strip

KINDS = {"points": (2,), "rows": (5,), "series": (2, 8)}


def samples(kind: str, count: int = 6) -> torch.Tensor:
    return torch.randn(count, *KINDS[kind], generator=torch.Generator().manual_seed(0))


def ink(picture: np.ndarray) -> np.ndarray:
    """Where there is colour, neither white nor grey."""
    return np.ptp(picture.astype(int), axis=-3) > 40


@pytest.mark.parametrize("kind", KINDS)
def test_strips_sheets_and_films_become_pictures(kind):
    values = samples(kind)
    strip = as_images(Strip([("a", values), ("b", list(values))], "title"))
    assert isinstance(strip, Strip)
    assert strip.rows[0][1].shape == (6, 3, CELL, CELL) and strip.rows[0][1].dtype == np.uint8
    assert np.array_equal(strip.rows[0][1], strip.rows[1][1]), "a list of samples is as good as an array"
    sheet = as_images(Sheet({("0", 5): values, ("1", 5): values + 1}))
    assert isinstance(sheet, Sheet) and sheet.images["0", 5].shape == (1, 3, OVERVIEW, OVERVIEW)
    film = as_images(Animation([values, values], ["t", "0"], 50))
    assert isinstance(film, Animation) and len(film.frames[0]) == (1 if kind == "points" else 6)
    for picture in (strip, sheet):
        assert draw(picture).width > CELL
    assert ink(overview(values)).any()


def test_images_stay_what_they_are():
    strip = Strip([("a", torch.zeros(2, 1, 8, 8, dtype=torch.uint8))], "title")
    assert as_images(strip) is strip


def test_points_are_where_they_are():
    """Upper right of the frame is upper right in the picture."""
    frame = Frame(np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    (picture,) = together(np.array([[0.5, 0.5]]), frame)
    rows, columns = np.nonzero(ink(picture))
    assert abs(rows.mean() - 0.25 * OVERVIEW) < 2 and abs(columns.mean() - 0.75 * OVERVIEW) < 2
    assert not ink(together(np.array([[3.0, 0.0], [np.nan, 0.0]]), frame)).any(), "outside nothing is drawn"


def test_a_series_rises_where_it_rises():
    frame = Frame(np.array([0.0]), np.array([1.0]))
    (picture,) = each(np.linspace(0.1, 0.9, 9)[None, None], frame)
    rows, columns = np.nonzero(ink(picture))
    assert np.corrcoef(rows, columns)[0, 1] < -0.99


def test_one_that_is_far_out_does_not_decide_the_frame():
    values = np.random.default_rng(0).normal(size=(500, 2))
    values[0] = 1e6
    frame = Frame.around([values])
    assert (frame.high < 5).all() and (frame.high - frame.low)[0] == pytest.approx((frame.high - frame.low)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_beside_real_ones(kind):
    values = samples(kind, 40)
    picture = draw(Against([("S = 5", values), ("S = 10", values + 0.1)], values, "title", ["first"]))
    assert ink(np.asarray(picture).transpose(2, 0, 1)).any() and picture.width > 600


def test_the_ways_of_points():
    ways = torch.randn(30, 6, 2, generator=torch.Generator().manual_seed(0)).cumsum(dim=1)
    picture = draw(Flow([("η = 0", ways), ("η = 1", ways)], ways[:, -1], "title"))
    assert picture.width > picture.height and ink(np.asarray(picture).transpose(2, 0, 1)).mean() > 0.005
