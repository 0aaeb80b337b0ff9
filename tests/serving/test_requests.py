"""What requests ask for: forms, JSON and the header Accept."""

from __future__ import annotations

import base64
import json

import httpx
import pytest

from ray_sr.serving.options import UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.requests import MOST_PARTS, AcceptedResponse, accepted_response_of, picture_in

NOTHING = UpscaleQuery()
IMAGE = b"\x89PNG\r\n\x1a\n\r\n--not the boundary\r\n\x00\xff" * 3


def form(files: list[tuple[str, bytes]], fields: dict[str, str] | None = None) -> tuple[bytes, str]:
    """Body and Content-Type as an independent client makes them."""
    request = httpx.Request(
        "POST", "http://test", data=fields or {}, files=[("image", (name, data)) for name, data in files]
    )
    return request.read(), request.headers["content-type"]


def refused(body: bytes, content_type: str, query: UpscaleQuery = NOTHING) -> Problem:
    with pytest.raises(Problem) as caught:
        picture_in(body, content_type, query)
    return caught.value


def test_form_as_a_browser_sends_it() -> None:
    body, content_type = form([("../../etc/x.png", IMAGE)], {"scale": "2.5", "format": "webp", "lossless": "true"})
    data, query = picture_in(body, content_type, UpscaleQuery(quality=7))
    assert data == IMAGE
    assert query == UpscaleQuery(quality=7, scale=2.5, format="webp", lossless=True)


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
