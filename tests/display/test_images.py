"""Pictures made of images, and images cut out of such pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ddim.display.images import cut_grid, each_captioned, image_grid, sample_sheet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1, 3])
def test_grid_puts_every_pixel_where_it_belongs(channels: int, scale: int) -> None:
    images = torch.randint(0, 255, (5, channels, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = image_grid(images, columns=3, scale=scale)
    assert picture.mode == ("L" if channels == 1 else "RGB")
    gap = max(2, scale)
    height, width = 4 * scale, 6 * scale
    assert picture.size == (3 * width + 2 * gap, 2 * height + gap)
    array = np.asarray(picture).reshape(picture.height, picture.width, channels)
    expected = np.full_like(array, 255)
    for index in range(5):
        row, column = divmod(index, 3)
        for y in range(height):
            for x in range(width):
                value = images[index, :, y // scale, x // scale].numpy()
                expected[row * (height + gap) + y, column * (width + gap) + x] = value
    np.testing.assert_array_equal(array, expected)


def test_grid_takes_numpy_as_well() -> None:
    images = np.arange(2 * 3 * 8 * 8, dtype=np.uint8).reshape(2, 3, 8, 8)
    assert image_grid(images, 2).tobytes() == image_grid(torch.from_numpy(images), 2).tobytes()


@pytest.mark.parametrize(("size", "cell"), [(8, 48), (28, 56), (32, 64), (48, 48), (64, 64), (5, 50)])
def test_small_images_are_shown_at_a_visible_size(size: int, cell: int) -> None:
    picture = image_grid(torch.zeros(1, 1, size, size, dtype=torch.uint8), columns=8)
    assert picture.size == (cell, cell)


@pytest.mark.parametrize(
    ("images", "columns", "scale"),
    [
        (torch.zeros(1, 1, 8, 8), 1, None),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), 1, None),
        (torch.zeros(1, 2, 8, 8, dtype=torch.uint8), 1, None),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), 1, None),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 0, None),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), 1, 0),
    ],
)
def test_grid_refuses_what_is_not_a_batch_of_images(images, columns, scale) -> None:
    with pytest.raises(ValueError, match="must be"):
        image_grid(images, columns, scale)


def test_sheet_has_eta_down_and_steps_across() -> None:
    levels = {("σ̂", 5): 40, ("0", 50): 120, ("0", 5): 80, ("1", 5): 160, ("1", 50): 200}
    sheet = sample_sheet({p: torch.full((4, 1, 8, 8), v, dtype=torch.uint8) for p, v in levels.items()}, "digits")
    array = np.asarray(sheet)
    assert sheet.mode == "RGB" and sheet.width <= 1500
    centres = {}
    for point, level in levels.items():
        solid = np.argwhere((array == level).all(axis=-1))
        assert len(solid) >= 4 * 48 * 48
        centres[point] = np.median(solid, axis=0)
    assert centres["0", 5][0] < centres["1", 5][0] < centres["σ̂", 5][0]
    assert centres["0", 5][0] == centres["0", 50][0]
    assert centres["0", 5][1] < centres["0", 50][1]
    assert centres["0", 5][1] == centres["1", 5][1] == centres["σ̂", 5][1]
    # Labels: something dark left of each row, above each column, and in the title.
    dark = array.max(axis=-1) < 100
    left = round(centres["0", 5][1]) - 60
    for label in ("0", "1", "σ̂"):
        y = round(centres[label, 5][0])
        assert dark[y - 15 : y + 15, : left - 30].any()
    top = round(centres["0", 5][0]) - 60
    assert dark[: top // 2].any() and dark[top // 2 : top, left:].any()


@pytest.mark.parametrize(("more", "labels"), [({}, ["S = 5", "S = 20"]), ({"column": "nfe"}, ["nfe = 5", "nfe = 20"])])
def test_a_sheet_says_what_its_columns_and_rows_are(monkeypatch, more: dict[str, str], labels: list[str]) -> None:
    said: list[str] = []
    text = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, what, **how: (said.append(what), text(self, at, what, **how))
    )
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    sample_sheet(dict.fromkeys([("ddim", 20), ("ddim", 5), ("0.5", 5), ("deis order2", 5)], images), **more)
    assert [what for what in said if "=" in what and "η" not in what] == labels
    assert [what for what in said if "=" not in what or "η" in what] == [
        "Samples from the same latents",
        "η = 0.5",
        "ddim",
        "deis order2",
    ]


def test_sheet_refuses_points_that_do_not_match() -> None:
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="same number and shape"):
        sample_sheet({("0", 5): images, ("1", 5): images[:3]})
    with pytest.raises(ValueError, match="none"):
        sample_sheet({})


def test_long_sheet_title_stays_inside() -> None:
    images = {("0", 5): torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)}
    array = np.asarray(sample_sheet(images, "a title that is a good deal longer than the picture is wide " * 2))
    assert (array[:, -10:] == 255).all()


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 17),
    channels=st.sampled_from([1, 3]),
    height=st.integers(3, 70),
    width=st.integers(3, 70),
    columns=st.integers(1, 9),
)
def test_a_drawn_grid_is_cut_into_the_very_images(count, channels, height, width, columns):
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)
    assert np.array_equal(cut_grid(image_grid(images, columns), height, width, count), images.numpy())


def test_what_is_not_a_grid_of_that_size_is_not_cut():
    with pytest.raises(ValueError, match="not a grid"):
        cut_grid(Image.new("L", (100, 100)), 8, 8, 1)


def test_a_caption_stands_under_its_own_image_and_is_red_where_that_is_marked() -> None:
    images = torch.full((9, 1, 16, 16), 0, dtype=torch.uint8)
    captions = ["a one left of a two"] * 8 + ["an eight below a seven"]
    sheet = np.asarray(each_captioned(images, captions, [False, True, *[False] * 7], "digits")).astype(int)
    cells = [np.flatnonzero((sheet[:, x] == 0).all(axis=1)) for x in (24 + 5, 24 + 168 + 5)]
    assert len(cells[0]) >= 2 * 144 and 144 <= len(cells[1]) < 2 * 144, "two rows, the second has one image"
    red = (sheet[..., 0] > 150) & (sheet[..., 1] < 60)
    rows, columns = np.nonzero(red)
    assert len(rows) and columns.min() >= 24 + 168 and columns.max() < 24 + 2 * 168, "under the second image alone"
    assert cells[1].max() < rows.min()
    with pytest.raises(ValueError, match="9 images with 8 captions"):
        each_captioned(images, captions[:8], [False] * 9, "digits")
