"""Messages about the end of jobs: to allowed origins only, signed as Standard Webhooks are, and sent until taken.

https://www.standardwebhooks.com: the receiver recomputes the signature from the headers `webhook-id` and
`webhook-timestamp` and the body, with the secret that both know.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ray_sr.errors import InputError, RecipeError
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.problems import Problem

logger = logging.getLogger(__name__)

DELAYS_S = (0, 5, 30, 120, 600, 1800)  # before each attempt
_TIMEOUT_S = 10
_PREFIX = "whsec_"

Outcome = Literal["sent", "given up"]


def read_secret(path: str | os.PathLike[str]) -> bytes:
    """The secret in a file: `whsec_` and base64 of 24 to 64 bytes. Raises InputError and RecipeError."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (binascii.Error, ValueError):
        secret = b""
    if not 24 <= len(secret) <= 64:
        made = "python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
        raise RecipeError(f"{path}: must hold whsec_ and 24 to 64 bytes in base64: {made}")
    return secret


def sign(secret: bytes, id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`."""
    digest = hmac.new(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def check_address(url: str, origins: tuple[str, ...]) -> None:
    """Raises Problem (invalid-parameter) for an address whose origin is not one of those that are allowed."""
    if not origins:
        detail = "this service sends no messages; follow the job's events"
    elif origin_of(url) in origins:
        return
    else:
        detail = f"must begin with {' or '.join(origins)}"
    raise Problem("invalid-parameter", f"webhook: {detail}", errors=[{"parameter": "webhook", "detail": detail}])


def origin_of(url: str) -> str:
    """SCHEME://HOST[:PORT] of an address; empty where it has none, or a user's name in it."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}"


class Webhooks:
    """Tells of jobs that have ended. `note` is awaited with the id of a job and what became of its message."""

    def __init__(self, secret: bytes, note: Callable[[str, Outcome], Awaitable[None]]) -> None:
        self._secret = secret
        self._note = note
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def tell(self, record: JobRecord) -> None:
        """Begins to send the message of a job, unless that is under way."""
        if record.webhook is None or record.webhook_state != "due" or record.id in self._tasks:
            return
        task = asyncio.create_task(self._deliver(record))
        self._tasks[record.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(record.id, None))

    def close(self) -> None:
        """Stops; the next owner of the jobs sends what is due."""
        for task in list(self._tasks.values()):
            task.cancel()

    async def _deliver(self, record: JobRecord) -> None:
        assert record.webhook is not None
        body = message_of(record)
        for delay in DELAYS_S:
            await asyncio.sleep(delay)
            status = await asyncio.to_thread(_post, record.webhook, self._secret, record.id, body)
            if 200 <= status < 300:
                await self._note(record.id, "sent")
                return
            logger.warning("the message about the job %s was answered with %s", record.id, status or "nothing")
            if status == 410:  # the receiver wants no more of them
                break
        await self._note(record.id, "given up")


def message_of(record: JobRecord) -> bytes:
    """The body: what happened, and the job as GET /v1/jobs/{id} shows it."""
    message = {
        "type": f"job.{record.state}",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": record.status(record.root).model_dump(mode="json"),
    }
    return json.dumps(message).encode()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could lead to where the operator allows nothing."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


def _post(url: str, secret: bytes, id: str, body: bytes) -> int:
    """The status of the answer; 0 where there is none."""
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "ray-sr",
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(secret, id, timestamp, body),
    }
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, HTTPException):
        return 0
