"""Typed options of the service: of one request, of its limits, and of the whole application."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Format = Literal["png", "jpeg", "webp", "tiff"]
Metadata = Literal["keep", "copyright", "none"]
Precision = Literal["auto", "float32", "bf16"]


class Section(BaseModel):
    """Base of all option groups: unknown keys are refused and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UpscaleQuery(Section):
    """What a client can ask of one picture."""

    scale: float | None = Field(
        None, ge=1, le=8, description="enlargement, at most that of the model; default: that of the model"
    )
    format: Format = Field("png", description="picture format of the answer")
    quality: int = Field(95, ge=1, le=100, description="quality of jpeg and webp")
    metadata: Metadata = Field("keep", description="EXIF and XMP: all, only artist and copyright, or none")


class ServiceLimits(Section):
    """What the service accepts. Everything a client should know before it sends a picture."""

    formats: tuple[Format, ...] = Field(
        ("png", "jpeg", "webp"), min_length=1, description="accepted picture formats, by their first bytes"
    )
    body_bytes: int = Field(32 << 20, ge=1, description="largest request body")
    input_pixels: int = Field(1 << 22, ge=1, description="largest picture, width x height")
    result_pixels: int = Field(1 << 26, ge=1, description="largest picture that the network makes, width x height")
    side: int = Field(16384, ge=1, description="longest side of a picture")
    jpeg_scans: int = Field(64, ge=1, description="most scans of a JPEG")
    body_deadline_s: float = Field(30, gt=0, description="seconds in which the body must arrive")
    request_deadline_s: float = Field(60, gt=0, description="seconds for the work after the body has arrived")
    in_flight_bytes: int = Field(1 << 29, ge=1, description="bodies held at the same time, per ingress")
    in_flight_pixels: int = Field(1 << 28, ge=1, description="results under way at the same time, per ingress")

    @model_validator(mode="after")
    def _one_request_fits(self) -> ServiceLimits:
        for total, single in (("in_flight_bytes", "body_bytes"), ("in_flight_pixels", "result_pixels")):
            if getattr(self, total) < getattr(self, single):
                raise ValueError(f"{total} must be at least {single}, or the largest request never fits")
        return self


class ServiceOptions(Section):
    """Arguments of the application: `args` of a Serve config, `key=value` of `serve run`."""

    model: str = Field("bicubic", description="name or channel in the store, folder, weights file, or bicubic")
    store: str | None = Field(None, description="root of the model store; default: that of the user")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    precision: Precision = Field("auto", description="of the device; 16-bit pictures always run in float32")
    tile: int | None = Field(None, ge=16, description="tile side in input pixels; default: what fits")
    cpus: float | None = Field(
        None, gt=0, description="cores and threads of a replica; default: a share of the machine's"
    )
    gpus: float | None = Field(
        None, ge=0, description="GPUs of a replica, fractions allowed; default: one where there is one"
    )
    min_replicas: int = Field(1, ge=1, description="generator replicas at rest")
    max_replicas: int = Field(1, ge=1, description="generator replicas under load")
    requests_per_replica: int = Field(4, ge=1, description="requests sent to a generator replica at once")
    limits: ServiceLimits = ServiceLimits()

    @model_validator(mode="after")
    def _replicas_in_order(self) -> ServiceOptions:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        return self
