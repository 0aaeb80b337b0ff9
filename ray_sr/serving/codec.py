"""The codec stage: bytes to Photo and back.

Plain functions without state. They run in processes of their own (see `codec_process`): importing them costs
neither torch nor Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_sr import images
from ray_sr.serving.options import Format, Metadata, ServiceLimits


@dataclass(frozen=True)
class EncodeSettings:
    """What shall become of one picture. All is settled: no option is left open.

    The network enlarges `network_scale` times, whatever `scale` asks for; the rest is resizing.
    """

    scale: float
    network_scale: int
    format: Format
    quality: int
    lossless: bool
    background: tuple[int, int, int]
    metadata: Metadata
    denoise: float | None = None


@dataclass(frozen=True)
class Encoded:
    """An answer: the bytes, their pixel size and what decoding and encoding lost."""

    data: bytes
    width: int
    height: int
    warnings: tuple[str, ...]


def decode(data: bytes, accepted: images.Limits) -> images.Photo:
    """Photo of the body. Raises PhotoError."""
    return images.decode(data, accepted)


def encode(photo: images.Photo, job: EncodeSettings) -> Encoded:
    """The result in the asked format. Raises PhotoError and ResourceError."""
    data = images.encode(
        photo,
        job.format,
        quality=job.quality,
        lossless=job.lossless,
        metadata=job.metadata,
        background=job.background,
    )
    lost = images.left_out(photo, job.format, job.metadata)
    warnings = tuple(dict.fromkeys(photo.warnings + lost))
    return Encoded(data, photo.width, photo.height, warnings)


def accepted_photos(limits: ServiceLimits) -> images.Limits:
    """The limits of a service as the decoder takes them."""
    return images.Limits(
        max_bytes=limits.body_bytes,
        max_pixels=limits.input_pixels,
        max_side=limits.side,
        formats=limits.formats,
        max_scans=limits.jpeg_scans,
    )
