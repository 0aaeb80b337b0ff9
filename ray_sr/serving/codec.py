"""The codec stage: bytes to Photo and back, bounded by what the service accepts.

Plain blocking functions without state, to be run beside the event loop: today in threads of the ingress.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_sr import images
from ray_sr.serving.options import Format, Metadata, ServiceLimits
from ray_sr.serving.problems import Problem


@dataclass(frozen=True)
class Job:
    """What shall become of one picture. All is settled: no option is left open.

    The network enlarges `network_scale` times, whatever `scale` asks for; the rest is resizing.
    """

    scale: float
    network_scale: int
    format: Format
    quality: int
    metadata: Metadata


@dataclass(frozen=True)
class Encoded:
    """An answer: the bytes, their pixel size and what decoding and encoding lost."""

    data: bytes
    width: int
    height: int
    warnings: tuple[str, ...]


def measure(data: bytes, job: Job, limits: ServiceLimits) -> int:
    """Pixels that the network will make, from the header alone: no pixel is decoded.

    Raises PhotoError where the picture, Problem where the result would be over a limit.
    """
    if images.sniff(data) not in limits.formats:
        accepted = ", ".join(limits.formats)
        raise Problem("unsupported-media-type", f"the body must be the bytes of a picture: {accepted}")
    header = images.scan_header(data)
    images.check_header(header, _accepted(limits))
    images.check_result_size(job.format, round(header.width * job.scale), round(header.height * job.scale))
    width, height = header.width * job.network_scale, header.height * job.network_scale
    if width * height > limits.result_pixels:
        detail = f"the network would make {width}x{height}, over the limit of {limits.result_pixels} pixels"
        raise Problem("result-too-large", detail, limit=limits.result_pixels, actual=width * height)
    return width * height


def decode(data: bytes, limits: ServiceLimits) -> images.Photo:
    """Photo of the body. Raises PhotoError."""
    return images.decode(data, _accepted(limits))


def encode(photo: images.Photo, job: Job) -> Encoded:
    """The result in the asked format. Raises PhotoError and ResourceError."""
    data = images.encode(photo, job.format, quality=job.quality, metadata=job.metadata)
    lost = images.left_out(photo, job.format)
    warnings = tuple(dict.fromkeys(photo.warnings + lost))
    return Encoded(data, photo.width, photo.height, warnings)


def _accepted(limits: ServiceLimits) -> images.Limits:
    return images.Limits(
        max_bytes=limits.body_bytes,
        max_pixels=limits.input_pixels,
        max_side=limits.side,
        formats=limits.formats,
        max_scans=limits.jpeg_scans,
    )
