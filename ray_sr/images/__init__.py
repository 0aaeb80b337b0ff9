"""Pictures: bytes to photos and back, their metadata, and resizing.

Imports no torch: the codec processes of the endpoint stay small.
"""

import os

# libvips reads these once, when it starts.
os.environ.setdefault("VIPS_CONCURRENCY", "1")
os.environ.setdefault("VIPS_BLOCK_UNTRUSTED", "1")

from ray_sr.images.decode import check_header, decode, read_photo
from ray_sr.images.encode import check_result_size, encode, format_of, left_out, write_bytes, write_photo
from ray_sr.images.headers import Header, PhotoError, scan_header, sniff
from ray_sr.images.photo import (
    DEFAULT_LIMITS,
    FORMATS,
    OTHER_SUFFIXES,
    READ_FORMATS,
    SUFFIXES,
    WRITTEN_SUFFIXES,
    Limits,
    Metadata,
    Photo,
    at_hand,
    rgb8,
    rgb16,
    to_8_bits,
)

__all__ = [
    "DEFAULT_LIMITS",
    "FORMATS",
    "OTHER_SUFFIXES",
    "READ_FORMATS",
    "SUFFIXES",
    "WRITTEN_SUFFIXES",
    "Header",
    "Limits",
    "Metadata",
    "Photo",
    "PhotoError",
    "at_hand",
    "check_header",
    "check_result_size",
    "decode",
    "encode",
    "format_of",
    "left_out",
    "read_photo",
    "rgb8",
    "rgb16",
    "scan_header",
    "sniff",
    "to_8_bits",
    "write_bytes",
    "write_photo",
]
