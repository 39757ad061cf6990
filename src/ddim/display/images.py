"""Images side by side as one picture: plain grids, sheets with eta down and S across, labelled rows, animations."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddim.findings.labels import eta_order, eta_title
from ddim.findings.telling import Animation

LAST_FRAME_MILLISECONDS = 1500
# Pixels that an image is shown with, at least.
_VISIBLE = 48
_WIDTH = 1400
_MARGIN, _LARGEST_CELL = 24, 96
# Wide enough for five short words of a caption in two lines.
_CAPTIONED, _RED = 144, "#c00000"


# A numpy array, a tensor, or a sequence of these; tensors are known by what they can do, as torch is not loaded here.
Images = Any


def pixels_of(images: Images) -> np.ndarray:
    """uint8 (N, C, H, W) -> uint8 numpy (N, H, W, C)."""
    array = np.stack([_array(image) for image in images]) if isinstance(images, list | tuple) else _array(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape:
        raise ValueError(f"images must be uint8 (N, 1 or 3, H, W) and not empty, got {array.dtype} {array.shape}")
    return array.transpose(0, 2, 3, 1)


def _array(images: Any) -> np.ndarray:
    return np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)


def image_grid(images: Images, columns: int, scale: int | None = None) -> Image.Image:
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


def samples_picture(images: Images) -> Image.Image:
    """Samples (n, C, H, W) of one point as a nearly square grid."""
    return image_grid(images, max(1, round(len(images) ** 0.5)))


def captioned(images: Images, caption: str) -> Image.Image:
    """Images (n, C, H, W) side by side in rows of at most eight, the one caption of all of them underneath."""
    text = font(22)
    grid = image_grid(images, 8, max(1, _LARGEST_CELL // max(pixels_of(images).shape[1:3]))).convert("RGB")
    width = max(grid.width, 2 * _LARGEST_CELL) + 2 * _MARGIN
    lines = textwrap.wrap(caption, max(1, int((width - 2 * _MARGIN) / text.getlength("n"))))
    picture = Image.new("RGB", (width, grid.height + 2 * _MARGIN + 30 * len(lines)), "white")
    picture.paste(grid, ((width - grid.width) // 2, _MARGIN))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        place = (width / 2, grid.height + _MARGIN + 30 * (number + 0.5) + 6)
        draw.text(place, line, fill="black", font=text, anchor="mm")
    return picture


def each_captioned(images: Images, captions: Sequence[str], marked: Sequence[bool], title: str) -> Image.Image:
    """Images (n, C, H, W), eight in a row, each above its own caption, which is red where the image is marked.

    Raises ValueError where there are not as many captions and marks as images.
    """
    pixels, text, heading = pixels_of(images), font(15), font(26)
    count, height, width, _ = pixels.shape
    if not count == len(captions) == len(marked):
        raise ValueError(f"{count} images with {len(captions)} captions and {len(marked)} marks")
    scale = max(1, _CAPTIONED // max(height, width))
    pitch = max(_CAPTIONED, width * scale) + _MARGIN
    lines = [textwrap.wrap(caption, int(pitch / text.getlength("n"))) for caption in captions]
    row = height * scale + 20 * max(map(len, lines)) + _MARGIN
    columns = min(8, count)
    title_lines = textwrap.wrap(title, int(columns * pitch / heading.getlength("n")))
    top = _MARGIN + 36 * len(title_lines)
    sheet = Image.new("RGB", (columns * pitch + _MARGIN, top + math.ceil(count / columns) * row), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(title_lines):
        draw.text((_MARGIN, 16 + 36 * number), line, fill="black", font=heading)
    for number, image in enumerate(images):
        x, y = _MARGIN + number % columns * pitch, top + number // columns * row
        sheet.paste(image_grid([image], 1, scale).convert("RGB"), (x, y))
        for place, line in enumerate(lines[number]):
            where = (x + width * scale / 2, y + height * scale + 14 + 20 * place)
            draw.text(where, line, fill=_RED if marked[number] else "black", font=text, anchor="mm")
    return sheet


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
    images_by_point: Mapping[tuple[str, int], Images], title: str | None = None, column: str = "S"
) -> Image.Image:
    """All grid points on one labelled sheet: rows are eta, columns are S, every cell shows the same latents in order.

    images_by_point: {(label, S): uint8 (n, C, H, W)}; all of one shape (ValueError otherwise). A point that is missing
    leaves its place grey. column: what columns are, S or network calls.
    """
    shapes = {pixels_of(images).shape for images in images_by_point.values()}
    if len(shapes) != 1:
        raise ValueError(f"every point must have images of the same number and shape, got {sorted(shapes) or 'none'}")
    count, height, width, _ = shapes.pop()
    labels = sorted({label for label, _ in images_by_point}, key=eta_order)
    all_steps = sorted({steps for _, steps in images_by_point})
    columns = math.ceil(math.sqrt(count))
    room = (_WIDTH // len(all_steps) - _MARGIN) // columns
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
    for place, steps in enumerate(all_steps):
        x = left + place * (cell_width + _MARGIN)
        draw.text((x + cell_width / 2, top - 12), f"{column} = {steps}", fill="black", font=text, anchor="ms")
        for row, label in enumerate(labels):
            y = top + row * (cell_height + _MARGIN)
            if place == 0:
                draw.text((left - _MARGIN, y + cell_height / 2), eta_title(label), fill="black", font=text, anchor="rm")
            if (label, steps) in cells:
                sheet.paste(cells[label, steps].convert("RGB"), (x, y))
            else:
                draw.rectangle((x, y, x + cell_width - 1, y + cell_height - 1), fill="#f0f0f0")
    return sheet


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib: it has the Greek letters, which Pillow's own lacks."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def labelled_rows(
    rows: Sequence[tuple[str, Images]],
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


def animation(film: Animation) -> tuple[list[Image.Image], dict[str, Any]]:
    """The frames of an endless GIF, and the options it is saved with. The last frame stays longer."""
    text = font(16)
    margin, line = 10, 32
    scale = max(1, round(96 / max(pixels_of(film.frames[0]).shape[1:3])))
    pictures = []
    for images, label in zip(film.frames, film.labels, strict=True):
        grid = image_grid(images, max(1, round((1.5 * len(images)) ** 0.5)), scale)
        width = max(grid.width, int(max(text.getlength(label) for label in film.labels))) + 2 * margin
        picture = Image.new(grid.mode, (width, grid.height + line + margin), "white")
        ImageDraw.Draw(picture).text((margin, line / 2), label, fill="black", font=text, anchor="lm")
        picture.paste(grid, (margin, line))
        pictures.append(picture)
    durations = [film.milliseconds] * (len(pictures) - 1) + [max(film.milliseconds, LAST_FRAME_MILLISECONDS)]
    return pictures, {"save_all": True, "duration": durations, "loop": 0, "optimize": True}
