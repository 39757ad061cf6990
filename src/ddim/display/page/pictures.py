"""Pictures as data URIs, shrunk where they are large."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

# A picture of more bytes is stored as lossy WebP: with the first of these (pixels on its longer side, quality) that
# leaves no more than `ENOUGH_BYTES`, or with the last one.
LARGE_BYTES, ENOUGH_BYTES = 150_000, 300_000
STEPS = ((1280, 85), (1280, 65), (960, 60))
# An animation of more bytes is left out.
ANIMATION_BYTES = 1_500_000
_TYPES = {"PNG": "image/png", "GIF": "image/gif"}
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Picture:
    """What an `<img>` needs: `data` is a data URI, width and height are in pixels.

    `note` says that it was shrunk, or, without data, why the picture is not there.
    """

    data: str
    width: int
    height: int
    note: str = ""


def inlined(path: Path) -> Picture:
    """A PNG or GIF file as it is, or shrunk where it is large. What cannot be read or is too long becomes a note."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=tuple(_TYPES)) as picture:
            picture.load()
            kind, width, height = str(picture.format), picture.width, picture.height
            if kind == "GIF" and len(content) > ANIMATION_BYTES:
                return Picture("", 0, 0, f"{path.name} ({len(content) / 1e6:.1f} MB) is left out, see the file.")
            if kind == "GIF" or len(content) <= LARGE_BYTES:
                return Picture(_data_uri(_TYPES[kind], content), width, height)
            return _shrunk(picture)
    except _UNREADABLE:
        return Picture("", 0, 0, f"{path.name} cannot be read.")


def _shrunk(picture: Image.Image) -> Picture:
    for side, quality in STEPS:
        small = picture.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "WEBP", quality=quality)
        if stream.tell() <= ENOUGH_BYTES:
            break
    how = "Compressed" if small.size == picture.size else f"Shrunk from {picture.width} × {picture.height} pixels"
    return Picture(_data_uri("image/webp", stream.getvalue()), small.width, small.height, f"{how} for this page.")


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
