"""A client of the service in a few functions, on the standard library alone.

answer = upscale("http://127.0.0.1:8000", "small.png", scale=4)
Path("large.png").write_bytes(answer.data)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from ray_sr.errors import ClusterError, InputError

Format = Literal["png", "jpeg", "webp", "tiff"]
Metadata = Literal["keep", "copyright", "none"]


class ServiceError(ClusterError):
    """The service refused or failed. `kind` ends the problem's type, `problem` is the whole document."""

    def __init__(self, status: int, kind: str, detail: str, problem: Mapping[str, Any]) -> None:
        super().__init__(f"the service answered {status} ({kind}): {detail}")
        self.status = status
        self.kind = kind
        self.problem = problem


@dataclass(frozen=True)
class Answer:
    """An upscaled picture. `seconds` of each stage; `warnings` name what was changed or lost."""

    data: bytes
    media_type: str
    model: str
    scale: float
    warnings: tuple[str, ...]
    seconds: Mapping[str, float]
    request_id: str


@dataclass(frozen=True)
class ServedModel:
    """A model that the service holds; `version` is the start of the SHA-256 of its weights."""

    name: str
    version: str
    scale: int


def upscale(
    url: str,
    picture: bytes | str | os.PathLike[str],
    *,
    scale: float | None = None,
    format: Format = "png",
    quality: int = 95,
    metadata: Metadata = "keep",
    timeout_s: float = 120,
) -> Answer:
    """The picture (encoded bytes or a file), upscaled by the service at `url`.

    Raises InputError where the file cannot be read, ServiceError for an answer other than success and
    ClusterError where there is none.
    """
    options: dict[str, object] = {"format": format, "quality": quality, "metadata": metadata}
    if scale is not None:
        options["scale"] = scale
    address = f"{url.rstrip('/')}/v1/upscale?{urlencode(options)}"
    request = Request(address, _bytes_of(picture), {"Content-Type": "application/octet-stream"}, method="POST")
    data, headers = _open(request, timeout_s)
    return Answer(
        data=data,
        media_type=headers.get_content_type(),
        model=headers.get("RaySR-Model", ""),
        scale=float(headers.get("RaySR-Scale", "nan")),
        warnings=tuple(headers.get("RaySR-Warnings", "").replace(",", " ").split()),
        seconds=_seconds(headers.get("Server-Timing", "")),
        request_id=headers.get("X-Request-Id", ""),
    )


def models(url: str, *, timeout_s: float = 10) -> list[ServedModel]:
    """The models that the service holds. Raises ServiceError and ClusterError."""
    found = _get(url, "/v1/models", timeout_s)["models"]
    return [ServedModel(one["name"], one["version"], one["scale"]) for one in found]


def limits(url: str, *, timeout_s: float = 10) -> Mapping[str, Any]:
    """What the service accepts, by name. Raises ServiceError and ClusterError."""
    return _get(url, "/v1/limits", timeout_s)


def is_ready(url: str, *, timeout_s: float = 10) -> bool:
    """Whether the service answers and has loaded its model."""
    try:
        _get(url, "/readyz", timeout_s)
    except ClusterError:
        return False
    return True


def _get(url: str, path: str, timeout_s: float) -> dict[str, Any]:
    data, _ = _open(Request(url.rstrip("/") + path), timeout_s)
    answer: dict[str, Any] = json.loads(data)
    return answer


def _bytes_of(picture: bytes | str | os.PathLike[str]) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise InputError(f"{os.fspath(picture)}: {error.strerror or error}") from None


def _open(request: Request, timeout_s: float) -> tuple[bytes, Message]:
    if not request.full_url.startswith(("http://", "https://")):
        raise ClusterError(f"{request.full_url}: the address of a service begins with http:// or https://")
    try:
        with urlopen(request, timeout=timeout_s) as response:
            return response.read(), response.headers
    except HTTPError as error:
        raise _service_error(error) from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ClusterError(f"{request.host}: no answer from the service ({reason}); is it running?") from None


def _service_error(error: HTTPError) -> ServiceError:
    with error:
        body = error.read()
    if error.headers.get_content_type() != "application/problem+json":
        return ServiceError(error.code, "unknown", body.decode("utf-8", "replace")[:200], {})
    problem = json.loads(body)
    kind = problem["type"].rsplit("/", 1)[-1]
    return ServiceError(error.code, kind, problem["detail"], problem)


def _seconds(server_timing: str) -> dict[str, float]:
    """`name;dur=MILLISECONDS, …` as seconds by name."""
    stages = (entry.strip().partition(";dur=") for entry in server_timing.split(",") if ";dur=" in entry)
    return {name: float(duration) / 1000 for name, _, duration in stages}
