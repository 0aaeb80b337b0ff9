"""What an AVIF or HEIC file says about itself: the boxes of HEIF, and the first header of what is coded inside.

Sources: ISO/IEC 14496-12 (boxes), 23008-12 (HEIF: items, properties, grids), 23000-22 (MIAF), AV1 image file
format 1.1, AV1 bitstream section 5.5, ITU-T H.265 section 7.3.2.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ray_sr.images.bits import Bits
from ray_sr.images.colour import HDR_TRANSFERS, colours_of_codes, profile_of
from ray_sr.images.header import MAX_ICC_BYTES, MAX_METADATA_BLOCKS, Header, PhotoError

_CODED = {b"av01": "avif", b"hvc1": "heif"}
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
_GAIN_MAP = b"urn:com:apple:photo:2020:aux:hdrgainmap"
_MOST_BYTES_OF_ITEM = 16 << 20  # of metadata
_SEQUENCES = (b"avis", b"msf1", b"hevc", b"hevx")


@dataclass
class _Item:
    kind: bytes = b""
    hidden: bool = False
    content_type: bytes = b""
    extents: list[tuple[int, int]] = field(default_factory=list)
    in_idat: bool = False
    properties: list[tuple[bytes, bytes]] = field(default_factory=list)

    def get(self, kind: bytes) -> bytes | None:
        return next((body for name, body in self.properties if name == kind), None)


@dataclass
class _Meta:
    """The meta box: items by number, references (kind, from, to), and the place of idat."""

    primary: int = 0
    items: dict[int, _Item] = field(default_factory=dict)
    references: list[tuple[bytes, int, int]] = field(default_factory=list)
    idat: bytes = b""

    def item(self, number: int) -> _Item:
        if number not in self.items:
            raise PhotoError("the HEIF names a picture that is not there")
        return self.items[number]

    def targets(self, kind: bytes, source: int) -> list[int]:
        return [to for name, start, to in self.references if name == kind and start == source]

    def sources(self, kind: bytes, target: int) -> list[int]:
        return [start for name, start, to in self.references if name == kind and to == target]


def brands(data: bytes) -> tuple[bytes, ...]:
    """Brands of the ftyp box, the major one first; none where the file does not begin with one."""
    if len(data) < 16 or data[4:8] != b"ftyp":
        return ()
    end = min(struct.unpack_from(">I", data)[0], len(data), 16 + 4 * 64)
    return (data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4)))


def scan_heif(data: bytes) -> Header:
    """Header of an AVIF or HEIC file; width and height are those of the upright picture."""
    meta, frames = _Meta(), 1
    for kind, body in boxes(data, 0, len(data)):
        if kind == b"meta":
            _read_meta(meta, body[4:])
        elif kind == b"moov" and brands(data)[:1] and brands(data)[0] in _SEQUENCES:
            frames = max(frames, _samples(bytes(body)))
    primary = meta.item(meta.primary)
    tiles = _tiles(data, meta, primary)
    coded = [meta.item(number) for number in tiles] or [primary]
    if len({item.kind for item in coded}) > 1 or coded[0].kind not in _CODED:
        raise PhotoError("the HEIF is coded in a way that is not supported", "unsupported-image")
    stored = _size(primary)
    _check_grid(data, meta, stored, coded if tiles else [])
    for item in coded:
        _check_coded_size(data, meta, item)
    return _header(data, meta, primary, coded, frames)


def _header(data: bytes, meta: _Meta, primary: _Item, coded: list[_Item], frames: int) -> Header:
    channels, depth = _channels(primary, coded[0])
    alpha = [n for n in meta.sources(b"auxl", meta.primary) if _aux_kind(meta.item(n)) in _ALPHA]
    icc, colour_warnings = _colours(primary, coded[0], channels)
    width, height = _upright_size(primary)
    complete = all(_whole(data, meta, item) for item in [*coded, *(meta.item(n) for n in alpha)])
    return Header(
        _CODED[coded[0].kind],
        width,
        height,
        depth=depth,
        channels=channels + bool(alpha),
        frames=frames,
        complete=complete,
        warnings=colour_warnings + _what_is_left(meta),
        icc=icc,
        exif=_exif(data, meta),
        xmp=_xmp(data, meta),
        premultiplied=bool(alpha and meta.targets(b"prem", meta.primary)),
        turned=bool((primary.get(b"irot") or b"\0")[0] & 3 or primary.get(b"imir") is not None),
    )


# Boxes ----------------------------------------------------------------------------------------------------


def boxes(data: bytes | memoryview, start: int, end: int) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each box; the body of a cut one is what there is of it."""
    view, position, count = memoryview(data), start, 0
    while position + 8 <= end:
        size, kind = struct.unpack_from(">I4s", view, position)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", view, position + 8)[0], 16
        elif size == 0:
            size = end - position
        if size < head:
            raise PhotoError("a box of the HEIF has an impossible size")
        yield kind, view[position + head : min(position + size, end)]
        position += size
        count += 1
        if count > MAX_METADATA_BLOCKS:
            raise PhotoError(f"the HEIF has more than {MAX_METADATA_BLOCKS} boxes")


def _read_meta(meta: _Meta, body: memoryview) -> None:
    found = dict(boxes(body, 0, len(body)))
    if b"pitm" in found:
        meta.primary = struct.unpack_from(">I" if found[b"pitm"][0] else ">H", found[b"pitm"], 4)[0]
    _read_items(meta, found.get(b"iinf", memoryview(b"\0" * 6)))
    _read_locations(meta, found.get(b"iloc", memoryview(b"\0" * 8)))
    _read_references(meta, found.get(b"iref", memoryview(b"\0" * 4)))
    _read_properties(meta, found.get(b"iprp", memoryview(b"")))
    meta.idat = bytes(found.get(b"idat", b""))


def _read_items(meta: _Meta, body: memoryview) -> None:
    head = 8 if body[0] else 6
    for kind, entry in boxes(body, head, len(body)):
        if kind != b"infe" or entry[0] < 2:
            continue
        wide = entry[0] > 2
        number = struct.unpack_from(">I" if wide else ">H", entry, 4)[0]
        at = 4 + (4 if wide else 2) + 2
        item_kind, rest = bytes(entry[at : at + 4]), bytes(entry[at + 4 :])
        content_type = rest.split(b"\0")[1] if item_kind == b"mime" and rest.count(b"\0") > 1 else b""
        meta.items[number] = _Item(item_kind, bool(entry[3] & 1), content_type)


def _read_locations(meta: _Meta, body: memoryview) -> None:
    """iloc: where the bytes of each item are."""
    version = body[0]
    sizes = struct.unpack_from(">H", body, 4)[0]
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    at, wide = 6, version > 1
    count = _number(body, at, 4 if wide else 2)
    at += 4 if wide else 2
    if count > MAX_METADATA_BLOCKS:
        raise PhotoError(f"the HEIF has more than {MAX_METADATA_BLOCKS} items")
    for _ in range(count):
        number = _number(body, at, 4 if wide else 2)
        at += 4 if wide else 2
        method = _number(body, at, 2) & 15 if version else 0
        at += (2 if version else 0) + 2
        base = _number(body, at, base_size)
        extents = _number(body, at + base_size, 2)
        at += base_size + 2
        if extents > MAX_METADATA_BLOCKS:
            raise PhotoError("the HEIF scatters a picture over too many places")
        item = meta.items.setdefault(number, _Item())
        item.in_idat = method == 1
        for _ in range(extents):
            at += index_size if version else 0
            offset = _number(body, at, offset_size)
            item.extents.append((base + offset, _number(body, at + offset_size, length_size)))
            at += offset_size + length_size


def _number(body: memoryview, at: int, size: int) -> int:
    if at + size > len(body):
        raise PhotoError("a box of the HEIF is cut short")
    return int.from_bytes(body[at : at + size], "big")


def _read_references(meta: _Meta, body: memoryview) -> None:
    wide = 4 if body[0] else 2
    for kind, entry in boxes(body, 4, len(body)):
        source, count = _number(entry, 0, wide), _number(entry, wide, 2)
        for index in range(count):
            meta.references.append((kind, source, _number(entry, wide + 2 + wide * index, wide)))
        if len(meta.references) > MAX_METADATA_BLOCKS:
            raise PhotoError("the HEIF has too many references")


def _read_properties(meta: _Meta, body: memoryview) -> None:
    """iprp: the properties (ipco) and which item has which (ipma)."""
    properties: list[tuple[bytes, bytes]] = []
    for kind, box in boxes(body, 0, len(body)):
        if kind == b"ipco":
            properties = [(name, bytes(content[: MAX_ICC_BYTES + 4])) for name, content in boxes(box, 0, len(box))]
        elif kind == b"ipma":
            _associate(meta, box, properties)


def _associate(meta: _Meta, box: memoryview, properties: list[tuple[bytes, bytes]]) -> None:
    wide, long = 4 if box[0] else 2, 2 if box[3] & 1 else 1
    at = 8
    for _ in range(min(_number(box, 4, 4), MAX_METADATA_BLOCKS)):
        item = meta.items.setdefault(_number(box, at, wide), _Item())
        count, at = _number(box, at + wide, 1), at + wide + 1
        for _ in range(count):
            entry, at = _number(box, at, long), at + long
            index = entry & (0x7FFF if long == 2 else 0x7F)
            if 0 < index <= len(properties):
                item.properties.append(properties[index - 1])


def _samples(moov: bytes) -> int:
    """Frames of the largest track, from its stsz box."""
    found, at = 1, -1
    while (at := moov.find(b"stsz", at + 1)) >= 0 and at + 16 <= len(moov):
        found = max(found, struct.unpack_from(">I", moov, at + 12)[0])
    return found


# What is in them ------------------------------------------------------------------------------------------


def _size(item: _Item) -> tuple[int, int]:
    ispe = item.get(b"ispe")
    if ispe is None:
        raise PhotoError("the HEIF does not say how large its picture is")
    return struct.unpack_from(">II", ispe, 4)


def _upright_size(item: _Item) -> tuple[int, int]:
    """Width and height after the crop (clap) and the turn (irot)."""
    width, height = _size(item)
    clap, irot = item.get(b"clap"), item.get(b"irot")
    if clap is not None:
        across, over, down, under = struct.unpack_from(">IIII", clap)
        if not (over and under and 0 < across / over <= width and 0 < down / under <= height):
            raise PhotoError("the HEIF crops its picture to nothing")
        width, height = round(across / over), round(down / under)
    return (height, width) if irot is not None and irot[0] & 1 else (width, height)


def _tiles(data: bytes, meta: _Meta, primary: _Item) -> list[int]:
    return meta.targets(b"dimg", meta.primary) if primary.kind == b"grid" else []


def _check_grid(data: bytes, meta: _Meta, size: tuple[int, int], tiles: list[_Item]) -> None:
    """Raises PhotoError where the tiles of a grid do not just cover the picture (23008-12, section 6.6.2.3)."""
    primary = meta.item(meta.primary)
    if primary.kind != b"grid":
        return
    body = _bytes_of(data, meta, primary)
    if len(body) < 8:
        raise PhotoError("the grid of the HEIF is cut short")
    rows, columns = body[2] + 1, body[3] + 1
    said = struct.unpack_from(">II" if body[1] & 1 else ">HH", body, 4)
    sizes = {_size(tile) for tile in tiles}
    if len(tiles) != rows * columns or len(sizes) != 1 or said != size:
        raise PhotoError("the grid of the HEIF does not fit its tiles")
    width, height = sizes.pop()
    if not (width * (columns - 1) < size[0] <= width * columns and height * (rows - 1) < size[1] <= height * rows):
        raise PhotoError("the grid of the HEIF does not fit its tiles")


def _channels(primary: _Item, coded: _Item) -> tuple[int, int]:
    """Colour channels (1 or 3) and bits of each."""
    pixi = primary.get(b"pixi") or coded.get(b"pixi")
    if coded.kind == b"av01" and (av1c := coded.get(b"av1C")) and len(av1c) >= 4:
        return (1 if av1c[2] & 0x10 else 3), (8 if not av1c[2] & 0x40 else 12 if av1c[2] & 0x20 else 10)
    if coded.kind == b"hvc1" and (hvcc := coded.get(b"hvcC")) and len(hvcc) >= 23:
        return (3 if hvcc[16] & 3 else 1), 8 + (hvcc[17] & 7)
    if pixi is not None and len(pixi) > 5:
        return (1 if pixi[4] == 1 else 3), pixi[5]
    raise PhotoError("the HEIF does not say how its picture is coded")


def _colours(primary: _Item, coded: _Item, channels: int) -> tuple[bytes | None, tuple[str, ...]]:
    """The ICC profile, else the equal of the nclx codes, and warnings."""
    stated = [body for name, body in (*primary.properties, *coded.properties) if name == b"colr"]
    profile = next((body[4:] for body in stated if body[:4] in (b"prof", b"rICC")), None)
    codes = next((body for body in stated if body[:4] == b"nclx" and len(body) >= 10), None)
    if codes is not None and struct.unpack_from(">H", codes, 6)[0] in HDR_TRANSFERS:
        raise PhotoError("HDR pictures (PQ or HLG) are not supported; convert to SDR first", "unsupported-image")
    if profile is not None or codes is None:
        return profile, ()
    primaries, transfer = struct.unpack_from(">HH", codes, 4)
    colours = colours_of_codes(primaries, transfer, photo=True)
    if colours is None:
        return None, ("nclx-dropped",)
    return (None if colours.is_srgb else profile_of(colours, channels)), ()


def _aux_kind(item: _Item) -> bytes:
    return (item.get(b"auxC") or b"")[4:].split(b"\0")[0]


def _what_is_left(meta: _Meta) -> tuple[str, ...]:
    """Words for pictures beside the main one which a reader of one picture does not carry on."""
    kinds = {_aux_kind(meta.item(number)) for number in meta.sources(b"auxl", meta.primary)}
    parts = {meta.primary, *(to for _, _, to in meta.references if _ in (b"dimg",))}
    parts |= {start for kind, start, _ in meta.references if kind in (b"thmb", b"auxl")}
    pictures = {n for n, item in meta.items.items() if item.kind in (*_CODED, b"grid") and not item.hidden}
    gain_map = _GAIN_MAP in kinds or any(item.kind == b"tmap" for item in meta.items.values())
    words = {
        "gainmap-dropped": gain_map,
        "depth-map-dropped": any(kind.endswith((b"auxid:2", b":depth")) for kind in kinds),
        "other-pictures-dropped": bool(pictures - parts),
    }
    return tuple(word for word, applies in words.items() if applies)


def _bytes_of(data: bytes, meta: _Meta, item: _Item, most: int = _MOST_BYTES_OF_ITEM) -> bytes:
    """The item's bytes, at most so many, as far as they are there."""
    source, found = (meta.idat if item.in_idat else data), b""
    for offset, length in item.extents:
        found += source[offset : offset + min(length or len(source), most - len(found))]
    return found


def _whole(data: bytes, meta: _Meta, item: _Item) -> bool:
    source = meta.idat if item.in_idat else data
    return bool(item.extents) and all(offset + length <= len(source) for offset, length in item.extents)


def _described(meta: _Meta, kind: bytes, content_type: bytes = b"") -> Iterator[_Item]:
    for number, item in meta.items.items():
        about = meta.targets(b"cdsc", number)
        if item.kind == kind and item.content_type == content_type and (meta.primary in about or not about):
            yield item


def _exif(data: bytes, meta: _Meta) -> bytes | None:
    for item in _described(meta, b"Exif"):
        block = _bytes_of(data, meta, item)
        if len(block) > 4:
            return block[4 + struct.unpack_from(">I", block)[0] :] or None
    return None


def _xmp(data: bytes, meta: _Meta) -> bytes | None:
    found = (_bytes_of(data, meta, item) for item in _described(meta, b"mime", b"application/rdf+xml"))
    return next(found, None) or None


# What is coded --------------------------------------------------------------------------------------------


def _check_coded_size(data: bytes, meta: _Meta, item: _Item) -> None:
    """Raises PhotoError where the stream names a larger size than its box: a decoder believes the stream."""
    if item.kind == b"av01":
        coded = _av1_size((item.get(b"av1C") or b"")[4:]) or _av1_size(_bytes_of(data, meta, item, 4096))
    else:
        coded = _hevc_size(item.get(b"hvcC") or b"")
    said = _size(item)
    if coded is None:
        raise PhotoError("the picture in the HEIF has no header of its own")
    # HEVC codes whole blocks, which its own crop takes away again.
    largest = tuple(side + (63 if item.kind == b"hvc1" else 0) for side in said)
    if coded[0] > largest[0] or coded[1] > largest[1]:
        raise PhotoError(f"the picture in the HEIF is {coded[0]}x{coded[1]}, its box says {said[0]}x{said[1]}")


def _av1_size(stream: bytes) -> tuple[int, int] | None:
    """Largest frame of the first sequence header among these OBUs; None where there is none."""
    position = 0
    while position < len(stream):
        head = stream[position]
        position += 2 if head & 4 else 1
        length = len(stream) - position
        if head & 2:
            length, position = _leb128(stream, position)
        if head >> 3 & 15 == 1:
            return _av1_sequence(Bits(stream[position : position + min(length, 64)]))
        position += length
    return None


def _leb128(stream: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(8):
        byte = stream[position + index]
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, position + index + 1
    raise OverflowError("not a LEB128 number")


def _av1_sequence(bits: Bits) -> tuple[int, int]:
    """sequence_header_obu() as far as the sizes."""
    bits.skip(3 + 1)
    if bits.read(1):
        bits.skip(5)
    else:
        _skip_operating_points(bits)
    across, down = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(across) + 1, bits.read(down) + 1


def _skip_operating_points(bits: Bits) -> None:
    decoder_model, delay_bits = False, 0
    if bits.read(1):  # timing_info
        bits.skip(64)
        if bits.read(1):
            bits.variable()
        decoder_model = bool(bits.read(1))
        if decoder_model:
            delay_bits = bits.read(5) + 1
            bits.skip(32 + 5 + 5)
    initial_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.skip(12)
        if bits.read(5) > 7:
            bits.skip(1)
        if decoder_model and bits.read(1):
            bits.skip(2 * delay_bits + 1)
        if initial_delay and bits.read(1):
            bits.skip(4)


def _hevc_size(hvcc: bytes) -> tuple[int, int] | None:
    """Size in the sequence parameter set of an hvcC box (ISO/IEC 14496-15, section 8.3.3.1)."""
    position, largest = 23, None
    for _ in range(hvcc[22] if len(hvcc) > 22 else 0):
        kind = hvcc[position] & 63
        count = struct.unpack_from(">H", hvcc, position + 1)[0]
        position += 3
        for _ in range(count):
            length = struct.unpack_from(">H", hvcc, position)[0]
            if kind == 33:
                size = _hevc_sps(hvcc[position + 2 : position + 2 + min(length, 256)])
                largest = max(largest or size, size)
            position += 2 + length
    return largest


def _hevc_sps(unit: bytes) -> tuple[int, int]:
    bits = Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.skip(4)
    layers = bits.read(3)
    bits.skip(1 + 88 + 8)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    if layers:
        bits.skip(2 * (8 - layers))
    for profile, level in present:
        bits.skip(88 * profile + 8 * level)
    bits.exp_golomb()
    if bits.exp_golomb() == 3:
        bits.skip(1)
    return bits.exp_golomb(), bits.exp_golomb()
