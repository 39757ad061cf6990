"""Files of every kind become the pixels that the settings ask for."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as F

from ddim.data.decoding import BadImage, Decoder

SIDE = 4


def encode(image: Image.Image, file_format: str = "PNG", **arguments: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **arguments)
    return buffer.getvalue()


def flat(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), value)


def palette(**arguments: Any) -> bytes:
    image = flat("P", 1)
    image.putpalette([9, 8, 7, 10, 200, 30])
    return encode(image, **arguments)


def grey16(value: int) -> bytes:
    return encode(Image.fromarray(np.full((SIDE, SIDE), value, dtype=np.uint16)))


def png_with_16_bit_colour(red: int, green: int, blue: int) -> bytes:
    """Pillow cannot write 16-bit colour, so the PNG is put together here."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">3H", red, green, blue) * SIDE
    header = struct.pack(">2I5B", SIDE, SIDE, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * SIDE)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "rgb", "grey"),
    [
        pytest.param(encode(flat("L", 77)), (77, 77, 77), 77, id="grey"),
        pytest.param(
            encode(flat("RGB", (10, 200, 30))), (10, 200, 30), 124, id="colour"
        ),  # 0.299 R + 0.587 G + 0.114 B
        pytest.param(encode(flat("RGBA", (10, 200, 30, 255))), (10, 200, 30), 124, id="opaque"),
        pytest.param(encode(flat("RGBA", (10, 200, 30, 0))), (255, 255, 255), 255, id="transparent"),
        pytest.param(encode(flat("RGBA", (0, 0, 0, 51))), (204, 204, 204), 204, id="translucent"),
        pytest.param(encode(flat("LA", (0, 51))), (204, 204, 204), 204, id="translucent grey"),
        pytest.param(encode(flat("1", 1)), (255, 255, 255), 255, id="white bit"),
        pytest.param(encode(flat("1", 0)), (0, 0, 0), 0, id="black bit"),
        pytest.param(palette(), (10, 200, 30), 124, id="palette"),
        pytest.param(palette(transparency=1), (255, 255, 255), 255, id="palette, transparent"),
        pytest.param(palette(transparency=0), (10, 200, 30), 124, id="palette, another transparent"),
        pytest.param(palette(file_format="GIF"), (10, 200, 30), 124, id="gif"),
        pytest.param(
            encode(flat("RGB", (10, 200, 30)), transparency=(10, 200, 30)), (255, 255, 255), 255, id="colour key"
        ),
        pytest.param(encode(flat("RGB", (10, 200, 30)), "BMP"), (10, 200, 30), 124, id="bmp"),
        pytest.param(encode(flat("RGB", (10, 200, 30)), "WEBP", lossless=True), (10, 200, 30), 124, id="webp"),
        pytest.param(encode(flat("CMYK", (0, 0, 0, 55)), "TIFF"), (200, 200, 200), 200, id="cmyk"),
        pytest.param(grey16(0), (0, 0, 0), 0, id="16 bits: 0"),
        pytest.param(grey16(65535), (255, 255, 255), 255, id="16 bits: 65535"),
        pytest.param(grey16(257 * 100 + 128), (100, 100, 100), 100, id="16 bits: rounded down"),
        pytest.param(grey16(257 * 100 + 129), (101, 101, 101), 101, id="16 bits: rounded up"),
        pytest.param(encode(flat("I", 257 * 60), "TIFF"), (60, 60, 60), 60, id="32 bits"),
        pytest.param(png_with_16_bit_colour(257 * 10, 257 * 200, 257 * 30), (10, 200, 30), 124, id="16-bit colour"),
    ],
)
def test_every_mode_becomes_colour_or_grey(data: bytes, rgb: tuple[int, int, int], grey: int) -> None:
    colour = Decoder(channels=3, resolution=SIDE)(data)
    assert colour.dtype == np.uint8 and colour.shape == (3, SIDE, SIDE)
    assert (colour == np.array(rgb)[:, None, None]).all()
    luma = Decoder(channels=1, resolution=SIDE)(data)
    assert luma.shape == (1, SIDE, SIDE)
    assert (luma == grey).all()


def test_jpeg_comes_out_as_pillow_decodes_it(random_pixels: Callable[..., np.ndarray]) -> None:
    data = encode(Image.fromarray(random_pixels(0, 8, 8, 3)), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    assert np.array_equal(Decoder(channels=3, resolution=8)(data), expected)


def test_transparency_is_composited_on_the_background_asked_for() -> None:
    data = encode(flat("RGBA", (255, 255, 255, 51)))
    assert (Decoder(channels=3, resolution=SIDE, background="black")(data) == 51).all()


def test_exif_orientation_is_applied(random_pixels: Callable[..., np.ndarray]) -> None:
    pixels = random_pixels(0, 6, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate 90 degrees clockwise to view
    decoded = Decoder(channels=3, resolution=6)(encode(Image.fromarray(pixels), exif=exif))
    assert np.array_equal(decoded.transpose(1, 2, 0), np.rot90(pixels, k=-1))


@pytest.mark.parametrize("size", [(40, 64), (64, 95), (65, 33), (32, 32), (101, 32), (32, 33), (97, 96)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box", "nearest"])
def test_resize_and_centre_crop_equal_torchvision(
    size: tuple[int, int], name: str, random_pixels: Callable[..., np.ndarray]
) -> None:
    image = Image.fromarray(random_pixels(1, size[1], size[0], 3))
    expected = F.center_crop(F.resize(image, 32, F.InterpolationMode(name)), [32, 32])
    decoded = Decoder(channels=3, resolution=32, resize=name)(encode(image))
    assert np.array_equal(decoded.transpose(1, 2, 0), np.asarray(expected))


def test_upscaling_only_when_asked_for() -> None:
    data = encode(Image.new("RGB", (40, 20)))
    with pytest.raises(BadImage, match=r"40x20.*dataset\.resolution=32.*dataset\.allow_upscale=true"):
        Decoder(channels=3, resolution=32)(data)
    assert Decoder(channels=3, resolution=32, allow_upscale=True)(data).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "known format", id="empty"),
        pytest.param(b"a text file", "known format", id="text"),
        pytest.param(encode(Image.effect_noise((64, 64), 90))[:-900], "truncated", id="truncated png"),
        pytest.param(encode(Image.effect_noise((64, 64), 90), "JPEG")[:-400], "truncated", id="truncated jpeg"),
        pytest.param(encode(flat("F", 0.5), "TIFF"), "floating-point", id="float"),
        pytest.param(encode(flat("I", 70_000), "TIFF"), "16 bits", id="more than 16 bits"),
        pytest.param(encode(flat("I", -1), "TIFF"), "16 bits", id="negative"),
    ],
)
def test_unusable_bytes_give_a_one_line_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as caught:
        Decoder(channels=3, resolution=SIDE)(data)
    assert "\n" not in str(caught.value)
