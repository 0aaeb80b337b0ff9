"""A client of the service in a few functions, on the standard library alone.

answer = upscale("http://127.0.0.1:8000", "small.png", scale=4)
Path("large.png").write_bytes(answer.data)

client = Client("https://sr.example.org", key)
job = client.wait(client.begin_job("huge.png", idempotency_key="huge.png").id)
Path("larger.png").write_bytes(client.job_result(job.id).data)

`key` is the API key, where the service asks for one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from ray_sr.errors import ClusterError, InputError

Format = Literal["png", "jpeg", "webp", "tiff", "avif", "jxl", "same"]
Metadata = Literal["keep", "copyright", "none"]

_FIRST_PAUSE_S = 0.05
_LONGER = 1.3  # each pause than the one before: a job is known to have ended after a third of its time more


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
    """A model that the service holds; `version` is the start of the SHA-256 of its weights.

    `id` is what the option `model` takes.
    """

    id: str
    name: str
    version: str
    scale: int


@dataclass(frozen=True)
class Job:
    """A job of the service: queued, running, succeeded, failed or canceled; `progress` in [0, 1].

    `error` is the problem document of a job that failed.
    """

    id: str
    status: str
    progress: float
    error: Mapping[str, Any] | None

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "running")


def upscale(
    url: str,
    picture: bytes | str | os.PathLike[str],
    *,
    model: str | None = None,
    scale: float | None = None,
    format: Format = "png",
    quality: int = 95,
    lossless: bool = False,
    metadata: Metadata = "keep",
    key: str | None = None,
    timeout_s: float = 120,
) -> Answer:
    """The picture (encoded bytes or a file), upscaled by the service at `url`.

    Raises InputError where the file cannot be read, ServiceError for an answer other than success and
    ClusterError where there is none.
    """
    options = _options(
        model=model, scale=scale, format=format, quality=quality, lossless=lossless, metadata=metadata
    )
    call = _Call(url, key, timeout_s)
    return _answer(*call.exchange("POST", f"/v1/upscale?{options}", _bytes_of(picture)))


def begin_job(
    url: str,
    picture: bytes | str | os.PathLike[str],
    *,
    model: str | None = None,
    scale: float | None = None,
    format: Format = "png",
    quality: int = 95,
    lossless: bool = False,
    metadata: Metadata = "keep",
    idempotency_key: str | None = None,
    key: str | None = None,
    timeout_s: float = 120,
) -> Job:
    """Begins to upscale a picture that is too large to wait for. The same idempotency key gives the same job.

    Raises as `upscale` does.
    """
    options = _options(
        model=model, scale=scale, format=format, quality=quality, lossless=lossless, metadata=metadata
    )
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    call = _Call(url, key, timeout_s)
    return _job(call.exchange("POST", f"/v1/jobs?{options}", _bytes_of(picture), headers)[0])


def job(url: str, id: str, *, key: str | None = None, timeout_s: float = 10) -> Job:
    """How far a job is. Raises ServiceError and ClusterError."""
    return _job(_Call(url, key, timeout_s).exchange("GET", f"/v1/jobs/{quote(id, safe='')}")[0])


def job_result(url: str, id: str, *, key: str | None = None, timeout_s: float = 120) -> Answer:
    """The picture of a job that succeeded. Raises ServiceError, also where the job failed, and ClusterError."""
    return _answer(*_Call(url, key, timeout_s).exchange("GET", f"/v1/jobs/{quote(id, safe='')}/result"))


def cancel_job(url: str, id: str, *, key: str | None = None, timeout_s: float = 10) -> Job:
    """Ends a job, or deletes the result of one that has ended. Raises ServiceError and ClusterError."""
    return _job(_Call(url, key, timeout_s).exchange("DELETE", f"/v1/jobs/{quote(id, safe='')}")[0])


@dataclass(frozen=True)
class Client:
    """The same calls on one service: its address and the API key, where it asks for one, are said once."""

    url: str
    key: str | None = None

    def upscale(self, picture: bytes | str | os.PathLike[str], **options: Any) -> Answer:
        """As the function `upscale`."""
        return upscale(self.url, picture, key=self.key, **options)

    def begin_job(self, picture: bytes | str | os.PathLike[str], **options: Any) -> Job:
        """As the function `begin_job`."""
        return begin_job(self.url, picture, key=self.key, **options)

    def job(self, id: str) -> Job:
        """How far a job is."""
        return job(self.url, id, key=self.key)

    def wait(self, id: str, *, timeout_s: float = 3600, pause_s: float = 1.0) -> Job:
        """The job when it has ended, however it did. Asks again where the service is exchanged meanwhile.

        Looks often at first, then less and less, at last every `pause_s` seconds. Raises ServiceError, and
        ClusterError after `timeout_s`.
        """
        end, pause = time.monotonic() + timeout_s, min(_FIRST_PAUSE_S, pause_s)
        while True:
            try:
                found = self.job(id)
            except ServiceError as error:
                if error.status != 503 or time.monotonic() > end:
                    raise
            else:
                if found.ended:
                    return found
                if time.monotonic() > end:
                    raise ClusterError(f"{self.url}: the job {id} is {found.status} after {timeout_s:g} s")
            time.sleep(pause)
            pause = min(_LONGER * pause, pause_s)

    def job_result(self, id: str) -> Answer:
        """The picture of a job that succeeded."""
        return job_result(self.url, id, key=self.key)

    def cancel_job(self, id: str) -> Job:
        """Ends a job, or deletes the result of one that has ended."""
        return cancel_job(self.url, id, key=self.key)

    def models(self) -> list[ServedModel]:
        """The models that the service holds."""
        return models(self.url)

    def limits(self) -> Mapping[str, Any]:
        """What the service accepts, by name."""
        return limits(self.url)

    def is_ready(self) -> bool:
        """Whether the service answers and has loaded its model."""
        return is_ready(self.url)


def _options(**options: Any) -> str:
    return urlencode({name: value for name, value in options.items() if value is not None})


def _answer(data: bytes, headers: HTTPMessage) -> Answer:
    return Answer(
        data=data,
        media_type=headers.get_content_type(),
        model=headers.get("RaySR-Model", ""),
        scale=float(headers.get("RaySR-Scale", "nan")),
        warnings=tuple(headers.get("RaySR-Warnings", "").replace(",", " ").split()),
        seconds=_seconds(headers.get("Server-Timing", "")),
        request_id=headers.get("X-Request-Id", ""),
    )


def _job(data: bytes) -> Job:
    found = json.loads(data)
    return Job(found["id"], found["status"], found["progress"], found["error"])


def models(url: str, *, timeout_s: float = 10) -> list[ServedModel]:
    """The models that the service holds. Raises ServiceError and ClusterError."""
    found = _get(url, "/v1/models", timeout_s)["models"]
    return [ServedModel(one["id"], one["name"], one["version"], one["scale"]) for one in found]


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
    data, _ = _Call(url, None, timeout_s).exchange("GET", path)
    answer: dict[str, Any] = json.loads(data)
    return answer


def _bytes_of(picture: bytes | str | os.PathLike[str]) -> bytes:
    if isinstance(picture, bytes):
        return picture
    try:
        return Path(picture).read_bytes()
    except OSError as error:
        raise InputError(f"{os.fspath(picture)}: {error.strerror or error}") from None


@dataclass(frozen=True)
class _Call:
    """Where a request goes, with which key, and how long its answer may take."""

    url: str
    key: str | None
    timeout_s: float

    def exchange(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[bytes, HTTPMessage]:
        """Body and headers of the answer. Raises ServiceError and ClusterError."""
        prefix = urlsplit(self.url).path.rstrip("/")
        sent = {"Content-Type": "application/octet-stream"} if body else {}
        sent |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            with closing(_connection(self.url, self.timeout_s)) as connection:
                _send(connection, method, prefix + path, body, sent | dict(headers or {}))
                response = connection.getresponse()
                data = response.read()
        except (OSError, HTTPException) as error:
            raise ClusterError(f"{self.url}: no answer from the service ({error}); is it running?") from None
        if response.status not in (200, 202):
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


def _send(
    connection: HTTPConnection, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
) -> None:
    """Sends the request. A service that refuses a body early may stop reading it: its answer says why."""
    try:
        connection.request(method, path, body, dict(headers))
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
