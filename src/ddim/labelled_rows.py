"""Rows of images with a label before each row and, where asked for, one above each column."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ddim.image_grids import font, image_grid, pixels_of

_MARGIN, _WIDTH, _LARGEST_CELL = 24, 1400, 96


def labelled_rows(
    rows: Sequence[tuple[str, torch.Tensor | np.ndarray]],
    title: str,
    columns: Sequence[str] = (),
    *,
    breaks: Sequence[int] = (),
) -> Image.Image:
    """One picture of several rows of images, at most about 1,400 pixels wide where the images allow it.

    rows: (label, uint8 (n, C, H, W)); all rows of one number and shape of images. columns: labels above the columns,
    one for each or none. breaks: numbers of rows that have a wider gap above them, which groups the rows.

    Raises ValueError where rows are missing or do not agree.
    """
    shapes = {pixels_of(images).shape for _, images in rows}
    if len(shapes) != 1:
        raise ValueError(f"all rows must have images of the same number and shape, got {sorted(shapes) or 'none'}")
    count, height, width, _ = shapes.pop()
    if columns and len(columns) != count:
        raise ValueError(f"{len(columns)} labels for {count} columns")
    text, heading = font(20), font(28)
    left = math.ceil(max(text.getlength(label) for label, _ in rows)) + 2 * _MARGIN
    wanted = min(_LARGEST_CELL, (_WIDTH - left) // count) // max(height, width)
    scale = max(1, wanted, math.ceil(32 / min(height, width)))
    strips = [image_grid(images, count, scale).convert("RGB") for _, images in rows]
    strip_width, strip_height = strips[0].size
    sheet_width = max(640, left + strip_width + _MARGIN)
    title_lines = textwrap.wrap(title, int((sheet_width - 2 * _MARGIN) / heading.getlength("n")))
    gap = max(2, scale)
    top = _MARGIN + 38 * len(title_lines) + (34 if columns else 8)
    extra = [_MARGIN * sum(number <= row for number in breaks if number > 0) for row in range(len(rows))]
    sheet = Image.new("RGB", (sheet_width, top + len(rows) * (strip_height + gap) + extra[-1] + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title_lines):
        draw.text((_MARGIN, 20 + 38 * number), line, fill="black", font=heading)
    pitch = (strip_width + gap) / count
    for number, label in enumerate(_that_fit(columns, text, pitch)):
        draw.text((left + number * pitch + (pitch - gap) / 2, top - 8), label, fill="black", font=text, anchor="ms")
    for number, ((label, _), strip) in enumerate(zip(rows, strips, strict=True)):
        y = top + number * (strip_height + gap) + extra[number]
        draw.text((left - _MARGIN, y + strip_height / 2), label, fill="black", font=text, anchor="rm")
        sheet.paste(strip, (left, y))
    return sheet


def _that_fit(columns: Sequence[str], text: ImageFont.FreeTypeFont, pitch: float) -> list[str]:
    """Every label, or every second, third, ... where neighbours would run into each other."""
    longest = max((text.getlength(label) for label in columns), default=0.0) + 8
    every = max(1, math.ceil(longest / pitch))
    return [label if number % every == 0 else "" for number, label in enumerate(columns)]
