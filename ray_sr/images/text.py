"""Texts of a PNG, as its chunks, and where they go in the containers that have no such chunks.

Source: PNG third edition, section 11.3.3. Generation parameters go to EXIF's UserComment, where the programs
that write them look for them.
"""

from __future__ import annotations

import struct

from ray_sr.images.exif import ARTIST, COPYRIGHT, DESCRIPTION, SOFTWARE, USER_COMMENT, read_text
from ray_sr.images.png_header import png_chunk, text_content

_TAGS = {
    "Copyright": COPYRIGHT,
    "Author": ARTIST,
    "Artist": ARTIST,
    "Description": DESCRIPTION,
    "Software": SOFTWARE,
    "parameters": USER_COMMENT,
    "Comment": USER_COMMENT,
}
_FIELDS = {
    "Copyright": "rights",
    "Author": "creator",
    "Artist": "creator",
    "Title": "title",
    "Description": "description",
}
_RIGHTS = ("Copyright", "Author", "Artist")


def texts(chunks: bytes) -> list[tuple[str, str]]:
    """Keyword and text of each chunk; those that cannot be unpacked are left out."""
    found = []
    for kind, body in _split(chunks):
        content = text_content(kind, body)
        if content is not None:
            coding = "utf-8" if kind == b"iTXt" else "latin-1"
            found.append((body.partition(b"\0")[0].decode("latin-1"), content.decode(coding, "replace")))
    return found


def rights_chunks(chunks: bytes) -> bytes | None:
    """Only the chunks that name author and copyright."""
    keywords = tuple(keyword.encode() for keyword in _RIGHTS)
    kept = [png_chunk(*part) for part in _split(chunks) if part[1].partition(b"\0")[0] in keywords]
    return b"".join(kept) or None


def as_exif(chunks: bytes, exif: bytes | None, comments: bool) -> tuple[dict[int, str], bool]:
    """Texts under EXIF's tags, and whether some find no place. comments: the container has comments of its own."""
    placed: dict[int, str] = {}
    whole = True
    for keyword, text in texts(chunks):
        if comments and keyword == "Comment":
            continue
        tag = _TAGS.get(keyword)
        there = tag and (placed.get(tag) or (read_text(exif, tag) if exif else None))
        if tag and not there:
            placed[tag] = text
        elif not tag or there != text:
            whole = False
    return placed, whole


def as_fields(chunks: bytes) -> tuple[dict[str, list[str]], bool]:
    """Texts under the names that `xmp.with_fields` takes, and whether some find no place."""
    fields: dict[str, list[str]] = {}
    found = texts(chunks)
    for keyword, text in found:
        if keyword in _FIELDS:
            fields.setdefault(_FIELDS[keyword], []).append(text)
    return fields, all(keyword in _FIELDS for keyword, _ in found)


def comments(chunks: bytes) -> list[bytes]:
    """What a JPEG has as comments."""
    return [text.encode()[:65533] for keyword, text in texts(chunks) if keyword == "Comment"]


def _split(chunks: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], 0
    while at + 12 <= len(chunks):
        length, kind = struct.unpack_from(">I4s", chunks, at)
        parts.append((kind, chunks[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts
