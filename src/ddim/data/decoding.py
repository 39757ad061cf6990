"""From the bytes of one image file to uint8 pixels: colour, transparency, bit depth, crop and resize."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

RESIZE_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Pillow would hand PostScript, whatever the file's name, to an external interpreter.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
BACKGROUNDS = {"white": 255, "black": 0}


class BadImage(Exception):
    """One file that cannot be used; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class Decoder:
    """How every file of a dataset becomes an array (channels, resolution, resolution).

    A crop, where one is set, comes first: `crop` is (left, top, right, bottom) in pixels and needs files of exactly
    `source_size` (width, height). Then the shorter side is resized to `resolution` (antialiased when it shrinks) and
    the centre square is cut out, with the rounding of torchvision's `Resize` and `CenterCrop`.

    Transparent pixels are composited on `background`. 16-bit greyscale is scaled by 255/65535 and rounded; 16-bit
    colour keeps the high byte, as Pillow reads it. Greyscale from colour is ITU-R 601 luma. EXIF orientation is
    applied. Of an animation the first frame is taken.
    """

    channels: int
    resolution: int
    resize: str = "bilinear"
    background: str = "white"
    allow_upscale: bool = False
    crop: tuple[int, int, int, int] | None = None
    source_size: tuple[int, int] | None = None

    def __call__(self, data: bytes) -> np.ndarray:
        """Decode one file's bytes to uint8 (C, H, W).

        Raises:
            BadImage: not an image, truncated, of unsupported depth, or of the wrong size.
        """
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=FORMATS))
            image.load()
            image = self._to_colour_mode(image)
        except (BadImage, MemoryError):
            raise
        except Exception as error:  # damaged files make the parsers raise nearly anything
            raise BadImage(_one_line(error)) from error
        pixels = np.asarray(self._to_size(image))
        return pixels[None] if self.channels == 1 else pixels.transpose(2, 0, 1)

    def settings(self) -> dict[str, Any]:
        """What, beside the files, decides the pixels; JSON-able."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def _to_colour_mode(self, image: Image.Image) -> Image.Image:
        if image.mode == "F":
            raise BadImage("floating-point pixels are not supported, save it with 8 or 16 bits")
        if image.mode.startswith("I"):
            image = _grey16_to_grey8(image)
        elif image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            value = BACKGROUNDS[self.background]
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (value, value, value, 255)), rgba).convert("RGB")
        elif image.mode == "P":
            image = image.convert("RGB")
        return image.convert("L" if self.channels == 1 else "RGB")

    def _to_size(self, image: Image.Image) -> Image.Image:
        if self.source_size is not None and image.size != self.source_size:
            raise BadImage("it is {}x{} pixels, not {}x{}".format(*image.size, *self.source_size))
        if self.crop is not None:
            image = image.crop(self.crop)
        width, height = image.size
        short, target = min(width, height), self.resolution
        if short < target and not self.allow_upscale:
            raise BadImage(
                f"it is {width}x{height} pixels, smaller than dataset.resolution={target}; "
                "dataset.allow_upscale=true would enlarge it"
            )
        if short != target:
            long = int(target * max(width, height) / short)
            size = (target, long) if width <= height else (long, target)
            image = image.resize(size, RESIZE_FILTERS[self.resize])
        width, height = image.size
        if (width, height) == (target, target):
            return image
        left, top = round((width - target) / 2), round((height - target) / 2)
        return image.crop((left, top, left + target, top + target))


def _grey16_to_grey8(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255 or cuts the low byte off, depending on its version.
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("its values do not fit 16 bits, save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _one_line(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is not an image in a known format"
    text = " ".join(str(error).split())
    return text or type(error).__name__
