"""IPTC records (IIM): taken out of Photoshop's blocks, put into them, and said in the names of XMP.

Sources: IPTC-NAA Information Interchange Model 4.2, part II; Photoshop file formats (image resource blocks);
IPTC Photo Metadata Standard 2023.2, which pairs the two.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ray_sr.images.xmp import RIGHTS_FIELDS

PHOTOSHOP = b"Photoshop 3.0\0"
_IPTC_BLOCK = 0x0404
_FIELDS = {
    5: "title",
    25: "subject",
    40: "instructions",
    80: "creator",
    90: "city",
    95: "state",
    101: "country",
    105: "headline",
    110: "credit",
    115: "source",
    116: "rights",
    120: "description",
    122: "writer",
}
_SILENT = {0, 3, 4, 55, 60, 62, 63}  # versions and times: nothing that is worth a word when it is gone
_RECORD, _CODED_CHARACTER_SET = 2, (1, 90)
_UTF8 = b"\x1b%G"


def records_in(block: bytes) -> bytes | None:
    """The IPTC records of Photoshop's blocks, with or without their name, or the bytes if they are records."""
    body = block.removeprefix(PHOTOSHOP)
    if body[:1] == b"\x1c":
        return body
    at = 0
    while body[at : at + 4] == b"8BIM" and at + 12 <= len(body):
        kind = struct.unpack_from(">H", body, at + 4)[0]
        at += 6 + (body[at + 6] // 2 + 1) * 2
        if at + 4 > len(body):
            return None
        size = struct.unpack_from(">I", body, at)[0]
        if kind == _IPTC_BLOCK:
            return body[at + 4 : at + 4 + size] or None
        at += 4 + size + size % 2
    return None


def photoshop_block(records: bytes) -> bytes:
    """Body of the JPEG segment (APP13) that holds these records."""
    size = struct.pack(">I", len(records))
    return PHOTOSHOP + b"8BIM" + struct.pack(">HH", _IPTC_BLOCK, 0) + size + records + b"\0" * (len(records) % 2)


def rights_records(records: bytes) -> bytes | None:
    """Only the records of rights, and of how their letters are coded; None where there are none."""
    sets = list(_data_sets(records))
    found = [s for s in sets if s[0] == _RECORD and _FIELDS.get(s[1]) in RIGHTS_FIELDS]
    if not found:
        return None
    coding = [s for s in sets if s[:2] == _CODED_CHARACTER_SET]
    return b"".join(struct.pack(">BBBH", 0x1C, *s[:2], len(s[2])) + s[2] for s in [*coding, *found])


def fields_of(records: bytes) -> tuple[dict[str, list[str]], bool]:
    """Texts under the names that `xmp.with_fields` takes, and whether that is all that the records say."""
    fields: dict[str, list[str]] = {}
    whole, utf8 = True, False
    for record, number, value in _data_sets(records):
        if (record, number) == _CODED_CHARACTER_SET:
            utf8 = value == _UTF8
        elif record == _RECORD and number in _FIELDS:
            if text := _text(value, utf8).strip():
                fields.setdefault(_FIELDS[number], []).append(text)
        elif record == _RECORD and number not in _SILENT:
            whole = False
    return fields, whole


def _data_sets(records: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 5 <= len(records) and records[at] == 0x1C:
        record, number, size = struct.unpack_from(">BBH", records, at + 1)
        at += 5
        if size & 0x8000:  # the length of the length: no text is that long
            return
        yield record, number, records[at : at + size]
        at += size


def _text(value: bytes, utf8: bool) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("utf-8" if utf8 else "latin-1", "replace")
