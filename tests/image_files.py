"""Picture files made by hand or by Pillow for the tests of images, their headers and their metadata."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]


def noise(height: int, width: int, channels: int = 3, kind: type = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(kind).max, (height, width, channels), dtype=kind, endpoint=True)


def smooth(height: int, width: int) -> np.ndarray:
    """A soft picture that lossy codecs keep within a few levels."""
    y, x = np.mgrid[:height, :width]
    return np.stack([128 + 100 * np.sin(x / 30), 128 + 100 * np.cos(y / 30), (x + y) / 2], 2).astype(np.uint8)


def saved(pixels: np.ndarray, format: str, mode: str | None = None, **options: Any) -> bytes:
    """The pixels written by Pillow, the other implementation of these tests."""
    if format == "jpeg" and "exif" in options:
        options["exif"] = b"Exif\0\0" + bytes(options["exif"])
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, format, **options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def chunk(kind: bytes, body: bytes = b"", crc: int | None = None) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc or zlib.crc32(kind + body))


def ihdr(width: int, height: int, depth: int = 8, color: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def png(*extra: bytes, size: tuple[int, int] = (4, 3), depth: int = 8, color: int = 0) -> bytes:
    """A black PNG with extra chunks before its pixels."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    rows = (b"\0" + bytes((size[0] * bits + 7) // 8)) * size[1]
    return ihdr(*size, depth, color) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")


def tiff(
    width: int,
    height: int,
    samples: bytes,
    *,
    depth: int = 8,
    channels: int = 1,
    extra: dict[int, int] | None = None,
    following: int = 0,
) -> bytes:
    """A little-endian TIFF of one strip that starts at byte 8; `following` is the offset of the next page."""
    after = 8 + len(samples)
    tags = {256: width, 257: height, 258: depth, 259: 1, 262: 1 if channels < 3 else 2}
    tags |= {273: 8, 277: channels, 278: height, 279: len(samples), **(extra or {})}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags) if tag != 258)
    bits_at = after + 2 + 12 * len(tags) + 4
    inline = channels == 1
    bits = struct.pack("<HHII", 258, 3, channels, depth if inline else bits_at)
    table = table[:24] + bits + table[24:]
    page = struct.pack("<H", len(tags)) + table + struct.pack("<I", following)
    return b"II*\0" + struct.pack("<I", after) + samples + page + struct.pack("<H", depth) * channels


def exif_block(orientation: int = 1, order: str = "<", thumbnail: bytes = b"") -> bytes:
    """A block with Make, orientation, Copyright, pixel sizes, GPS and, where given, a thumbnail directory."""

    def directory(entries: list[tuple[int, int, int, bytes]], at: int, following: int) -> bytes:
        table = b"".join(struct.pack(order + "HHI", t, k, n) + v.ljust(4, b"\0") for t, k, n, v in entries)
        return struct.pack(order + "H", len(entries)) + table + struct.pack(order + "I", following)

    def integer(value: int) -> bytes:
        return struct.pack(order + "I", value)

    notice, make = b"(c) A. Photographer\0", b"ACME\0"
    text_at = 8 + 2 + 12 * 5 + 4
    exif_at = text_at + len(make) + len(notice) + 1
    gps_at = exif_at + 2 + 12 * 2 + 4
    thumb_at = gps_at + 2 + 12 + 4
    data_at = thumb_at + 2 + 12 * 2 + 4
    first = [
        (0x010F, 2, len(make), integer(text_at)),
        (0x0112, 3, 1, struct.pack(order + "H", orientation)),
        (0x8298, 2, len(notice), integer(text_at + len(make))),
        (0x8769, 4, 1, integer(exif_at)),
        (0x8825, 4, 1, integer(gps_at)),
    ]
    block = (b"II*\0" if order == "<" else b"MM\0*") + integer(8)
    block += directory(first, 8, thumb_at if thumbnail else 0) + make + notice + b"\0"
    block += directory([(0xA002, 4, 1, integer(7)), (0xA003, 4, 1, integer(9))], exif_at, 0)
    block += directory([(0, 1, 4, b"\2\3\0\0")], gps_at, 0)
    if thumbnail:
        sizes = [(0x0201, 4, 1, integer(data_at)), (0x0202, 4, 1, integer(len(thumbnail)))]
        block += directory(sizes, thumb_at, 0) + thumbnail
    return block


def patches() -> np.ndarray:
    """8 rows of eight patches of one colour each, 8 pixels wide: skin, plants, sky, grays and edges of gamuts."""
    colours = [
        [180, 80, 60],
        [60, 160, 90],
        [30, 60, 180],
        [10, 10, 10],
        [128, 128, 128],
        [240, 240, 240],
        [5, 60, 120],
    ]
    return np.repeat(np.repeat(np.array([[*colours, [250, 20, 30]]], np.uint8), 8, axis=0), 8, axis=1)


def nclx_avif(pixels: np.ndarray, primaries: int, transfer: int) -> bytes:
    """An AVIF that names its colours by these codes."""
    data = saved(pixels, "avif", quality=100, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


PNG, JPEG = saved(noise(40, 40), "png"), saved(smooth(64, 64), "jpeg")
WEBP, TIFF = saved(smooth(64, 64), "webp"), tiff(6, 5, bytes(range(30)))
GIF = saved(noise(4, 4, 1), "gif")
