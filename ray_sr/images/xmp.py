"""XMP packets: what no longer holds is taken out, rights are kept, and further properties are put in.

A packet that needs no change keeps its bytes. Sources: ISO 16684-1 (XMP part 1) and part 2 for the properties;
IPTC Photo Metadata Standard 2023.2 for how its fields are named in XMP; Google's documents of motion photos,
dynamic depth and Ultra HDR; XMP part 3, section 1.1.3.1 for extended XMP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from xml.dom import minidom
from xml.parsers.expat import ExpatError
from xml.sax.saxutils import escape

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_PHOTOSHOP = "http://ns.adobe.com/photoshop/1.0/"
_CAMERA = "http://ns.google.com/photos/1.0/camera/"
_CONTAINER = "http://ns.google.com/photos/1.0/container/"
_NOTE = "http://ns.adobe.com/xmp/note/"
_GAIN_MAPS = ("http://ns.adobe.com/hdr-gain-map/1.0/", "http://ns.apple.com/HDRGainMap/1.0/")
_DEPTHS = (
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.google.com/photos/1.0/audio/",
    "http://ns.google.com/photos/dd/1.0/",
)
_RIGHTS = (
    "http://ns.adobe.com/xap/1.0/rights/",
    "http://ns.useplus.org/ldf/xmp/1.0/",
    "http://creativecommons.org/ns#",
)
_RIGHTS_BY_NAME = {
    (_DC, "rights"),
    (_DC, "creator"),
    (_PHOTOSHOP, "Credit"),
    (_PHOTOSHOP, "Source"),
    ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "CreatorContactInfo"),
}
_CLAIMS = re.compile(
    rb"ns\.google\.com/photos/|ns\.adobe\.com/hdr-gain-map|ns\.apple\.com/HDRGainMap|HasExtendedXMP"
)
_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|\s*>\s*))[2-8]")
_MOST_LEVELS = 100
_XMLNS = "http://www.w3.org/2000/xmlns/"

Test = Callable[[str, str], bool]


class BrokenXmp(ValueError):
    """A packet that is not well-formed XML, or hides something in its document type."""


def normalise_xmp(xmp: bytes, turned: bool) -> tuple[bytes | None, tuple[str, ...]]:
    """The packet without claims to data that a new file does not have, and words for what these were.

    turned: the pixels have been turned upright, so tiff:Orientation becomes 1; else it is left as it is. A
    packet that makes such claims and cannot be read is left out (xmp-broken).
    """
    if turned:
        xmp = _ORIENTATION.sub(rb"\g<1>1", xmp)
    if not _CLAIMS.search(xmp):
        return xmp, ()
    try:
        document = _parsed(xmp)
    except BrokenXmp:
        return None, ("xmp-broken",)
    words: list[str] = []

    def gone(space: str, name: str) -> bool:
        word = _claim(space, name)
        words.extend([word] if word else [])
        return word is not None

    for description in _descriptions(document):
        _remove(description, gone)
    # The list of what follows is part of the other claims where these are there.
    found = [word for word in dict.fromkeys(words) if word != "trailer-dropped" or len(set(words)) == 1]
    return (_written(document) if words else xmp), tuple(found)


def _claim(space: str, name: str) -> str | None:
    """What the property speaks of, if a new file has it no more."""
    if space == _CAMERA and name.startswith(("MotionPhoto", "MicroVideo")):
        return "motion-photo-dropped"
    if space.startswith(_GAIN_MAPS):
        return "gainmap-dropped"
    if space.startswith(_DEPTHS):
        return "depth-map-dropped"
    if space == _NOTE and name == "HasExtendedXMP":
        return "extended-xmp-dropped"
    return "trailer-dropped" if space.startswith(_CONTAINER) else None


def rights_only(xmp: bytes) -> bytes | None:
    """A packet of nothing but the rights: creator, notice, terms, licence; None where there are none."""
    try:
        document = _parsed(xmp)
    except BrokenXmp:
        return None
    found = 0

    def other(space: str, name: str) -> bool:
        nonlocal found
        kept = space in _RIGHTS or (space, name) in _RIGHTS_BY_NAME
        found += kept
        return not kept

    for description in _descriptions(document):
        _remove(description, other)
    if not found:
        return None
    return _written(document)


def _written(document: minidom.Document) -> bytes:
    """The packet, without namespaces of which nothing is left."""
    text = "".join(node.toxml() for node in document.childNodes)
    for declaration, prefix in re.findall(r"""(\sxmlns:([\w.-]+)=["'][^"']*["'])""", text):
        if not re.search(rf"[\s</]{re.escape(prefix)}:", text):
            text = text.replace(declaration, "")
    return text.encode()


def properties_of(xmp: bytes) -> set[tuple[str, str]]:
    """Namespace and name of every property of the packet; none where it cannot be read."""
    try:
        document = _parsed(xmp)
    except BrokenXmp:
        return set()
    found: set[tuple[str, str]] = set()

    def note(space: str, name: str) -> bool:
        found.add((space, name))
        return False

    for description in _descriptions(document):
        _remove(description, note)
    return found


def _parsed(xmp: bytes) -> minidom.Document:
    if b"<!DOCTYPE" in xmp or b"<!ENTITY" in xmp:
        raise BrokenXmp("a document type has no place in XMP")
    try:
        document = minidom.parseString(xmp.strip(b"\0 \r\n\t"))
    except (ExpatError, ValueError) as error:
        raise BrokenXmp(str(error)) from None
    level: list[minidom.Node] = list(document.childNodes)
    for _ in range(_MOST_LEVELS):
        level = [child for node in level for child in node.childNodes]
        if not level:
            return document
    raise BrokenXmp("elements lie too deep in each other")


def _descriptions(document: minidom.Document) -> list[minidom.Element]:
    """The descriptions at the top, whose attributes and children are the properties."""
    found = document.getElementsByTagNameNS(_RDF, "Description")
    return [node for node in found if node.parentNode is not None and node.parentNode.localName == "RDF"]


def _remove(description: minidom.Element, test: Test) -> None:
    """Takes out the properties for which `test` of namespace and name is true."""
    attributes = list(description.attributes.values())
    for attribute in attributes:
        space = attribute.namespaceURI
        if space and space not in (_XMLNS, _RDF) and test(space, attribute.localName or ""):
            description.removeAttributeNode(attribute)
    for child in list(description.childNodes):
        if isinstance(child, minidom.Element) and test(child.namespaceURI or "", child.localName or ""):
            description.removeChild(child)


# Putting in -----------------------------------------------------------------------------------------------

# How a field is written: as an alternative of languages, a list, a set, or plainly.
_FORMS: dict[str, tuple[str, str, str]] = {
    "creator": (_DC, "dc:creator", "Seq"),
    "rights": (_DC, "dc:rights", "Alt"),
    "title": (_DC, "dc:title", "Alt"),
    "description": (_DC, "dc:description", "Alt"),
    "subject": (_DC, "dc:subject", "Bag"),
    "headline": (_PHOTOSHOP, "photoshop:Headline", ""),
    "credit": (_PHOTOSHOP, "photoshop:Credit", ""),
    "source": (_PHOTOSHOP, "photoshop:Source", ""),
    "city": (_PHOTOSHOP, "photoshop:City", ""),
    "state": (_PHOTOSHOP, "photoshop:State", ""),
    "country": (_PHOTOSHOP, "photoshop:Country", ""),
    "instructions": (_PHOTOSHOP, "photoshop:Instructions", ""),
    "writer": (_PHOTOSHOP, "photoshop:CaptionWriter", ""),
    "created": (_PHOTOSHOP, "photoshop:DateCreated", ""),
}
RIGHTS_FIELDS = ("creator", "rights", "credit", "source")


def with_fields(xmp: bytes | None, fields: Mapping[str, Iterable[str]]) -> bytes | None:
    """The packet with these fields, where it has none of their names; a new packet where there is none.

    fields: texts under the names of `_FORMS`. None where there is nothing to put in and no packet, or where the
    packet has no place to put them.
    """
    there = properties_of(xmp) if xmp else set()
    forms = {name: _FORMS[name] for name in fields}
    new = {n: f for n, f in forms.items() if (f[0], f[1].partition(":")[2]) not in there}
    if not new:
        return xmp
    spaces = "".join(f' xmlns:{prefix}="{space}"' for prefix, space in (("dc", _DC), ("photoshop", _PHOTOSHOP)))
    properties = "".join(_property(qualified, kind, fields[name]) for name, (_, qualified, kind) in new.items())
    description = f'<rdf:Description rdf:about=""{spaces}>{properties}</rdf:Description>'.encode()
    if xmp is None:
        head, foot = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">', "</rdf:RDF></x:xmpmeta>"
        return head.encode() + description + foot.encode()
    before, end, after = xmp.rpartition(b"</rdf:RDF>")
    return before + description + end + after if end else None


def _property(name: str, kind: str, texts: Iterable[str]) -> str:
    shown = [escape(_printable(text)) for text in texts]
    if not kind:
        return f"<{name}>{', '.join(shown)}</{name}>"
    language = ' xml:lang="x-default"' if kind == "Alt" else ""
    entries = "".join(f"<rdf:li{language}>{text}</rdf:li>" for text in (shown[:1] if kind == "Alt" else shown))
    return f"<{name}><rdf:{kind}>{entries}</rdf:{kind}></{name}>"


def _printable(text: str) -> str:
    """The text without the characters that XML 1.0 cannot hold."""
    return re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", " ", text)
