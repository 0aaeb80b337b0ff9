"""Answers with a picture: headers, and the picture inside JSON."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from ray_sr.serving.codec import Encoded, EncodeSettings
from ray_sr.serving.schemas import ModelInfo, UpscaledPicture

SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tif", "avif": "avif", "jxl": "jxl"}


@dataclass(frozen=True)
class Answer:
    """What the response to one picture is made of; `seconds` of each stage in the order in which they ran."""

    encoded: Encoded
    job: EncodeSettings
    model: ModelInfo
    seconds: dict[str, float]


def picture_headers(answer: Answer) -> dict[str, str]:
    """Headers of an answer whose body is the picture."""
    job, encoded = answer.job, answer.encoded
    headers = {
        "Content-Type": f"image/{job.format}",
        "Content-Disposition": f'inline; filename="upscaled_x{job.scale:g}.{SUFFIXES[job.format]}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Server-Timing": ", ".join(f"{name};dur={1000 * s:.1f}" for name, s in answer.seconds.items()),
        "RaySR-Model": answer.model.tag,
        "RaySR-Scale": f"{job.scale:g}",
    }
    if encoded.warnings:
        headers["RaySR-Warnings"] = ", ".join(encoded.warnings)
    return headers


def picture_document(answer: Answer) -> UpscaledPicture:
    """The picture inside JSON."""
    return UpscaledPicture(
        image=base64.b64encode(answer.encoded.data).decode(),
        format=answer.job.format,
        width=answer.encoded.width,
        height=answer.encoded.height,
        scale=answer.job.scale,
        model=answer.model.tag,
        timings={name: round(seconds, 4) for name, seconds in answer.seconds.items()},
        warnings=list(answer.encoded.warnings),
    )
