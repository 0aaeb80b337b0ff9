"""What travels between ingress, generator replicas and clients. Importing it costs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_sr.images import Photo
from ray_sr.recipes.purpose import Purpose

JOB_OWNER = "JobOwner"  # the deployment that owns the jobs
JobState = Literal["queued", "running", "succeeded", "failed", "canceled"]


class ModelInfo(BaseModel):
    """The model that a replica holds. `version` is the start of the SHA-256 of its weights."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    scale: int
    purpose: Purpose = Field("other", description="what the model is for, as its card tells")
    description: str = Field("", description="of the recipe that it was trained by")
    denoise: bool = Field(False, description="whether it takes the option `denoise`")

    @property
    def tag(self) -> str:
        """`name@version`, as in the header RaySR-Model."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Permit:
    """What a generator replica asks the owner of the jobs by, while it works on one: see `JobTable.permits`."""

    job: str
    run: str
    lease_s: float


@dataclass(frozen=True)
class ModelChoice:
    """Which model a replica is to use: `tag` where it holds many, and the share of the cleaning model."""

    tag: str | None = None
    denoise: float | None = None


@dataclass(frozen=True, eq=False)
class Upscaled:
    """An upscaled photo, the model that made it, the seconds on the device, and those that loading it took."""

    photo: Photo
    model: ModelInfo
    seconds: float
    load_s: float = 0.0


class Abandoned(Exception):
    """The work on a picture was given up: nobody waits for it any more, or it is not permitted any more."""


class ScaleChanged(Exception):
    """The replica's network enlarges other than the caller was told: ask it again what it holds."""


class ServedModel(ModelInfo):
    """One entry of /v1/models."""

    id: str = Field(description="what the option `model` takes: a channel, a name or name@version")


class Models(BaseModel):
    """Answer of /v1/models."""

    models: list[ServedModel] = Field(description="the first is the one that is used where none is named")


class Status(BaseModel):
    """Answer of the health addresses."""

    status: str


class ProblemDocument(BaseModel):
    """Every answer other than success (RFC 9457, application/problem+json)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="address under which the kind of problem is explained")
    title: str
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong with this request, one line")
    instance: str = Field("", description="the request id, as in X-Request-Id")
    errors: list[dict[str, Any]] | None = Field(None, description="one {parameter, detail} for each wrong option")
    limit: int | None = Field(None, description="the limit that was passed, in bytes or pixels")
    actual: int | None = Field(None, description="what the request had instead")
    retry_after: int | None = Field(None, description="seconds after which to try again, as in Retry-After")


class UpscaledPicture(BaseModel):
    """Answer of /v1/upscale to `Accept: application/json`."""

    image: str = Field(description="the bytes of the picture in base64")
    format: str
    width: int
    height: int
    scale: float
    model: str = Field(description="name@version")
    timings: dict[str, float] = Field(description="seconds of each stage")
    warnings: list[str]


class JobStatus(BaseModel):
    """A job as POST /v1/jobs and GET /v1/jobs/{id} show it, and as the data of each event."""

    id: str
    status: JobState
    progress: float = Field(ge=0, le=1, description="share of the tiles that are done")
    created_at: datetime
    expires_at: datetime = Field(description="from when on neither the job nor its result is known any more")
    result_url: str | None = Field(None, description="where the picture is, once succeeded")
    error: ProblemDocument | None = Field(None, description="why it failed")
