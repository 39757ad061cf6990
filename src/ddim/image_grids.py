"""Images side by side as one picture: plain grids, and sheets with eta down and S across."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ddim.records import eta_order, eta_title

_VISIBLE = 48
_SHEET_WIDTH = 1400
_MARGIN = 24


def pixels_of(images: torch.Tensor | np.ndarray) -> np.ndarray:
    """uint8 (N, C, H, W) -> uint8 numpy (N, H, W, C)."""
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W) and not empty, got {array.dtype} {array.shape}")
    return array.transpose(0, 2, 3, 1)


def image_grid(images: torch.Tensor | np.ndarray, columns: int, scale: int | None = None) -> Image.Image:
    """Images side by side, row by row, on white; gaps are one pixel of the images wide but never less than 2.

    images: uint8 (N, C, H, W), C = 1 (greyscale picture) or 3 (RGB). Each pixel becomes a square of scale x scale;
    by default the smallest scale that shows an image at no less than 48 pixels. Raises ValueError on anything else.
    """
    pixels = pixels_of(images)
    if columns < 1 or (scale is not None and scale < 1):
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    count, height, width, channels = pixels.shape
    scale = scale or math.ceil(_VISIBLE / min(height, width))
    # A thinner white line would run into the strokes of small digits, which reach the edge of their image.
    gap = max(2, scale)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width, columns = height * scale, width * scale, min(columns, count)
    rows = math.ceil(count / columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def cut_grid(picture: Image.Image, height: int, width: int, count: int) -> np.ndarray:
    """The first `count` images of a picture that `image_grid` drew at its default scale: uint8 (count, C, H, W).

    height, width: of one image. Raises ValueError where the picture cannot be such a grid of that many.
    """
    scale = math.ceil(_VISIBLE / min(height, width))
    gap = max(2, scale)
    columns, rest = divmod(picture.width + gap, width * scale + gap)
    rows, below = divmod(picture.height + gap, height * scale + gap)
    if rest or below or not 0 < count <= columns * rows:
        raise ValueError(f"a picture of {picture.size} pixels is not a grid of {count} images of {width}x{height}")
    pixels = np.asarray(picture)[..., None] if picture.mode == "L" else np.asarray(picture.convert("RGB"))
    images = []
    for number in range(count):
        top, left = number // columns * (height * scale + gap), number % columns * (width * scale + gap)
        images.append(pixels[top : top + height * scale : scale, left : left + width * scale : scale])
    return np.stack(images).transpose(0, 3, 1, 2)


def sample_sheet(
    images_by_point: Mapping[tuple[str, int], torch.Tensor | np.ndarray], title: str | None = None
) -> Image.Image:
    """All grid points on one labelled sheet: rows are eta, columns are S, every cell shows the same latents in order.

    images_by_point: {(eta label, S): uint8 (n, C, H, W)}; all of one shape (ValueError otherwise). A point that is
    missing leaves its place grey.
    """
    shapes = {pixels_of(images).shape for images in images_by_point.values()}
    if len(shapes) != 1:
        raise ValueError(f"every point must have images of the same number and shape, got {sorted(shapes) or 'none'}")
    count, height, width, _ = shapes.pop()
    labels = sorted({label for label, _ in images_by_point}, key=eta_order)
    all_steps = sorted({steps for _, steps in images_by_point})
    columns = math.ceil(math.sqrt(count))
    room = (_SHEET_WIDTH // len(all_steps) - _MARGIN) // columns
    scale = max(math.ceil(_VISIBLE / min(height, width)), min(room, 2 * _VISIBLE) // (width + 1))
    cells = {point: image_grid(images, columns, scale) for point, images in images_by_point.items()}
    cell_width, cell_height = next(iter(cells.values())).size

    text, heading = font(22), font(28)
    left = math.ceil(max(text.getlength(eta_title(label)) for label in labels)) + 2 * _MARGIN
    sheet_width = max(640, left + len(all_steps) * (cell_width + _MARGIN))
    characters = int((sheet_width - 2 * _MARGIN) / heading.getlength("n"))
    title_lines = textwrap.wrap("Samples from the same latents" if title is None else title, characters)
    top = _MARGIN + 38 * len(title_lines) + 40
    sheet = Image.new("RGB", (sheet_width, top + len(labels) * (cell_height + _MARGIN)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title_lines):
        draw.text((_MARGIN, 20 + 38 * number), line, fill="black", font=heading)
    for column, steps in enumerate(all_steps):
        x = left + column * (cell_width + _MARGIN)
        draw.text((x + cell_width / 2, top - 12), f"S = {steps}", fill="black", font=text, anchor="ms")
        for row, label in enumerate(labels):
            y = top + row * (cell_height + _MARGIN)
            if column == 0:
                draw.text((left - _MARGIN, y + cell_height / 2), eta_title(label), fill="black", font=text, anchor="rm")
            if (label, steps) in cells:
                sheet.paste(cells[label, steps].convert("RGB"), (x, y))
            else:
                draw.rectangle((x, y, x + cell_width - 1, y + cell_height - 1), fill="#f0f0f0")
    return sheet


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: it has the Greek letters, which Pillow's own lacks."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
