"""A client of the service in a few functions, on the standard library alone.

answer = upscale("http://127.0.0.1:8000", "small.png", scale=4)
Path("large.png").write_bytes(answer.data)
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

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
    path = f"/v1/upscale?{urlencode(options)}"
    data, headers = _exchange(url, "POST", path, _bytes_of(picture), timeout_s)
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
    data, _ = _exchange(url, "GET", path, None, timeout_s)
    answer: dict[str, Any] = json.loads(data)
    return answer


def _bytes_of(picture: bytes | str | os.PathLike[str]) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise InputError(f"{os.fspath(picture)}: {error.strerror or error}") from None


def _exchange(url: str, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[bytes, HTTPMessage]:
    prefix = urlsplit(url).path.rstrip("/")
    try:
        with closing(_connection(url, timeout_s)) as connection:
            _send(connection, method, prefix + path, body)
            response = connection.getresponse()
            data = response.read()
    except (OSError, HTTPException) as error:
        raise ClusterError(f"{url}: no answer from the service ({error}); is it running?") from None
    if response.status != 200:
        raise _service_error(response, data)
    return data, response.headers


def _connection(url: str, timeout_s: float) -> HTTPConnection:
    base = urlsplit(url)
    kinds = {"http": HTTPConnection, "https": HTTPSConnection}
    try:
        if base.scheme in kinds and base.hostname:
            return kinds[base.scheme](base.hostname, base.port, timeout=timeout_s)
    except ValueError:  # the port is not a number
        pass
    raise ClusterError(f"{url}: the address of a service looks like http://HOST:PORT")


def _send(connection: HTTPConnection, method: str, path: str, body: bytes | None) -> None:
    """Sends the request. A service that refuses a body early may stop reading it: its answer says why."""
    try:
        connection.request(method, path, body, {"Content-Type": "application/octet-stream"} if body else {})
    except (BrokenPipeError, ConnectionResetError):
        if connection.sock is None:
            raise


def _service_error(response: HTTPResponse, body: bytes) -> ServiceError:
    if response.headers.get_content_type() != "application/problem+json":
        return ServiceError(response.status, "unknown", body.decode("utf-8", "replace")[:200], {})
    problem = json.loads(body)
    kind = problem["type"].rsplit("/", 1)[-1]
    return ServiceError(response.status, kind, problem["detail"], problem)


def _seconds(server_timing: str) -> dict[str, float]:
    """`name;dur=MILLISECONDS, …` as seconds by name."""
    stages = (entry.strip().partition(";dur=") for entry in server_timing.split(",") if ";dur=" in entry)
    return {name: float(duration) / 1000 for name, _, duration in stages}
