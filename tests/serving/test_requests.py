"""What requests ask for: forms, JSON and the header Accept."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from ray_sr.serving.admission import Budget
from ray_sr.serving.options import ServiceLimits, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.requests import MOST_PARTS, AcceptedResponse, accepted_response_of, read_picture

NOTHING = UpscaleQuery()
LIMITS = ServiceLimits(body_bytes=1 << 22)
IMAGE = b"\x89PNG\r\n\x1a\n\r\n--not the boundary\r\n\x00\xff" * 3


def picture_in(body: bytes, content_type: str, query: UpscaleQuery, chunk: int = 7) -> tuple[bytes, UpscaleQuery]:
    """What is read of a request whose body comes in chunks; the bytes that were leased are those of the body."""
    chunks = iter([body[start : start + chunk] for start in range(0, len(body), chunk)])

    async def receive() -> Message:
        part = next(chunks, None)
        return {"type": "http.request", "body": part or b"", "more_body": part is not None}

    async def read() -> tuple[bytes, UpscaleQuery]:
        budget = Budget(1 << 24, "bytes")
        with budget.lease() as lease:
            found = await read_picture(Request(scope, receive), query, LIMITS, lease)
            assert budget.taken == len(body)
        return found

    headers = [(b"content-type", content_type.encode("latin-1"))]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "headers": headers}
    return asyncio.run(read())


def form(files: list[tuple[str, bytes]], fields: dict[str, str] | None = None) -> tuple[bytes, str]:
    """Body and Content-Type as an independent client makes them."""
    request = httpx.Request(
        "POST", "http://test", data=fields or {}, files=[("image", (name, data)) for name, data in files]
    )
    return request.read(), request.headers["content-type"]


def refused(body: bytes, content_type: str, query: UpscaleQuery = NOTHING) -> Problem:
    with pytest.raises(Problem) as caught:
        picture_in(body, content_type, query, 1 << 12)
    return caught.value


def test_form_as_a_browser_sends_it() -> None:
    body, content_type = form([("../../etc/x.png", IMAGE)], {"scale": "2.5", "format": "webp", "lossless": "true"})
    data, query = picture_in(body, content_type, UpscaleQuery(quality=7))
    assert data == IMAGE
    assert query == UpscaleQuery(quality=7, scale=2.5, format="webp", lossless=True)


def test_form_is_read_alike_however_it_is_cut_into_chunks() -> None:
    body, content_type = form([("x.png", IMAGE)], {"scale": "2"})
    for chunk in (1, 2, 13, 64, len(body)):
        assert picture_in(body, content_type, NOTHING, chunk) == (IMAGE, UpscaleQuery(scale=2))


def test_file_over_a_megabyte_and_an_option_sent_as_a_file() -> None:
    large = random.Random(1).randbytes((1 << 20) + 17)
    body, content_type = form([("x.png", large)])
    assert picture_in(body, content_type, NOTHING, 1 << 16) == (large, NOTHING)
    as_file = httpx.Request("POST", "http://test", files=[("image", ("a", IMAGE)), ("scale", ("s.txt", b"2"))])
    found = picture_in(as_file.read(), as_file.headers["content-type"], NOTHING)
    assert found == (IMAGE, UpscaleQuery(scale=2))


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "punycode", "undefined", "zip", "none-such", ""])
def test_charset_of_a_form_means_nothing(charset: str) -> None:
    body, content_type = form([("x.png", IMAGE)], {"scale": "2"})
    found = picture_in(body, f"{content_type}; charset={charset}", NOTHING)
    assert found == (IMAGE, UpscaleQuery(scale=2))


def test_damaged_forms_are_refused_or_read_and_never_fail_otherwise() -> None:
    body, content_type = form([("x.png", IMAGE)], {"scale": "2", "format": "webp"})
    rng, refusals = random.Random(5), set()
    for _ in range(300):
        damaged = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(damaged))
            damaged[place : place + rng.randint(0, 3)] = rng.choice(
                [b"", b"\r\n", b"--", b'"', b";", b"\0", b"\xff"]
            )
        try:
            picture_in(bytes(damaged), content_type, NOTHING, 50)
        except Problem as problem:
            refusals.add(problem.kind)
    assert refusals == {"bad-request", "invalid-parameter"}


def test_json_with_base64_or_a_data_address() -> None:
    text = base64.b64encode(IMAGE).decode()
    for image in (text, f"data:image/png;base64,{text}"):
        body = json.dumps({"image": image, "scale": 2}).encode()
        assert picture_in(body, "application/json; charset=utf-8", NOTHING) == (IMAGE, UpscaleQuery(scale=2))


def test_any_other_body_is_the_picture() -> None:
    for content_type in ("", "image/png", "application/octet-stream", "nonsense"):
        assert picture_in(IMAGE, content_type, NOTHING) == (IMAGE, NOTHING)


def broken_forms() -> dict[str, tuple[bytes, str, str]]:
    body, content_type = form([("a.png", IMAGE)])
    boundary = content_type.partition("boundary=")[2]
    two, two_type = form([("a", IMAGE), ("b", IMAGE)])
    none, none_type = form([("a", IMAGE)])
    text = f'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n{"A" * 9}\r\n--x--\r\n'.encode()
    many = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * (MOST_PARTS + 2) + b"--x--"
    headless = b"--x\r\nbody\r\n--x--\r\n"
    nameless = b"--x\r\nContent-Type: text/plain\r\n\r\nbody\r\n--x--\r\n"
    of_x = "multipart/form-data; boundary=x"
    return {
        "no boundary": (body, "multipart/form-data", "bad-request"),
        "another boundary": (body, "multipart/form-data; boundary=other", "bad-request"),
        "boundary of 300 characters": (body, f"multipart/form-data; boundary={'x' * 300}", "bad-request"),
        "empty": (b"", content_type, "bad-request"),
        "endless part head": (b"--x\r\nX: " + b"y" * 100_000, of_x, "bad-request"),
        "text over a megabyte": (text.replace(b"A" * 9, b"A" * (1 << 21)), of_x, "invalid-parameter"),
        "over the limit": (text.replace(b"A" * 9, b"A" * (1 << 22)), of_x, "payload-too-large"),
        "cut": (body[: len(body) - len(boundary) - 4], content_type, "bad-request"),
        "no part head": (headless, of_x, "bad-request"),
        "no part name": (nameless, of_x, "bad-request"),
        "two pictures": (two, two_type, "invalid-parameter"),
        "no picture": (none.replace(b'"image"', b'"photo"'), none_type, "invalid-parameter"),
        "picture as text": (text, of_x, "invalid-parameter"),
        "too many parts": (many, of_x, "payload-too-large"),
        "option twice": (b'--x\r\nContent-Disposition: form-data; name="scale"\r\n\r\n2\r\n' * 2 + b"--x--", of_x,
                         "invalid-parameter"),
    }  # fmt: skip


@pytest.mark.parametrize("name", broken_forms())
def test_broken_forms(name: str) -> None:
    body, content_type, kind = broken_forms()[name]
    assert refused(body, content_type).kind == kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "bad-request"),
        (b"\xff\xfe", "bad-request"),
        (b"[" * 100_000, "bad-request"),
        (b"[1]", "bad-request"),
        (b"{}", "invalid-parameter"),
        (b'{"image": 3}', "invalid-parameter"),
        (b'{"image": "***"}', "invalid-parameter"),
        (b'{"image": "\xc3\xa4"}', "invalid-parameter"),
        (b'{"image": "data:image/png,abc"}', "invalid-parameter"),
        (b'{"image": "AAAA", "url": "http://169.254.169.254"}', "invalid-parameter"),
        (b'{"image": "AAAA", "scale": NaN}', "invalid-parameter"),
        (b'{"image": "AAAA", "scale": "4x"}', "invalid-parameter"),
    ],
)
def test_broken_json(body: bytes, kind: str) -> None:
    assert refused(body, "application/json").kind == kind


def test_option_in_address_and_body() -> None:
    body = json.dumps({"image": "AAAA", "scale": 2}).encode()
    assert "scale" in refused(body, "application/json", UpscaleQuery(scale=3)).detail


@pytest.mark.parametrize(
    ("accept", "wish"),
    [
        ("", AcceptedResponse(None)),
        ("*/*", AcceptedResponse(None)),
        ("image/*", AcceptedResponse(None)),
        ("image/webp", AcceptedResponse("webp")),
        ("image/gif, image/webp;q=0.3, image/jpeg;q=0.5", AcceptedResponse("jpeg")),
        ("text/html, image/avif, */*;q=0.8", AcceptedResponse(None)),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", AcceptedResponse(None)),
        ("application/json, text/plain, */*", AcceptedResponse(None)),
        ("application/json, */*;q=0.5", AcceptedResponse(None, as_json=True)),
        ("image/webp, */*", AcceptedResponse("webp")),
        ("IMAGE/PNG ; q=1.0", AcceptedResponse("png")),
        ("application/json", AcceptedResponse(None, as_json=True)),
        ("image/png;q=0, application/json;q=0.1", AcceptedResponse(None, as_json=True)),
        ("image/webp;q=nonsense, image/png", AcceptedResponse("png")),
    ],
)
def test_accept_chooses_the_answer(accept: str, wish: AcceptedResponse) -> None:
    assert accepted_response_of(accept, NOTHING) == wish


@pytest.mark.parametrize("accept", ["image/gif", "text/html", "image/png;q=0", "nonsense"])
def test_accept_that_cannot_be_met(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        accepted_response_of(accept, NOTHING)
    assert caught.value.status == 406
    assert accepted_response_of(accept, UpscaleQuery(format="png")) == AcceptedResponse(None), (
        "the option comes first"
    )
