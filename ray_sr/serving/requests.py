"""What a request asks for: its body in one of three forms, its options, the kind of answer it accepts."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from email.message import Message
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from ray_sr.serving.admission import Lease
from ray_sr.serving.options import Format, ServiceLimits, UpscaleQuery
from ray_sr.serving.problems import Problem, invalid_parameters

Query = TypeVar("Query", bound=UpscaleQuery)

MOST_PARTS = 50
_BROKEN = "the multipart body is broken"


async def read_picture(request: Request, query: Query, limits: ServiceLimits, lease: Lease) -> tuple[bytes, Query]:
    """The picture's bytes, and the query with the options of the body added. `lease` takes every byte that comes.

    A body is `multipart/form-data`, a JSON object whose `image` is base64, or else the picture itself.
    Raises Problem as soon as it is too large: before reading where that is announced.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        _check_length(int(announced), limits)
    header = Message()
    header["Content-Type"] = request.headers.get("content-type", "")
    stream = _counted(request, limits, lease)
    try:
        async with asyncio.timeout(limits.body_deadline_s):
            if header.get_content_type() == "multipart/form-data":
                picture, options = await _from_form(stream, header, limits)
                return picture, _with_options(query, options)
            body = b"".join([chunk async for chunk in stream])
    except TimeoutError:
        late = f"the body did not arrive within {limits.body_deadline_s:g} s"
        raise Problem("request-timeout", late, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise Problem("bad-request", "the body ended before its announced length") from None
    if not body:
        raise Problem("bad-request", "the body is empty; it must be the bytes of a picture")
    if header.get_content_type() == "application/json":
        picture, options = await run_in_threadpool(_from_json, body)
        return picture, _with_options(query, options)
    return body, query


async def _counted(request: Request, limits: ServiceLimits, lease: Lease) -> AsyncGenerator[bytes, None]:
    """The chunks of the body, each counted before anything is done with it."""
    length = 0
    async for chunk in request.stream():
        lease.add(len(chunk))
        length += len(chunk)
        _check_length(length, limits)
        yield chunk


def _check_length(length: int, limits: ServiceLimits) -> None:
    if length > limits.body_bytes:
        detail = f"the body is over the limit of {limits.body_bytes} bytes"
        raise Problem("payload-too-large", detail, limit=limits.body_bytes, actual=length)


# The body ------------------------------------------------------------------------------------------------


def _with_options(query: Query, options: dict[str, Any]) -> Query:
    given = query.model_dump(exclude_unset=True)
    if both := sorted(given.keys() & options.keys()):
        raise _refused(both[0], "given in the address and in the body")
    try:
        return type(query).model_validate(given | options)
    except ValidationError as error:
        raise invalid_parameters(error.errors(), type(query).model_fields) from None


def _from_json(body: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem("bad-request", "the body is not JSON, which its Content-Type says") from None
    if not isinstance(found, dict):
        raise Problem("bad-request", 'the JSON body must be an object: {"image": "<base64>", …}')
    image = found.pop("image", None)
    if not isinstance(image, str):
        raise _refused("image", "the picture in base64 is missing")
    if image.startswith("data:"):
        head, _, image = image.partition(",")
        if not head.endswith(";base64"):
            raise _refused("image", "a data: address must be base64")
    try:
        return base64.b64decode("".join(image.split()), validate=True), found  # MIME breaks it into lines
    except (binascii.Error, ValueError):
        raise _refused("image", "not base64") from None


async def _from_form(
    stream: AsyncGenerator[bytes, None], header: Message, limits: ServiceLimits
) -> tuple[bytes, dict[str, Any]]:
    """The one file named image, and the text of every other part by its name."""
    pictures: list[bytes] = []
    options: dict[str, Any] = {}
    for name, value in (await _parsed(stream, header, limits)).multi_items():
        content = await value.read() if isinstance(value, UploadFile) else value
        if name == "image":
            if isinstance(content, str):
                raise _refused("image", "must be a file, not text")
            pictures.append(content)
        elif name in options:
            raise _refused(name, "given more than once")
        else:
            options[name] = content if isinstance(content, str) else content.decode("utf-8", "replace")
    if len(pictures) != 1:
        raise _refused("image", f"the form must have one file of this name, not {len(pictures)}")
    return pictures[0], options


async def _parsed(stream: AsyncGenerator[bytes, None], header: Message, limits: ServiceLimits) -> FormData:
    header.del_param("charset")  # it is none of this media type, and names any codec that Python has
    parser = _FormParser(Headers({"content-type": header["Content-Type"]}), stream, max_part_size=limits.body_bytes)
    parser.spool_max_size = limits.body_bytes  # what has come is counted as memory: it does not go to a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem("bad-request", f"{_BROKEN}: {error.message}") from None
    if not parser.ended:
        raise Problem("bad-request", f"{_BROKEN}: its last boundary is missing")
    return form


class _FormParser(MultiPartParser):
    """Starlette's parser, which also counts parts and knows whether the form came to its end."""

    parts = 0
    ended = False

    def on_part_begin(self) -> None:
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise Problem("payload-too-large", f"the form has more than {MOST_PARTS} parts", limit=MOST_PARTS)
        super().on_part_begin()

    def on_end(self) -> None:
        self.ended = True
        super().on_end()


def _refused(parameter: str, detail: str) -> Problem:
    errors = [{"parameter": parameter, "detail": detail}]
    return Problem("invalid-parameter", f"{parameter}: {detail}", errors=errors)


# The answer ----------------------------------------------------------------------------------------------

_TYPES: dict[str, Format] = {f"image/{name}": name for name in get_args(Format)}
_JSON = "application/json"


@dataclass(frozen=True)
class AcceptedResponse:
    """The format that Accept asks for, None where it leaves that open, and whether to put it into JSON."""

    format: Format | None
    as_json: bool = False


def accepted_response_of(accept: str, query: UpscaleQuery) -> AcceptedResponse:
    """What the header Accept asks for (RFC 9110, section 12.5.1); an explicit option `format` comes first.

    Raises Problem (not-acceptable).
    """
    weights = _media_ranges(accept or "*/*")
    anything = max(weights.get("*/*", 0), weights.get("image/*", 0))
    if anything and "text/html" in weights:
        return AcceptedResponse(None)  # a browser's form says what it can show, not what it wants to have
    for wanted, weight in weights.items():
        if wanted in ("*/*", "image/*"):
            return AcceptedResponse(None)
        if wanted in _TYPES:
            return AcceptedResponse(_TYPES[wanted])
        # Libraries ask for JSON or anything, by default: they get the picture.
        if wanted in (_JSON, "application/*") and weight > anything:
            return AcceptedResponse(None, as_json=True)
    if query.format:
        return AcceptedResponse(None)
    raise Problem("not-acceptable", f"Accept must allow one of {', '.join([*_TYPES, _JSON])}")


def _media_ranges(accept: str) -> dict[str, float]:
    """The media ranges that are accepted with their weights, the most wanted first."""
    weighted = []
    for entry in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in entry.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weighted.append((float(weight), kind))
        except ValueError:
            continue  # a weight that is none: as if it had not been there
    return {kind: weight for weight, kind in sorted(weighted, key=lambda one: -one[0]) if weight > 0}
