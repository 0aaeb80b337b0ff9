"""What goes along with a picture into a container that may be of another kind than the one it came from.

Each container has its own places: where one is missing, another says the same, or `lost` names it. The table is
in docs/pictures.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ray_sr.images import iptc, text, xmp
from ray_sr.images.containers import MAX_JPEG_EXIF, MAX_JPEG_IPTC, MAX_JPEG_XMP, Extras
from ray_sr.images.exif import (
    ARTIST,
    COPYRIGHT,
    DESCRIPTION,
    credits_only,
    read_text,
    resize_exif,
    says_adobe_rgb,
    with_density,
    with_texts,
)
from ray_sr.images.photo import Metadata, Photo

_WITH_IPTC = ("jpeg", "tiff")
_WITHOUT_DENSITY = ("webp", "avif", "jxl")  # only EXIF has it there
_FIELDS_OF_EXIF = {COPYRIGHT: "rights", ARTIST: "creator", DESCRIPTION: "description"}


@dataclass(frozen=True)
class Carried:
    """What is written beside the pixels, and words for what finds no place."""

    extras: Extras
    lost: tuple[str, ...] = ()

    def without(self, word: str, **nothing: None) -> Carried:
        """The same with something left out, which is said."""
        return Carried(replace(self.extras, **nothing), (*self.lost, word))  # type: ignore[arg-type]


def carry(photo: Photo, format: str, metadata: Metadata, size: tuple[int, int]) -> Carried:
    """Extras for a picture of this (height, width), made of `photo`, in a container of this format.

    metadata: keep all that has a place, only the rights (who made it, who may use it), or none. Density and
    colours always stay.
    """
    carried = Carried(_chosen(photo, metadata, size))
    for step in (_place_iptc, _place_texts, _place_exif):
        carried = step(carried, format)
    carried = _place_density(carried, photo.density, format)
    carried = _place_colours(carried, photo, format)
    if format == "jpeg":
        carried = _within_segments(carried)
    return carried


def _chosen(photo: Photo, metadata: Metadata, size: tuple[int, int]) -> Extras:
    """What of the photo's metadata is wanted, wherever it goes."""
    always = Extras(density=photo.density, png_colour=photo.png_colour)
    if metadata == "none":
        return always
    if metadata == "copyright":
        return replace(
            always,
            exif=credits_only(photo.exif) if photo.exif else None,
            xmp=xmp.rights_only(photo.xmp) if photo.xmp else None,
            iptc=iptc.rights_records(photo.iptc) if photo.iptc else None,
            png_text=text.rights_chunks(photo.png_text) if photo.png_text else None,
        )
    exif = resize_exif(photo.exif, *size[::-1], photo.density) if photo.exif else None
    return replace(always, exif=exif, xmp=photo.xmp, iptc=photo.iptc, png_text=photo.png_text)


def _place_iptc(carried: Carried, format: str) -> Carried:
    """IPTC where there is a place for it, else the same in XMP's words."""
    extras = carried.extras
    if not extras.iptc or format in _WITH_IPTC:
        return carried
    fields, whole = iptc.fields_of(extras.iptc)
    packet = xmp.with_fields(extras.xmp, fields)
    if packet is None or not whole:
        carried = carried.without("iptc-dropped")
    return replace(carried, extras=replace(extras, iptc=None, xmp=packet or extras.xmp))


def _place_texts(carried: Carried, format: str) -> Carried:
    """Texts as chunks of PNG, else as EXIF, or in TIFF as XMP."""
    extras = carried.extras
    chunks = extras.png_text
    if not chunks or format == "png":
        return carried
    if format == "tiff":
        fields, whole = text.as_fields(chunks)
        extras = replace(extras, xmp=xmp.with_fields(extras.xmp, fields) or extras.xmp)
    else:
        comments = tuple(text.comments(chunks)) if format == "jpeg" else ()
        placed, whole = text.as_exif(chunks, extras.exif, format == "jpeg")
        exif = with_texts(extras.exif, placed)
        if format == "jpeg" and exif and len(exif) > MAX_JPEG_EXIF:
            exif, whole = extras.exif, False
        extras = replace(extras, exif=exif, comments=comments)
    carried = replace(carried, extras=replace(extras, png_text=None))
    return carried if whole else carried.without("text-dropped")


def _place_exif(carried: Carried, format: str) -> Carried:
    """EXIF; of that of a TIFF only what XMP has words for is written."""
    exif = carried.extras.exif
    if not exif or format != "tiff":
        return carried
    fields = {name: [found] for tag, name in _FIELDS_OF_EXIF.items() if (found := read_text(exif, tag))}
    packet = xmp.with_fields(carried.extras.xmp, fields) or carried.extras.xmp
    carried = replace(carried, extras=replace(carried.extras, xmp=packet))
    # Of credits nothing is lost then.
    only_credits = exif == credits_only(exif)
    nothing = replace(carried, extras=replace(carried.extras, exif=None))
    return nothing if only_credits else nothing.without("exif-dropped")


def _place_density(carried: Carried, density: tuple[float, float] | None, format: str) -> Carried:
    if density is None or format not in _WITHOUT_DENSITY:
        return carried
    return replace(carried, extras=replace(carried.extras, exif=with_density(carried.extras.exif, density)))


def _place_colours(carried: Carried, photo: Photo, format: str) -> Carried:
    """PNG's own words for colours, which the profile repeats; and EXIF's, which nothing else does."""
    if format != "png":
        chunks = carried.extras.png_colour or b""
        alone = b"cHRM" in chunks and b"gAMA" not in chunks and b"sRGB" not in chunks
        carried = replace(carried, extras=replace(carried.extras, png_colour=None))
        carried = carried.without("chromaticities-dropped") if alone else carried
    named = photo.icc is None and photo.exif is not None and says_adobe_rgb(photo.exif)
    exif = carried.extras.exif
    if named and not (exif and says_adobe_rgb(exif)):
        carried = carried.without("colour-space-dropped")
    return carried


def _within_segments(carried: Carried) -> Carried:
    """Only what fits into one segment of a JPEG each."""
    extras = carried.extras
    if len(extras.exif or b"") > MAX_JPEG_EXIF:
        carried = carried.without("exif-dropped", exif=None)
    if len(extras.xmp or b"") > MAX_JPEG_XMP:
        carried = carried.without("xmp-dropped", xmp=None)
    if len(extras.iptc or b"") > MAX_JPEG_IPTC:
        carried = carried.without("iptc-dropped", iptc=None)
    return carried
