"""Samples that are no images as small pictures, so that sheets, rows and films show them as they show images.

What a sample is can be seen from its array: float (N, 2) are points of the plane, (N, D) rows of a table, which become
lines over their columns, and (N, C, L) series, which become lines over time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ddim.findings.telling import Animation, Picture, Sheet, Strip

# Pixels of one sample's picture, and of one that shows many.
CELL, OVERVIEW = 96, 240
# Drawn so much larger first: smooth lines.
FINER = 2
COLOURS = ("#0072B2", "#D55E00", "#009E73")
FAINT = "#c8c8c8"
# What lies farther out than all but one in a hundred does not decide the frame.
OUTSIDE, MARGIN = 1.0, 0.15
MOST_LINES = 200


@dataclass(frozen=True)
class Frame:
    """What is drawn between the edges: low and high of each axis (2,), of each column (D,), or of all series (1,)."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def around(cls, arrays: Sequence[NDArray[np.float64]]) -> Frame:
        """Of arrays (N, 2), (N, D) or (N, C, L) of one kind."""
        every = np.concatenate(arrays)
        values = every.reshape(len(every), -1) if every.ndim == 2 else every.reshape(-1, 1)
        values = values[np.isfinite(values).all(axis=1)]
        if not len(values):
            values = np.zeros((1, values.shape[1]))
        low, high = np.percentile(values, [OUTSIDE, 100 - OUTSIDE], axis=0)
        if every.ndim == 2 and every.shape[1] == 2:
            # Circles stay circles.
            centre, half = (low + high) / 2, (high - low).max() / 2
            low, high = centre - half, centre + half
        room = np.where(high > low, MARGIN * (high - low), 1.0)
        return cls(low - room, high + room)

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """To [0, 1] between the edges, along the last axis."""
        return (values - self.low) / (self.high - self.low)


def is_image(samples: Any) -> bool:
    """Whether samples (N, ...), or the first of a list of them, are uint8 images."""
    first = samples[0] if isinstance(samples, list | tuple) else samples
    return "uint8" in str(first.dtype)


def as_images(picture: Picture) -> Picture:
    """The picture with images in place of samples that are none; itself where they are images."""
    match picture:
        case Strip(rows) if not is_image(rows[0][1]):
            arrays = [array_of(samples) for _, samples in rows]
            # Where there are originals they decide: what has failed beside them may be anywhere.
            frame = Frame.around(arrays[:1] if rows[0][0].startswith("original") else arrays)
            drawn = [(label, each(array, frame)) for (label, _), array in zip(rows, arrays, strict=True)]
            return replace(picture, rows=drawn)
        case Sheet(images) if images and not is_image(next(iter(images.values()))):
            cells = {place: array_of(samples) for place, samples in images.items()}
            frame = Frame.around(list(cells.values()))
            return replace(picture, images={place: together(array, frame) for place, array in cells.items()})
        case Animation(frames) if not is_image(frames[0]):
            arrays = [array_of(samples) for samples in frames]
            # The end decides: far from it predictions may be anywhere.
            frame = Frame.around(arrays[-1:])
            show = together if _are_points(arrays[0]) else each
            return replace(picture, frames=[show(array, frame) for array in arrays])
    return picture


def overview(samples: Any) -> NDArray[np.uint8]:
    """All samples in one picture: uint8 (1, 3, H, W)."""
    array = array_of(samples)
    return together(array, Frame.around([array]))


def array_of(samples: Any) -> NDArray[np.float64]:
    """Samples, or a list of single ones, as one array."""
    if isinstance(samples, list | tuple):
        return np.stack([array_of(sample) for sample in samples])
    return np.asarray(samples.detach().cpu() if hasattr(samples, "detach") else samples, dtype=np.float64)


def each(samples: NDArray[np.float64], frame: Frame) -> NDArray[np.uint8]:
    """A picture of each sample, uint8 (N, 3, H, W); of points, among the others."""
    pictures = []
    for number in range(len(samples)):
        draw = _Canvas(CELL)
        if _are_points(samples):
            draw.dots(frame.scaled(samples), 3.0, FAINT)
            draw.dots(frame.scaled(samples[number : number + 1]), 6.0, COLOURS[0])
        else:
            draw.lines(samples[number], frame, 1)
        pictures.append(draw.pixels())
    return np.stack(pictures)


def together(samples: NDArray[np.float64], frame: Frame) -> NDArray[np.uint8]:
    """One picture of all samples, uint8 (1, 3, H, W)."""
    draw = _Canvas(OVERVIEW)
    if _are_points(samples):
        draw.dots(frame.scaled(samples), 2.5, COLOURS[0])
    else:
        for sample in samples[:MOST_LINES]:
            draw.lines(sample, frame, 1)
    return draw.pixels()[None]


def _are_points(samples: NDArray[np.float64]) -> bool:
    return samples.ndim == 2 and samples.shape[1] == 2


class _Canvas:
    def __init__(self, size: int) -> None:
        self.size = size
        self.image = Image.new("RGB", (size * FINER, size * FINER), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.draw.rectangle((0, 0, size * FINER - 1, size * FINER - 1), outline="#dddddd")

    def dots(self, places: NDArray[np.float64], radius: float, colour: str) -> None:
        """places: (N, 2) on [0, 1], upwards; what is not there is left out."""
        inside = np.isfinite(places).all(axis=1) & (np.abs(places - 0.5) <= 0.5).all(axis=1)
        for x, y in places[inside] * (self.size * FINER - 1):
            top = self.size * FINER - 1 - y
            self.draw.ellipse((x - radius, top - radius, x + radius, top + radius), fill=colour)

    def lines(self, sample: NDArray[np.float64], frame: Frame, width: int) -> None:
        """A line of a row (D,), over its columns, or one of each channel of a series (C, L)."""
        channels = frame.scaled(sample)[None] if sample.ndim == 1 else frame.scaled(sample[..., None])[..., 0]
        across = np.linspace(0, self.size * FINER - 1, channels.shape[1]) if channels.shape[1] > 1 else np.zeros(1)
        for channel, colour in zip(channels, COLOURS * len(channels), strict=False):
            heights = (1 - np.clip(np.nan_to_num(channel), -0.1, 1.1)) * (self.size * FINER - 1)
            self.draw.line([*zip(across.tolist(), heights.tolist(), strict=True)], fill=colour, width=width)

    def pixels(self) -> NDArray[np.uint8]:
        """(3, size, size)."""
        small = self.image.resize((self.size, self.size), Image.Resampling.BOX)
        return np.asarray(small).transpose(2, 0, 1)
