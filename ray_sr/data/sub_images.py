"""One photograph -> the rows of a shard: checked, cut into sub-images, encoded without loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ray_sr.data.encoding import encode_pixels
from ray_sr.data.manifest import Cutting, Split
from ray_sr.data.pairs import cropped_to
from ray_sr.data.sources import PhotoFile, read_photo_bytes
from ray_sr.errors import InputError
from ray_sr.images import Limits, PhotoError, decode, rgb8, rgb16, to_8_bits
from ray_sr.storage import access_error, first_line

PHOTO_LIMITS = Limits(max_bytes=1 << 30, max_pixels=1 << 29, strict=True)
# Of each decoded byte, what stays in a shard: measured on photographs of 2K cut to 480 px.
STORED_SHARE = {("webp", 8): 0.28, ("png", 8): 0.52, ("raw", 8): 0.5, ("png", 16): 0.53, ("raw", 16): 0.62}

SHARD_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("content", pa.int64()),
        ("photo", pa.string()),
        ("top", pa.int32()),
        ("left", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("image", pa.binary()),
        ("input", pa.binary()),
    ]
)

Record = dict[str, Any]
Box = tuple[int, int, int, int]


def read_and_cut(
    photo: PhotoFile, split: Split, cutting: Cutting, held_out: Mapping[str, str] | None = None
) -> tuple[Record, list[dict[str, Any]]]:
    """A record of this photo, and its rows: none where it cannot be used.

    `held_out`: `pixel_digest` -> name of photos whose copies are no photos to train on.
    """
    record: Record = {
        "source": photo.uri,
        "name": photo.name,
        "bytes": photo.size,
        "sha256": "",
        "stamp": stamp_of(photo),
        "height": 0,
        "width": 0,
        "split": split,
        "rows": 0,
        "flat": 0,
        "reason": "",
        "copy": False,
        "warnings": "",
    }
    usable = _usable(photo, record, cutting)
    if usable is None:
        return record, []
    pixels, inputs = usable
    height, width = pixels.shape[:2]
    if held_out and (name := held_out.get(pixel_digest(pixels))) is not None:
        record.update(reason=f"the same pixels as the held-out photo {name}", copy=True)
        return record, []
    boxes = [(0, 0, height, width)] if split == "validation" else list(sub_images(height, width, cutting))
    if split == "train" and cutting.drop_flat:
        kept = [box for box in boxes if detail(_cut(pixels, box)) >= cutting.drop_flat]
        boxes, record["flat"] = kept, len(boxes) - len(kept)
    rows = [_row(photo.name, record["sha256"], pixels, inputs, box, cutting) for box in boxes]
    record["rows"] = len(rows)
    return record, rows


def probe(photo: PhotoFile, cutting: Cutting) -> tuple[str, str]:
    """`pixel_digest` of a photo, or an empty text and why it cannot be used."""
    record: Record = {"reason": ""}
    usable = _usable(photo, record, cutting)
    return (pixel_digest(usable[0]), "") if usable else ("", record["reason"])


def _usable(photo: PhotoFile, record: Record, cutting: Cutting) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Pixels of the photo and of its input photo; None, with a reason in the record, where it cannot be cut."""
    try:
        pixels, inputs = _read(photo, record, cutting)
    except (PhotoError, InputError) as error:
        record["reason"] = first_line(error)
        return None
    except (OSError, pa.ArrowException) as error:
        record["reason"] = access_error(photo.uri, error)
        return None
    height, width = pixels.shape[:2]
    if min(height, width) < cutting.minimum:
        record["reason"] = f"too small: {width}x{height}, the smaller side must be {cutting.minimum} or more"
        return None
    return pixels, inputs


def pixel_digest(pixels: np.ndarray) -> str:
    """Of uint8 or uint16 H×W×3, rounded to 8 bits: equal for equal photos, whatever their files."""
    pixels = to_8_bits(pixels)
    return hashlib.blake2b(pixels.tobytes(), digest_size=16, person=str(pixels.shape).encode()[:16]).hexdigest()


def stamp_of(photo: PhotoFile) -> str:
    """Of the photo and its input photo."""
    return f"{photo.stamp} {photo.partner.stamp}" if photo.partner else photo.stamp


def file_digest(photo: PhotoFile) -> str:
    """SHA-256 of the file, or of those of the photo and its input photo. Raises OSError as pyarrow gives it."""
    sha256 = hashlib.sha256(read_photo_bytes(photo)).hexdigest()
    return _joined(sha256, read_photo_bytes(photo.partner)) if photo.partner else sha256


def _joined(sha256: str, partner: bytes) -> str:
    return hashlib.sha256(f"{sha256} {hashlib.sha256(partner).hexdigest()}".encode()).hexdigest()


def _read(photo: PhotoFile, record: Record, cutting: Cutting) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels of the photo and of its input photo; writes what they are like into the record."""
    data = read_photo_bytes(photo)
    record["sha256"] = hashlib.sha256(data).hexdigest()
    decoded = decode(data, PHOTO_LIMITS)
    rgb = rgb8 if cutting.depth == 8 else rgb16
    pixels, inputs, warnings = rgb(decoded), None, list(decoded.warnings)
    record.update(height=pixels.shape[0], width=pixels.shape[1])
    if cutting.depth == 16:
        record["depth"] = decoded.depth
    if cutting.input_scale:
        if photo.partner is None:
            raise InputError("no input photo of this name")
        data = read_photo_bytes(photo.partner)
        record["sha256"] = _joined(record["sha256"], data)
        partner = decode(data, PHOTO_LIMITS)
        inputs = rgb(partner)
        warnings += [f"input photo: {warning}" for warning in partner.warnings]
        pixels = cropped_to(pixels, inputs, cutting.input_scale)
        record.update(height=pixels.shape[0], width=pixels.shape[1])
    record["warnings"] = ", ".join(warnings)
    return pixels, inputs


def _row(
    name: str, sha256: str, pixels: np.ndarray, inputs: np.ndarray | None, box: Box, cutting: Cutting
) -> dict[str, Any]:
    cut = _cut(pixels, box)
    digest = hashlib.blake2b(cut.data, digest_size=8)
    given = None
    if inputs is not None:
        given = _cut(inputs, tuple(side // cutting.input_scale for side in box))
        digest.update(given.data)
    top, left, height, width = box
    return {
        "id": _int64(hashlib.sha256(f"{sha256} {box}".encode()).digest()[:8]),
        "content": _int64(digest.digest()),
        "photo": name,
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "image": encode_pixels(cut, cutting.encoding),
        "input": None if given is None else encode_pixels(given, cutting.encoding),
    }


def _int64(digest: bytes) -> int:
    return int.from_bytes(digest, "big", signed=True)


def _cut(pixels: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    top, left, height, width = box
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def detail(pixels: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels in both directions, in grey levels: 0 is flat.

    Sky stays below 1; most photographs have 3 to 20. Levels are those of 8 bits, whole ones for uint8.
    """
    green = pixels[..., 1].astype(np.int16) if pixels.dtype == np.uint8 else pixels[..., 1] / 257
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean()) / 2


def sub_images(height: int, width: int, cutting: Cutting) -> Iterator[Box]:
    """(top, left, height, width) of each sub-image; the last ones touch the far edges, so nothing is lost."""
    for top in _starts(height, cutting):
        for left in _starts(width, cutting):
            yield top, left, min(cutting.sub_image, height), min(cutting.sub_image, width)


def _starts(side: int, cutting: Cutting) -> list[int]:
    last = max(side - cutting.sub_image, 0)
    starts = list(range(0, last + 1, cutting.step))
    return starts if starts[-1] == last else [*starts, last]


def stored_bytes(height: int, width: int, cutting: Cutting) -> int:
    """What the sub-images of a photo of this size take in a shard, roughly."""
    pixels = sum(h * w for _, _, h, w in sub_images(height, width, cutting))
    return int(3 * pixels * cutting.depth // 8 * STORED_SHARE[cutting.encoding, cutting.depth])
