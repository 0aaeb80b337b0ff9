"""Typed options of the service: of one request, of its limits, and of the whole application."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ray_sr.images import at_hand

Format = Literal["png", "jpeg", "webp", "tiff", "avif", "jxl"]  # of answers
InputFormat = Literal["png", "jpeg", "webp", "tiff", "avif", "heif", "jxl"]
Metadata = Literal["keep", "copyright", "none"]
Precision = Literal["auto", "float32", "bf16"]


class Section(BaseModel):
    """Base of all option groups: unknown keys are refused and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UpscaleQuery(Section):
    """What a client can ask of one picture."""

    model: str | None = Field(
        None, max_length=200, description="one of /v1/models: its id, name or name@version; default: the first"
    )
    scale: float | None = Field(
        None, ge=1, le=8, description="enlargement, at most that of the model; default: that of the model"
    )
    denoise: float | None = Field(
        None, ge=0, le=1, description="share of a cleaning model that is blended in; for models that say so"
    )
    format: Literal["png", "jpeg", "webp", "tiff", "avif", "jxl", "same"] | None = Field(
        None, description="picture format of the answer, or that of the picture; default: by Accept, else png"
    )

    quality: int = Field(95, ge=1, le=100, description="quality of jpeg, webp, avif and jxl")
    lossless: bool = Field(False, description="webp, avif and jxl without loss")
    background: str = Field(
        "ffffff", pattern="^[0-9a-fA-F]{6}$", description="RRGGBB under transparent pixels, for jpeg"
    )
    metadata: Metadata = Field("keep", description="EXIF and XMP: all, only artist and copyright, or none")

    @field_validator("format", mode="before")
    @classmethod
    def _usual_suffixes(cls, format: object) -> object:
        return {"jpg": "jpeg", "tif": "tiff"}.get(format, format) if isinstance(format, str) else format


class JobQuery(UpscaleQuery):
    """What a client can ask of a job."""

    webhook: str | None = Field(
        None, max_length=2000, description="address that is told when the job has ended, of an allowed origin"
    )

    def of_picture(self) -> UpscaleQuery:
        """The part that is about the picture."""
        return UpscaleQuery(**self.model_dump(exclude={"webhook"}, exclude_unset=True))


class JobLimits(Section):
    """What jobs may take, all together. Their pictures and results are kept in the storage of `jobs`."""

    input_pixels: int = Field(1 << 24, ge=1, description="largest picture, width x height")
    result_pixels: int = Field(1 << 28, ge=1, description="largest picture that the network makes")
    deadline_s: float = Field(3600, gt=0, description="seconds for the work, counted from its start")
    kept_s: float = Field(3600, gt=0, description="seconds for which a result is kept")
    running: int = Field(1, ge=1, description="jobs worked on at the same time")
    waiting: int = Field(16, ge=1, description="jobs queued or running")
    kept: int = Field(256, ge=1, description="jobs known, finished ones included")
    bytes: int = Field(4 << 30, ge=1, description="pictures and results of jobs in storage")
    lease_s: float = Field(
        10, ge=0.5, description="seconds after which the next process restarts the jobs of a lost one"
    )

    @model_validator(mode="after")
    def _waiting_are_kept(self) -> JobLimits:
        if self.kept < self.waiting:
            raise ValueError(f"kept {self.kept} is below waiting {self.waiting}")
        return self


def _read_by_default() -> tuple[InputFormat, ...]:
    usual: tuple[InputFormat, ...] = ("png", "jpeg", "webp", "avif", "heif", "jxl")
    return tuple(name for name in usual if at_hand([name]))


class ServiceLimits(Section):
    """What the service accepts. Everything a client should know before it sends a picture."""

    formats: tuple[InputFormat, ...] = Field(
        default_factory=_read_by_default,
        min_length=1,
        description="accepted picture formats, by their first bytes; heif (HEIC) and jxl need the extra `formats`",
    )
    body_bytes: int = Field(32 << 20, ge=1, description="largest request body")
    input_pixels: int = Field(1 << 22, ge=1, description="largest picture, width x height")
    result_pixels: int = Field(1 << 26, ge=1, description="largest picture that the network makes, width x height")
    side: int = Field(16384, ge=1, description="longest side of a picture")
    jpeg_scans: int = Field(64, ge=1, description="maximum number of scans of a JPEG")
    decode_cpu_s: float = Field(10, gt=0, description="CPU seconds to decode 4 megapixels")
    body_deadline_s: float = Field(30, gt=0, description="seconds in which the body must arrive")
    request_deadline_s: float = Field(60, gt=0, description="seconds for the work after the body has arrived")
    in_flight_bytes: int = Field(1 << 29, ge=1, description="bodies held at the same time, by all ingress replicas")
    in_flight_pixels: int = Field(
        1 << 28, ge=1, description="results under way at the same time, by all ingress replicas"
    )
    queue_s: float = Field(
        20, gt=0, description="longest predicted wait of a picture in seconds; else it is refused"
    )
    jobs: JobLimits = Field(JobLimits(), description="what jobs may take instead")

    @field_validator("formats")
    @classmethod
    def _can_be_read(cls, formats: tuple[InputFormat, ...]) -> tuple[InputFormat, ...]:
        if missing := set(formats) - set(at_hand(formats)):
            raise ValueError(f"{', '.join(sorted(missing))} needs the extra: pip install 'ray-sr[formats]'")
        return formats

    @model_validator(mode="after")
    def _one_request_fits(self) -> ServiceLimits:
        for total, single in (("in_flight_bytes", "body_bytes"), ("in_flight_pixels", "result_pixels")):
            if getattr(self, total) < getattr(self, single):
                raise ValueError(f"{total} must be at least {single}, or the largest request never fits")
        return self

    def share(self, ingresses: int) -> ServiceLimits:
        """What one of so many ingress replicas may have under way: at least one request."""
        shares = {
            "in_flight_bytes": max(self.body_bytes, self.in_flight_bytes // ingresses),
            "in_flight_pixels": max(self.result_pixels, self.in_flight_pixels // ingresses),
        }
        return self.model_copy(update=shares)

    def of_jobs(self) -> ServiceLimits:
        """The same limits with the larger pictures that jobs may have."""
        larger = {"input_pixels": self.jobs.input_pixels, "result_pixels": self.jobs.result_pixels}
        return self.model_copy(update=larger)


class ServiceOptions(Section):
    """Arguments of the application: `args` of a Serve config, `key=value` of `serve run`."""

    model: str = Field("bicubic", description="name or channel in the store, folder, weights file, or bicubic")
    further_models: tuple[str, ...] = Field((), description="models served beside it, each by its own replicas")
    all_models: bool = Field(
        False, description="offer every model of the store and those of ray-sr, loaded when first asked for"
    )
    models_bytes: int = Field(
        1 << 29,
        ge=1,
        description="bytes of weights that a replica keeps; beyond it the least recently used are dropped",
    )
    store: str | None = Field(None, description="root of the model store; default: that of the user")
    follow_s: float = Field(5, gt=0, description="seconds between checks of the store for newly promoted models")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N")
    precision: Precision = Field("auto", description="of the device; 16-bit pictures always run in float32")
    tile: int | None = Field(None, ge=16, description="tile side in input pixels; default: what fits")
    cpus: float | None = Field(None, gt=0, description="cores of a replica; default: a share of the machine's")
    threads: int | None = Field(
        None, ge=1, description="threads of a replica's network; default: its cpus, or its share of all cores"
    )
    gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of a replica, fractions allowed; default: one, or an equal share of fewer",
    )
    batch_tiles: int | None = Field(
        None, ge=1, description="tiles of several pictures that run at once; default: 16 on a GPU, else 1"
    )
    min_replicas: int = Field(1, ge=1, description="generator replicas of each model when idle")
    max_replicas: int = Field(1, ge=1, description="generator replicas of each model under load")
    requests_per_replica: int = Field(4, ge=1, description="requests sent to a generator replica at once")
    upscale_delay_s: float = Field(5, ge=0, description="seconds of load before another replica is started")
    downscale_delay_s: float = Field(120, ge=0, description="seconds without load before one is stopped")
    ingress_replicas: int = Field(1, ge=1, description="HTTP ingress processes when idle")
    max_ingress_replicas: int | None = Field(None, ge=1, description="the same under load; default: as when idle")
    codec_processes: int | None = Field(
        None, ge=1, description="codec processes per ingress replica; default: one per core, up to 32"
    )
    cors_origins: tuple[str, ...] = Field(
        (), description="pages of other origins that may use the service, e.g. https://example.org, or *"
    )
    webhook_origins: tuple[str, ...] = Field(
        (),
        description="origins that webhooks may be sent to, e.g. https://hooks.example.org; default: none",
    )
    webhook_secret: str | None = Field(None, description="file with the secret that signs what is sent there")
    jobs: str | None = Field(
        None, description="folder or bucket of the jobs; all nodes must reach it; default: below the user's folder"
    )
    keys: str | None = Field(None, description="file of API keys, see `ray-sr keys`; default: nobody needs one")
    access_log: str | None = Field(None, description="file that gets a JSON line for each request")
    limits: ServiceLimits = ServiceLimits()

    @model_validator(mode="after")
    def _replicas_in_order(self) -> ServiceOptions:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}")
        if self.most_ingresses < self.ingress_replicas:
            raise ValueError(f"max_ingress_replicas {self.max_ingress_replicas} is below {self.ingress_replicas}")
        if self.webhook_origins and not self.webhook_secret:
            raise ValueError("webhook_origins need webhook_secret: a receiver must be able to tell who sent it")
        if self.all_models and self.further_models:
            raise ValueError("all_models has no further_models: it offers them all")
        if self.all_models and "/" in self.model:
            raise ValueError("all_models has a model of the store as its default, no file or folder")
        if len(set(self.model_ids)) < len(self.models):
            raise ValueError(f"models must have names of their own, not {', '.join(self.model_ids)}")
        return self

    @property
    def most_ingresses(self) -> int:
        """Ingress replicas under load."""
        return self.max_ingress_replicas or self.ingress_replicas

    @property
    def models(self) -> tuple[str, ...]:
        """All models, the default first."""
        return (self.model, *self.further_models)

    @property
    def model_ids(self) -> tuple[str, ...]:
        """What clients call the models: as they are given, files and folders without their path."""
        return tuple(PurePath(model).stem if "/" in model else model for model in self.models)
