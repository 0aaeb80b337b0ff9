"""Texts, rights, resolution and claims in XMP on their way from each container to each other, read by Pillow."""

from __future__ import annotations

import io
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ray_sr.images import Photo, decode, encode, left_out, png_header
from ray_sr.images.exif import read_density, read_text, with_density, with_texts
from ray_sr.images.header import MAX_TEXT_BYTES
from ray_sr.images.iptc import fields_of, photoshop_block, records_in, rights_records
from ray_sr.images.png_header import _inflated
from ray_sr.images.xmp import normalise_xmp, properties_of, rights_only, with_fields
from tests.image_files import chunk, exif_block, noise, opened, png, saved, smooth, tiff

PARAMETERS = "a tree with a bird\nSteps: 40, Seed: 968002204"
TEXTS = (
    chunk(b"tEXt", b"parameters\0" + PARAMETERS.encode()),
    chunk(b"tEXt", b"Copyright\0\xa9 Ann"),
    chunk(b"zTXt", b"Author\0\0" + zlib.compress(b"Ann")),
    chunk(b"iTXt", b"Description\0\0\0de\0\0ein Baum \xc3\xa4"),
)
RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
DC = "{http://purl.org/dc/elements/1.1/}"


def packet(attributes: str = "", inside: str = "") -> bytes:
    body = f'<rdf:Description rdf:about="" {attributes}>{inside}</rdf:Description>'
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}>{body}</rdf:RDF></x:xmpmeta>'
    return f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>{text}<?xpacket end="w"?>'.encode()


def iptc(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(struct.pack(">BBBH", 0x1C, 2, number, len(value)) + value for number, value in fields)


RECORDS = iptc((0, b"\0\2"), (25, b"boat"), (80, b"Ann"), (116, "© Ann".encode()), (120, b"Harbour"))
RIGHTS_XMP = packet(
    'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"',
    '<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">(c) Bob</rdf:li></rdf:Alt></dc:rights>'
    "<dc:subject><rdf:Bag><rdf:li>boat</rdf:li></rdf:Bag></dc:subject>",
)


def jpeg(*segments: tuple[int, bytes]) -> bytes:
    data = saved(smooth(16, 24), "jpeg")
    inside = b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body for marker, body in segments)
    return data[:2] + inside + data[2:]


def texts_in(xmp: bytes | None, name: str) -> list[str]:
    root = ElementTree.fromstring(xmp or b"<a/>")
    items = [node for element in root.iter(name) for node in element.iter()]
    return [node.text for node in items if node.text and node.tag.endswith("}li")]


# Texts ----------------------------------------------------------------------------------------------------


def test_texts_are_kept_from_png_to_png_byte_for_byte() -> None:
    photo = decode(png(*TEXTS))
    data = encode(photo)
    assert all(text in data for text in TEXTS)
    image = opened(data)
    image.load()
    assert image.info["parameters"] == PARAMETERS
    assert image.info["Author"] == "Ann"
    assert left_out(photo, "png") == ()


def test_texts_behind_the_pixels_are_kept_too() -> None:
    data = png()
    assert TEXTS[0] in encode(decode(data[:-12] + TEXTS[0] + data[-12:]))


@pytest.mark.parametrize("format", ["jpeg", "webp", "avif"])
def test_texts_become_exif_elsewhere(format: str) -> None:
    photo = decode(png(*TEXTS))
    exif = opened(encode(photo, format)).getexif()
    assert exif.get_ifd(0x8769)[0x9286] == b"ASCII\0\0\0" + PARAMETERS.encode()
    back = decode(encode(photo, format)).exif
    assert back is not None
    assert [read_text(back, tag) for tag in (0x8298, 0x013B, 0x010E)] == ["© Ann", "Ann", "ein Baum ä"]
    assert left_out(photo, format) == ()
    assert left_out(decode(png(*TEXTS, chunk(b"tEXt", b"workflow\0{}"))), format) == ("text-dropped",)


def test_texts_join_the_exif_that_is_there_and_do_not_replace_it() -> None:
    photo = Photo(smooth(8, 8), exif=exif_block(), png_text=TEXTS[0] + TEXTS[1] + TEXTS[2])
    image = opened(encode(photo, "jpeg"))
    exif = image.getexif()
    assert (exif[0x8298], exif[0x013B], exif[0x010F]) == ("(c) A. Photographer", "Ann", "ACME")
    assert dict(exif.get_ifd(0x8769)) == {0xA002: 8, 0xA003: 8, 0x9286: b"ASCII\0\0\0" + PARAMETERS.encode()}
    assert exif.get_ifd(0x8825)
    assert left_out(photo, "jpeg") == ("text-dropped",)  # the other copyright


def test_texts_become_xmp_in_tiff() -> None:
    photo = decode(png(*TEXTS[1:]))
    xmp = opened(encode(photo, "tiff")).info["xmp"]
    assert texts_in(xmp, DC + "rights") == ["© Ann"]
    assert texts_in(xmp, DC + "creator") == ["Ann"]
    assert left_out(photo, "tiff") == ()
    assert left_out(decode(png(TEXTS[0])), "tiff") == ("text-dropped",)


def test_comments_of_a_jpeg_go_both_ways() -> None:
    photo = decode(jpeg((0xFE, "Größe".encode())))
    image = opened(encode(photo))
    image.load()
    assert image.info["Comment"] == "Größe"
    assert opened(encode(photo, "jpeg")).info["comment"] == "Größe".encode()
    assert opened(encode(decode(png(chunk(b"tEXt", b"Comment\0hi"))), "jpeg")).info["comment"] == b"hi"


def test_text_bombs_are_dropped() -> None:
    bomb = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(50 << 20)))
    assert decode(png(bomb)).warnings == ("text-dropped",)


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0")])
def test_texts_that_unpack_to_too_much_are_not_passed_on(kind: bytes, head: bytes) -> None:
    photo = decode(png(chunk(kind, head + zlib.compress(bytes(50 << 20))), TEXTS[0]))
    assert photo.warnings == ("text-dropped",)
    assert photo.png_text == TEXTS[0], "what fits is kept"
    many = [chunk(kind, head + zlib.compress(bytes(1 << 20)))] * 5
    photo = decode(png(*many))
    assert photo.warnings == ("text-dropped",)
    assert photo.png_text == b"".join(many[:3]), "the limit is for all texts together"


@pytest.mark.parametrize("keyword", [b"k", b"Raw profile type exif"])
def test_many_bombs_are_not_all_unpacked(keyword: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = []
    monkeypatch.setattr(
        png_header, "_inflated", lambda packed, most: unpacked.append(most) or _inflated(packed, most)
    )
    bomb = chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(bytes(5 << 20)))
    assert decode(png(*[bomb] * 200)).warnings == ("text-dropped",)
    assert 0 < sum(unpacked) <= 5 * MAX_TEXT_BYTES


# Rights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
@pytest.mark.parametrize("metadata", ["keep", "copyright"])
def test_rights_in_iptc_are_kept_everywhere(format: str, metadata: str) -> None:
    photo = decode(jpeg((0xED, photoshop_block(RECORDS))))
    assert photo.iptc == RECORDS
    back = decode(encode(photo, format, metadata=metadata))  # type: ignore[arg-type]
    if format in ("jpeg", "tiff"):
        assert back.iptc is not None
        fields = fields_of(back.iptc)[0]
    else:
        fields = {"creator": texts_in(back.xmp, DC + "creator"), "rights": texts_in(back.xmp, DC + "rights")}
        assert bool(texts_in(back.xmp, DC + "subject")) == (metadata == "keep")
    assert (fields["creator"], fields["rights"]) == (["Ann"], ["© Ann"])
    assert ("subject" in fields) == (metadata == "keep" and format in ("jpeg", "tiff"))
    assert left_out(photo, format) == ()


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_rights_in_xmp_are_what_copyright_keeps(format: str) -> None:
    back = decode(encode(Photo(smooth(8, 8), xmp=RIGHTS_XMP), format, metadata="copyright"))
    assert texts_in(back.xmp, DC + "rights") == ["(c) Bob"]
    assert back.xmp is not None
    assert b"Rating" not in back.xmp
    assert b"boat" not in back.xmp


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "avif"])
def test_rights_in_texts_are_kept_by_copyright(format: str) -> None:
    data = encode(decode(png(*TEXTS)), format, metadata="copyright")
    assert b"Seed" not in data
    assert b"Baum" not in data
    if format == "png":
        assert all(text in data for text in TEXTS[1:3])
    else:
        assert opened(data).getexif()[0x013B] == "Ann"


def test_no_metadata_means_none() -> None:
    photo = Photo(smooth(8, 8), exif=exif_block(), xmp=RIGHTS_XMP, iptc=RECORDS, png_text=b"".join(TEXTS))
    for format in ("png", "jpeg", "webp", "tiff", "avif"):
        data = encode(photo, format, metadata="none")
        assert not any(word in data for word in (b"Ann", b"Bob", b"ACME", b"Seed"))


def test_iptc_is_found_in_raw_profiles_of_png_and_in_tiff() -> None:
    digits = photoshop_block(RECORDS).removeprefix(b"Photoshop 3.0\0").hex().encode()
    raw = chunk(
        b"zTXt", b"Raw profile type iptc\0\0" + zlib.compress(b"\niptc\n%8d\n%s\n" % (len(digits) // 2, digits))
    )
    assert decode(png(raw)).iptc == RECORDS
    assert b"Raw profile" not in encode(decode(png(raw)))
    in_tiff = decode(saved(smooth(8, 8), "tiff", tiffinfo={33723: RECORDS})).iptc
    assert in_tiff is not None
    assert in_tiff.startswith(RECORDS)


def test_records_of_other_kinds_are_missed_with_a_word() -> None:
    photo = Photo(smooth(8, 8), iptc=RECORDS + iptc((200, b"?")))
    assert left_out(photo, "jpeg") == ()
    assert left_out(photo, "webp") == ("iptc-dropped",)
    assert rights_records(iptc((25, b"boat"))) is None
    assert records_in(b"8BIM\4\4") is None


# Resolution -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_resolution_in_exif_alone_reaches_every_format(source: str, format: str) -> None:
    exif = with_density(None, (300.0, 200.0))
    photo = decode(saved(smooth(8, 8), source, exif=exif))
    assert photo.density == pytest.approx((300, 200))
    data = encode(photo, format, metadata="none")
    if format in ("webp", "avif"):
        tags = opened(data).getexif()
        assert (tags[0x011A], tags[0x011B], tags[0x0128]) == (300, 200, 2)
    else:
        assert opened(data).info["dpi"] == pytest.approx((300, 200), abs=0.02)


def test_resolution_of_the_container_comes_before_that_of_exif() -> None:
    exif = with_density(None, (72.0, 72.0))
    photo = decode(saved(smooth(8, 8), "jpeg", dpi=(300, 300), exif=exif))
    assert photo.density == (300, 300)
    assert opened(encode(photo, "webp")).getexif()[0x011A] == 300
    assert read_density(exif_block()) is None


# XMP ------------------------------------------------------------------------------------------------------

CAMERA = 'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"'
DIRECTORY = (
    '<Container:Directory xmlns:Container="http://ns.google.com/photos/1.0/container/" '
    'xmlns:Item="http://ns.google.com/photos/1.0/container/item/"><rdf:Seq><rdf:li rdf:parseType="Resource">'
    '<Container:Item Item:Semantic="MotionPhoto" Item:Length="4096"/></rdf:li></rdf:Seq></Container:Directory>'
)
CLAIMS = {
    "motion-photo-dropped": packet(f'{CAMERA} GCamera:MotionPhoto="1" GCamera:SpecialTypeID="x"', DIRECTORY),
    "gainmap-dropped": packet('xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"', DIRECTORY),
    "depth-map-dropped": packet('xmlns:GDepth="http://ns.google.com/photos/1.0/depthmap/" GDepth:Near="1"'),
    "extended-xmp-dropped": packet(
        f'xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{"A" * 32}"'
    ),
    "trailer-dropped": packet("", DIRECTORY),
}


@pytest.mark.parametrize("word", CLAIMS)
def test_claims_to_what_is_gone_leave_the_packet_with_a_warning(word: str) -> None:
    photo = decode(jpeg((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + CLAIMS[word])) + b"\0ftypmp42" * 99)
    assert word in photo.warnings
    assert photo.xmp is not None
    ElementTree.fromstring(photo.xmp)
    gone = (b"MotionPhoto", b"Container", b"hdrgm", b"GDepth", b"HasExtended")
    assert not any(claim in photo.xmp for claim in gone)
    assert (b"SpecialTypeID" in photo.xmp) == (word == "motion-photo-dropped")
    assert b"W5M0MpCehiHzreSzNTczkc9d" in photo.xmp


def test_a_trailer_that_nobody_speaks_of_is_told() -> None:
    assert decode(jpeg() + b"SEFH and a film").warnings == ("trailer-dropped",)
    assert decode(jpeg() + bytes(100)).warnings == ()


def test_a_packet_without_claims_keeps_its_bytes() -> None:
    assert normalise_xmp(RIGHTS_XMP, False) == (RIGHTS_XMP, ())
    turned = packet('xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"')
    assert normalise_xmp(turned, False) == (turned, ())
    assert normalise_xmp(turned, True) == (turned.replace(b'"6"', b'"1"'), ())


def test_broken_and_hostile_packets_are_dropped_with_a_warning() -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "hdrgm:Version http://ns.adobe.com/hdr-gain-map/1.0/">]><a>&b;</a>'
    deep = CLAIMS["gainmap-dropped"].replace(b"</rdf:RDF>", b"<a>" * 50000 + b"</a>" * 50000 + b"</rdf:RDF>")
    for broken in (CLAIMS["gainmap-dropped"][:-40], bomb, deep):
        assert normalise_xmp(broken, False) == (None, ("xmp-broken",))
        assert rights_only(broken) is None
        assert properties_of(broken) == set()
    assert with_fields(b"no xml", {"rights": ["x"]}) is None


def test_orientation_in_xmp_alone_is_left_with_pixels_that_are_not_turned() -> None:
    xmp = packet('xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"')
    body = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
    photo = decode(png(chunk(b"iTXt", body)))
    assert (photo.width, photo.height, photo.xmp) == (4, 3, xmp)
    turned = decode(png(chunk(b"iTXt", body), chunk(b"eXIf", exif_block(6))))
    assert (turned.width, turned.height) == (3, 4)
    assert turned.xmp == xmp.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("name", [b"exif", b"APP1"])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_exif_in_a_text_of_png_turns_and_is_kept(name: bytes, kind: bytes) -> None:
    digits = (b"Exif\0\0" + exif_block(6)).hex().encode()
    content = b"\n%s\n%8d\n%s\n" % (name, len(digits) // 2, digits)
    packed = content if kind == b"tEXt" else b"\0" + zlib.compress(content)
    photo = decode(png(chunk(kind, b"Raw profile type " + name + b"\0" + packed)))
    assert (photo.width, photo.height) == (3, 4)
    exif = opened(encode(photo)).getexif()
    assert (exif[0x0112], exif[0x010F]) == (1, "ACME")


# EXIF and TIFF --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_that_grows_keeps_what_it_had(order: str) -> None:
    grown = with_texts(with_density(exif_block(order=order), (150.0, 75.5)), {0x013B: "Änn", 0x9286: "größer"})
    assert grown is not None
    exif = Image.Exif()
    exif.load(grown)
    assert (exif[0x010F], exif[0x8298], exif[0x011A]) == ("ACME", "(c) A. Photographer", 150)
    assert set(exif.get_ifd(0x8769)) == {0xA002, 0xA003, 0x9286}
    assert (read_text(grown, 0x9286), read_text(grown, 0x013B)) == ("größer", "Änn")
    assert read_density(grown) == pytest.approx((150, 75.5))
    assert with_texts(None, {}) is None


@pytest.mark.parametrize("depth", [8, 16])
def test_an_unspecified_channel_of_a_tiff_is_no_opacity(depth: int) -> None:
    samples = noise(2, 3, 4, np.uint8 if depth == 8 else np.uint16)
    for meaning in (0, None):
        extra = {} if meaning is None else {338: meaning}
        photo = decode(tiff(3, 2, samples.tobytes(), depth=depth, channels=4, extra=extra))
        assert photo.alpha is None
        assert photo.warnings == ("extra-channel-dropped",)
        assert np.array_equal(photo.pixels, samples[..., :3])
    opaque = decode(tiff(3, 2, samples.tobytes(), depth=depth, channels=4, extra={338: 2}))
    assert opaque.alpha is not None
    assert np.array_equal(opaque.alpha, samples[..., 3])


def test_other_pictures_of_an_mpo_are_missed_with_a_word() -> None:
    buffer = io.BytesIO()
    first, second = (Image.fromarray(smooth(16, 16 + n)) for n in range(2))
    first.save(buffer, "mpo", save_all=True, append_images=[second])
    assert "other-pictures-dropped" in decode(buffer.getvalue()).warnings
