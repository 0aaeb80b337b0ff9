"""Bodies and requests that an endpoint for pictures must survive, made here, and what it answers to each.

The numbers are those of the study that named them. CASES are sent as they are by test_bad_inputs; what needs more
than one request is tested elsewhere, see ELSEWHERE.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms

from ray_sr.images import Photo, encode
from tests.serving.conftest import chunk, picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORM = "multipart/form-data; boundary=x"


@dataclass(frozen=True)
class Case:
    """One request. `note`: why the status is what it is, where that is not plain. `size`: of a good result."""

    number: int
    name: str
    status: int
    body: Callable[[], bytes]
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    note: str = ""
    size: tuple[int, int] | None = None
    warning: str = ""
    mode: str = ""

    def __str__(self) -> str:
        return f"{self.number}-{self.name}"


# PNG -----------------------------------------------------------------------------------------------------


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def png(head: bytes, *others: bytes, pixels: bytes = b"", end: bool = True) -> bytes:
    body = [SIGNATURE, head, *others]
    if pixels:
        body.append(chunk(b"IDAT", zlib.compress(pixels)))
    return b"".join([*body, chunk(b"IEND", b"") if end else b""])


def rows(width_bytes: int, height: int, value: int = 77, filter: int = 0) -> bytes:
    return (bytes([filter]) + bytes([value]) * width_bytes) * height


def good_png() -> bytes:
    return encode(picture(24, 32), "png")


def with_chunk(*chunks: bytes) -> bytes:
    """A good PNG with chunks between its header and its pixels."""
    whole = good_png()
    return whole[:33] + b"".join(chunks) + whole[33:]


def with_wrong_crc(kind: bytes) -> bytes:
    whole = bytearray(good_png())
    at = whole.index(kind)
    length = struct.unpack_from(">I", whole, at - 4)[0]
    whole[at + 4 + length] ^= 1
    return bytes(whole)


def apng(frames: int) -> bytes:
    control = struct.pack(">IIIIIHHBB", 0, 32, 24, 0, 0, 1, 10, 0, 0)
    more = [chunk(b"fcTL", control)] * min(frames, 20)
    return with_chunk(chunk(b"acTL", struct.pack(">II", frames, 0)), *more)


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    zeros = bytes(1 << 20)
    return b"".join([*(packer.compress(zeros) for _ in range(megabytes)), packer.flush()])


def sixteen_bits(channels: int, alpha: bool = False, most: int = 65535) -> bytes:
    values = np.random.default_rng(5).integers(0, most + 1, (12, 16, channels), np.uint16)
    opacity = np.full((12, 16), most, np.uint16) if alpha else None
    return encode(Photo(values, opacity), "png")


# JPEG ----------------------------------------------------------------------------------------------------


def jpeg(mode: str = "RGB", size: tuple[int, int] = (48, 40), grain: bool = True, **options: object) -> bytes:
    random = np.random.default_rng(3)
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    values = random.integers(0, 255, shape, np.uint8) if grain else np.full(shape, 120, np.uint8)
    out = io.BytesIO()
    Image.fromarray(values, mode).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def without_segment(data: bytes, marker: int) -> bytes:
    """A JPEG without its segments of this marker."""
    found = data[:2]
    at = 2
    while data[at + 1] != 0xDA:
        length = 2 + struct.unpack_from(">H", data, at + 2)[0]
        found += b"" if data[at + 1] == marker else data[at : at + length]
        at += length
    return found + data[at:]


def with_size(data: bytes, width: int, height: int) -> bytes:
    whole = bytearray(data)
    at = whole.index(b"\xff\xc0")
    struct.pack_into(">HH", whole, at + 5, height, width)
    return bytes(whole)


def many_scans(count: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG whose last scan is repeated: little to send, much to decode."""
    whole = jpeg("L", size, grain=False, progressive=True)
    last = whole.rindex(b"\xff\xda")
    scans = whole.count(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * (count - scans) + whole[-2:]


def damaged_entropy() -> bytes:
    whole = bytearray(jpeg())
    at = whole.index(b"\xff\xda") + 60
    whole[at : at + 40] = b"\x00" * 40
    whole[at + 40 : at + 42] = b"\xff\xd3"  # a restart marker where none is due
    return bytes(whole)


def with_exif(block: bytes) -> bytes:
    return jpeg(exif=b"Exif\0\0" + block)


def orientation(value: int) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, value, 0)
    return with_exif(b"II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4))


def looping_exif() -> bytes:
    return with_exif(b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8))


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# WebP ----------------------------------------------------------------------------------------------------


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp() -> bytes:
    return encode(picture(24, 32), "webp", lossless=True)


def animated_webp() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (n * 80, 9, 9)) for n in range(3)]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=50)
    return out.getvalue()


def huge_webp() -> bytes:
    size = (16383 - 1) | (8191 - 1) << 14
    return riff((b"VP8L", b"\x2f" + struct.pack("<I", size) + bytes(9)))


# Others --------------------------------------------------------------------------------------------------


def saved(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    Image.new(mode, (20, 20), 3 if mode == "L" else (3, 9, 90)).save(out, kind)
    return out.getvalue()


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(10 << 20))
    return out.getvalue()


def palette(index: int = 1, *, with_palette: bool = True, transparent: bool = False) -> bytes:
    extra = [chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0]))] if with_palette else []
    extra += [chunk(b"tRNS", b"\x00\xff")] if transparent else []
    return png(ihdr(8, 8, 8, 3), *extra, pixels=rows(8, 8, index))


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    given = f'; filename="{filename}"' if filename is not None else ""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{given}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--x--\r\n"


def in_json(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def base64_png() -> str:
    return base64.b64encode(good_png()).decode()


JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": FORM}

CASES = [
    Case(1, "nothing", 400, lambda: b""),
    Case(2, "one byte", 415, lambda: b"\x89"),
    Case(3, "text as png", 415, lambda: b"hello", headers={"Content-Type": "image/png"}),
    Case(4, "html", 415, lambda: b"<!doctype html><script></script>", headers={"Content-Type": "image/jpeg"}),
    Case(5, "svg with a file address", 415, lambda: b'<svg><image href="file:///etc/passwd"/></svg>'),
    Case(6, "eps with a pipe", 415, lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%id) (r) file\n"),
    Case(7, "pdf", 415, lambda: b"%PDF-1.7\n" + bytes(50)),
    Case(8, "zip bomb", 415, zip_bomb),
    Case(9, "png in gzip", 415, lambda: gzip.compress(good_png())),
    Case(10, "utf-16 mark", 415, lambda: b"\xff\xfe" + "text".encode("utf-16-le")),
    Case(11, "gif", 415, lambda: saved("GIF")),
    Case(12, "bmp", 415, lambda: saved("BMP")),
    Case(13, "tiff, not opted in", 415, lambda: saved("TIFF")),
    Case(14, "psd", 415, lambda: b"8BPS" + bytes(60)),
    Case(15, "random bytes", 415, lambda: random.Random(1).randbytes(5000)),
    Case(16, "png signature alone", 422, lambda: SIGNATURE),
    Case(17, "png without pixels", 422, lambda: png(ihdr(8, 8))),
    Case(18, "png of width 0", 422, lambda: png(ihdr(0, 8), pixels=rows(0, 8))),
    Case(19, "wrong checksum of the header", 422, lambda: with_wrong_crc(b"IHDR")),
    Case(20, "wrong checksum of the pixels", 422, lambda: with_wrong_crc(b"IDAT")),
    Case(21, "half a png", 422, lambda: good_png()[: len(good_png()) // 2]),
    Case(22, "png without its end", 422, lambda: good_png()[:-12], note="strict: what is cut may lack more"),
    Case(23, "unknown filter", 422, lambda: png(ihdr(8, 8), pixels=rows(24, 8, filter=9))),
    Case(24, "garbage for deflate", 422, lambda: png(ihdr(8, 8), chunk(b"IDAT", b"garbage" * 9))),
    Case(25, "too few rows", 422, lambda: png(ihdr(8, 8), pixels=rows(24, 3))),
    Case(26, "50 MB behind 2x2", 200, lambda: png(ihdr(2, 2), chunk(b"IDAT", bomb(50))), size=(8, 8),
         note="only the first rows are unpacked"),
    Case(27, "bit depth 3", 422, lambda: png(ihdr(8, 8, 3), pixels=rows(9, 8))),
    Case(28, "indexed without palette", 422, lambda: palette(with_palette=False)),
    Case(29, "index beyond the palette", 200, lambda: palette(7), note="black, as decoders do", size=(32, 32)),
    Case(30, "40000x40000 of 1 bit", 422, lambda: png(ihdr(40000, 40000, 1, 0), chunk(b"IDAT", bomb(100)))),
    Case(31, "12000x12000 rgb", 422, lambda: png(ihdr(12000, 12000), chunk(b"IDAT", bomb(100)))),
    Case(32, "2^31-1 square", 422, lambda: png(ihdr(2**31 - 1, 2**31 - 1), pixels=rows(9, 1))),
    Case(33, "2^31-1 x 1", 422, lambda: png(ihdr(2**31 - 1, 1), pixels=rows(9, 1))),
    Case(34, "text of 200 MB", 200, lambda: with_chunk(chunk(b"zTXt", b"k\0\0" + bomb(200))),
         note="text is dropped unread", size=(128, 96)),
    Case(35, "profile of 200 MB", 200, lambda: with_chunk(chunk(b"iCCP", b"k\0\0" + bomb(200))),
         warning="icc-dropped", size=(128, 96)),
    Case(36, "200,000 texts", 422, lambda: with_chunk(chunk(b"tEXt", b"k\0v") * 200_000)),
    Case(37, "apng of 3 frames", 422, lambda: apng(3)),
    Case(38, "apng of 5000 frames", 422, lambda: apng(5000)),
    Case(39, "animated webp", 422, animated_webp),
    Case(40, "16383x8191 in 34 bytes", 422, huge_webp),
    Case(41, "webp cut", 422, lambda: webp()[: len(webp()) // 2]),
    Case(42, "riff size lies", 422, lambda: webp()[:4] + struct.pack("<I", 1 << 30) + webp()[8:]),
    Case(43, "jpeg of 65500x65500", 422, lambda: with_size(jpeg(), 65500, 65500)),
    Case(44, "jpeg of height 0", 422, lambda: with_size(jpeg(), 48, 0)),
    Case(45, "jpeg taller than its data", 422, lambda: with_size(jpeg(), 48, 400)),
    Case(46, "half a jpeg", 422, lambda: jpeg()[: len(jpeg()) // 2]),
    Case(47, "jpeg without its end", 422, lambda: jpeg()[:-2], note="strict: what is cut may lack more"),
    Case(48, "start of jpeg alone", 422, lambda: b"\xff\xd8\xff\xd9"),
    Case(49, "damaged entropy code", 422, damaged_entropy),
    Case(50, "no quantization table", 422, lambda: without_segment(jpeg(), 0xDB)),
    Case(51, "cmyk without profile", 200, lambda: jpeg("CMYK"), warning="cmyk-converted", mode="RGB"),
    Case(52, "2005 scans", 422, lambda: many_scans(2005, (2000, 2000))),
    Case(53, "55 scans", 422, lambda: many_scans(55, (400, 400)),
         note="below the limit of 64, but repeated scans are damage to the decoder"),
    Case(54, "jpeg and zip", 200, lambda: jpeg() + zip_bomb(), size=(192, 160), note="the tail is gone"),
    Case(55, "png and php", 200, lambda: good_png() + b"<?php phpinfo(); ?>", size=(128, 96), note="so here"),
    Case(56, "3 MB of comments", 200,
         lambda: jpeg()[:2] + (b"\xff\xfe\xff\xff" + bytes(65533)) * 46 + jpeg()[2:], size=(192, 160)),
    Case(57, "gray jpeg", 200, lambda: jpeg("L"), mode="L", size=(192, 160)),
    *(Case(58 + n, f"orientation {value}", 200, lambda value=value: orientation(value),  # type: ignore[misc]
           size=(160, 192) if value > 4 else (192, 160)) for n, value in enumerate((2, 3, 6, 8))),
    Case(62, "orientation 99", 200, lambda: orientation(99), size=(192, 160), note="ignored"),
    Case(63, "garbage for exif", 200, lambda: with_exif(random.Random(2).randbytes(300)), warning="exif-broken"),
    Case(64, "loop in exif", 200, looping_exif, size=(192, 160)),
    Case(65, "srgb profile", 200, lambda: jpeg(icc_profile=srgb()), size=(192, 160)),
    Case(66, "garbage for a profile", 200, lambda: jpeg(icc_profile=random.Random(3).randbytes(400)),
         warning="icc-dropped"),
    Case(67, "profile cut", 200, lambda: jpeg(icc_profile=srgb()[:200]), warning="icc-dropped"),
    Case(68, "rgb profile on gray", 200, lambda: jpeg("L", icc_profile=srgb()), warning="icc-dropped", mode="L"),
    Case(69, "16-bit gray", 200, lambda: sixteen_bits(1), mode="I;16"),
    Case(70, "16-bit rgb", 200, lambda: sixteen_bits(3), size=(64, 48)),
    Case(71, "16-bit rgba of small values", 200, lambda: sixteen_bits(3, True, 255), size=(64, 48)),
    Case(72, "gray and alpha", 200, lambda: encode(picture(9, 9, channels=1, alpha=True), "png"), mode="LA"),
    Case(73, "rgba", 200, lambda: encode(picture(9, 9, alpha=True), "png"), mode="RGBA"),
    Case(74, "all transparent", 200, lambda: png(ihdr(9, 9, 8, 6), pixels=rows(36, 9, 0)), mode="RGBA"),
    Case(75, "palette with transparency", 200, lambda: palette(0, transparent=True), mode="RGBA"),
    Case(75, "4-bit gray with transparency", 200,
         lambda: png(ihdr(8, 8, 4, 0), chunk(b"tRNS", b"\x00\x07"), pixels=rows(4, 8, 0x77)), mode="LA"),
    Case(76, "1-bit", 200, lambda: png(ihdr(8, 8, 1, 0), pixels=rows(1, 8, 0xAA)), size=(32, 32), mode="L"),
    Case(77, "interlaced 1x1", 200, lambda: png(ihdr(1, 1, 8, 2, 1), pixels=rows(3, 1)), size=(4, 4)),
    *(Case(78 + n, f"{width}x{height}", 200, lambda w=width, h=height: encode(picture(h, w), "png"),  # type: ignore[misc]
           size=(4 * width, 4 * height))
      for n, (width, height) in enumerate([(1, 1), (1, 64), (64, 1), (2, 3), (7, 5), (16384, 1)])),
    Case(84, "4097x4097 gray", 422, lambda: png(ihdr(4097, 4097, 8, 0), chunk(b"IDAT", bomb(17)))),
    Case(85, "hdr (pq)", 422, lambda: with_chunk(chunk(b"cICP", bytes([9, 16, 0, 1])))),
    Case(86, "form without boundary", 400, lambda: form(part("image", good_png(), "a")),
         headers={"Content-Type": "multipart/form-data"}),
    Case(87, "form without picture", 422, lambda: form(part("scale", b"2")), headers=MULTIPART),
    Case(88, "form with two pictures", 422, lambda: form(*[part("image", good_png(), "a")] * 2), headers=MULTIPART),
    Case(89, "10,000 parts", 413, lambda: form(*[part("a", b"1")] * 10_000), headers=MULTIPART),
    Case(90, "picture as text field", 422, lambda: form(part("image", good_png())), headers=MULTIPART),
    Case(91, "file name ../../x", 200, lambda: form(part("image", good_png(), "../../x")), headers=MULTIPART,
         note="names are ignored", size=(128, 96)),
    *(Case(92, query, 422, good_png, query) for query in
      ("scale=0", "scale=-1", "scale=1e9", "scale=NaN", "scale=4x", "scale=4&scale=4")),
    Case(93, "format=exe", 422, good_png, "format=exe"),
    Case(94, "quality=0", 422, good_png, "quality=0"),
    Case(94, "quality=101", 422, good_png, "quality=101"),
    Case(95, "unknown option", 422, good_png, "sclae=2"),
    Case(96, "accept gif", 406, good_png, headers={"Accept": "image/gif"}),
    Case(97, "get", 405, lambda: b"", method="GET"),
    Case(98, "content-encoding gzip", 415, lambda: gzip.compress(good_png()), headers={"Content-Encoding": "gzip"}),
    Case(99, "body over the limit", 413, lambda: bytes((32 << 20) + 1)),
    Case(104, "bad base64", 422, lambda: in_json(image="***"), headers=JSON),
    Case(104, "data address without base64", 422, lambda: in_json(image="data:image/png,abc"), headers=JSON),
    Case(105, "deep json", 400, lambda: b"[" * 200_000, headers=JSON),
    Case(106, "address as source", 422, lambda: in_json(image=base64_png(), url="http://169.254.169.254/"),
         headers=JSON, note="addresses are never fetched: an unknown option"),
    Case(106, "address as query", 422, good_png, "url=http://169.254.169.254/"),
    Case(109, "webp over 16383", 422, lambda: encode(picture(1, 4096), "png"), "format=webp"),
    Case(109, "jpeg over 65500", 422, lambda: encode(picture(1, 16384), "png"), "format=jpeg"),
    Case(110, "jpeg of transparency", 200, lambda: encode(picture(9, 9, alpha=True), "png"), "format=jpeg",
         warning="alpha-flattened", mode="RGB", note="over `background`, which is white unless given"),
]  # fmt: skip

ELSEWHERE = {
    100: "tests.serving.test_bad_inputs:test_body_shorter_than_announced_is_no_fault_of_the_service",
    101: "tests.serving.test_http:test_body_that_does_not_arrive_is_given_up",
    102: "tests.serving.test_bad_inputs:test_slow_headers_hold_nobody_up",
    103: "tests.serving.test_http:test_client_that_leaves_takes_its_work_along",
    107: "tests.serving.test_governed:test_pictures_need_a_key",
    108: "tests.serving.test_governed:test_quota_is_in_pixels",
    111: "tests.serving.test_faults:test_lack_of_memory_is_503",
    112: "tests.serving.test_codec_pool:test_death_at_work_is_an_answer_and_the_next_picture_is_fine",
    113: "tests.serving.test_faults:test_service_outlives_its_replica",
}
