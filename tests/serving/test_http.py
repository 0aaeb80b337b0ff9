"""The service over real HTTP on loopback: right answers, every refusal, and life after both."""

from __future__ import annotations

import base64
import json
import select
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pillow_heif
import pytest
from click.testing import CliRunner
from PIL import Image
from pydantic import ValidationError

from ray_sr.cli import cli
from ray_sr.images import Photo, decode, encode
from ray_sr.serving.options import ServiceLimits, UpscaleQuery
from ray_sr.serving.pipeline import with_format
from ray_sr.serving.problems import Problem
from ray_sr.serving.requests import AcceptedResponse
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import BIG, LIMITS, Running, flat_png, picture, png_of


def post(service: Running, body: Any, query: str = "", headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/upscale{query}", content=body, headers=headers, timeout=60)


def refused(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """The problem document, after the checks that hold for every one of them."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"/problems/{kind}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert "/ray_sr/" not in response.text
    return problem


def works(service: Running, png: bytes) -> None:
    response = post(service, png)
    assert response.status_code == 200, response.text


PHOTOS = {
    "rgb": (picture(24, 32), "png", ""),
    "gray with alpha, 16 bit": (picture(17, 23, channels=1, alpha=True, depth=16), "png", ""),
    "transparent": (picture(20, 20, alpha=True), "webp", ""),
    "one pixel": (picture(1, 1), "png", ""),
    "to jpeg": (picture(24, 32), "jpeg", "format=jpeg&quality=80"),
    "to tiff": (picture(24, 32), "png", "format=tiff"),
    "half the scale": (picture(24, 32), "png", "scale=2"),
    "from avif": (picture(24, 32), "avif", ""),
    "to avif": (picture(24, 32, alpha=True, depth=16), "png", "format=avif&quality=70"),
    "from jxl": (picture(24, 32), "jxl", ""),
    "to jxl": (picture(24, 32, alpha=True), "png", "format=jxl&quality=70"),
    "a scale between": (picture(24, 32), "png", "scale=2.5&format=webp&quality=50"),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_answer_is_what_the_library_makes_of_the_same_bytes(service: Running, engine: Engine, name: str) -> None:
    photo, stored_as, query = PHOTOS[name]
    sent = encode(photo, stored_as)
    response = post(service, sent, f"?{query}" if query else "")
    assert response.status_code == 200, response.text

    asked = httpx.QueryParams(query)
    scale = float(asked.get("scale", 4))
    local = upscale_photo(decode(sent), engine, scale=scale)
    kind = asked.get("format", "png")
    expected = encode(local, kind, quality=int(asked.get("quality", 95)))
    assert response.content == expected
    assert response.headers["content-type"] == f"image/{kind}"
    assert response.headers["raysr-scale"] == f"{scale:g}"


def test_heic_is_taken_and_answered_as_png(service: Running, engine: Engine) -> None:
    """As telephones send it; `same` cannot be, for HEIC is only read."""
    stream = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture(24, 32).pixels)).save(stream, quality=90)
    sent = stream.getvalue()
    response = post(service, sent, "?format=same")
    assert response.headers["content-type"] == "image/png"
    assert response.content == encode(upscale_photo(decode(sent), engine), "png")


def test_what_the_installation_lacks_is_neither_offered_nor_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    assert ServiceLimits().formats == ("png", "jpeg", "webp", "avif")
    with pytest.raises(ValidationError, match=r"heif, jxl needs the extra: pip install 'ray-sr\[formats\]'"):
        ServiceLimits(formats=("png", "jxl", "heif"))
    with pytest.raises(Problem, match="jxl is not installed where this service runs; it writes png, jpeg"):
        with_format(UpscaleQuery(format="jxl"), AcceptedResponse(None), b"")


def test_answer_is_the_file_that_the_command_writes(service: Running, small_png: bytes, tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(small_png)
    arguments = ["upscale", str(tmp_path / "small.png"), "-o", str(tmp_path / "large.png"), "-n", "portrait"]
    options = ["--store", service.store.root, "-d", "cpu", "--precision", "float32", "-t", "96"]
    options += ["--metadata", "none"]  # else the file says in its XMP that it is a result, for folder runs
    result = CliRunner().invoke(cli, [*arguments, *options])
    assert result.exit_code == 0, result.output
    assert post(service, small_png, "?metadata=none").content == (tmp_path / "large.png").read_bytes()


def test_forms_and_json_are_the_same_call(service: Running, small_png: bytes) -> None:
    raw = post(service, small_png, "?scale=2")
    url = f"{service.url}/v1/upscale"
    form = httpx.post(url, files={"image": ("a.png", small_png)}, data={"scale": "2"}, timeout=60)
    assert form.content == raw.content
    sent = {"image": base64.b64encode(small_png).decode(), "scale": 2}
    answer = httpx.post(url, json=sent, headers={"Accept": "application/json"}, timeout=60)
    document = answer.json()
    assert base64.b64decode(document.pop("image")) == raw.content
    assert document.pop("timings").keys() == {"decode", "queue", "infer", "encode"}
    model = raw.headers["raysr-model"]
    assert document == {
        "format": "png", "width": 64, "height": 48, "scale": 2, "model": model, "warnings": []
    }  # fmt: skip


def test_accept_and_same_choose_the_format(service: Running, small_png: bytes) -> None:
    assert post(service, small_png, headers={"Accept": "image/webp"}).headers["content-type"] == "image/webp"
    assert (
        post(service, small_png, "?format=jpeg", {"Accept": "image/webp"}).headers["content-type"] == "image/jpeg"
    )
    jpeg = encode(picture(24, 32), "jpeg")
    assert post(service, jpeg, "?format=same").headers["content-type"] == "image/jpeg"
    assert post(service, small_png, "?format=jpg").headers["content-type"] == "image/jpeg"
    usual = post(service, small_png, headers={"Accept": "application/json, text/plain, */*"})
    assert usual.headers["content-type"] == "image/png"
    refused(post(service, small_png, headers={"Accept": "image/gif"}), 406, "not-acceptable")


def test_metadata_option_decides_what_is_kept(service: Running) -> None:
    photo = Photo(picture(8, 8).pixels, xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>kept</x:xmpmeta>")
    sent = encode(photo, "png")
    assert decode(post(service, sent).content).xmp == decode(sent).xmp
    assert decode(post(service, sent, "?metadata=none").content).xmp is None


def test_headers_tell_what_was_done(service: Running, small_png: bytes) -> None:
    response = post(service, small_png, "?format=jpeg", {"X-Request-Id": "my-id"})
    headers = response.headers
    record = service.store.show("portrait")
    assert headers["raysr-model"] == f"portrait@{record.version}"
    assert int(headers["content-length"]) == len(response.content)
    assert headers["content-disposition"] == 'inline; filename="upscaled_x4.jpg"'
    assert headers["x-request-id"] == "my-id"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "raysr-warnings" not in headers
    stages = dict(entry.split(";dur=") for entry in headers["server-timing"].split(", "))
    assert stages.keys() == {"decode", "queue", "infer", "encode"}
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())


def test_what_the_format_cannot_hold_is_a_warning(service: Running) -> None:
    sent = encode(picture(8, 8, alpha=True, depth=16), "png")
    response = post(service, sent, "?format=jpeg")
    assert set(response.headers["raysr-warnings"].split(", ")) == {"depth-reduced", "alpha-flattened"}


def test_content_type_does_not_decide(service: Running, small_png: bytes) -> None:
    assert post(service, small_png, headers={"Content-Type": "image/jpeg"}).status_code == 200


QUERIES = {
    "scale=0": "scale",
    "scale=-1": "scale",
    "scale=1e9": "scale",
    "scale=NaN": "scale",
    "scale=4x": "scale",
    "scale=5": "scale",
    "scale=4&scale=4": "scale",
    "format=exe": "format",
    "quality=0": "quality",
    "quality=101": "quality",
    "quality=9.5": "quality",
    "metadata=some": "metadata",
    "url=http://169.254.169.254/": "url",
}


@pytest.mark.parametrize("query", QUERIES)
def test_wrong_options_are_named(service: Running, small_png: bytes, query: str) -> None:
    problem = refused(post(service, small_png, f"?{query}"), 422, "invalid-parameter")
    assert [error["parameter"] for error in problem["errors"]] == [QUERIES[query]]


def test_misspelt_option_gets_a_suggestion(service: Running, small_png: bytes) -> None:
    problem = refused(post(service, small_png, "?sclae=2&quality=0"), 422, "invalid-parameter")
    assert {error["parameter"] for error in problem["errors"]} == {"sclae", "quality"}
    assert "did you mean scale?" in problem["detail"]


def bodies() -> dict[str, tuple[bytes, int, str]]:
    png = encode(picture(24, 32), "png")
    jpeg = encode(picture(24, 32), "jpeg")
    avif, jxl = (encode(picture(24, 32), name) for name in ("avif", "jxl"))
    return {
        "nothing": (b"", 400, "bad-request"),
        "one byte": (b"\x89", 415, "unsupported-media-type"),
        "text": (b"not a picture", 415, "unsupported-media-type"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported-media-type"),
        "gif": (b"GIF89a" + bytes(20), 415, "unsupported-media-type"),
        "tiff, not opted in": (encode(picture(8, 8), "tiff"), 415, "unsupported-media-type"),
        "half an avif": (avif[: len(avif) // 2], 422, "image-corrupt"),
        "half a jxl": (jxl[: len(jxl) // 2], 422, "image-corrupt"),
        "heic of nothing": (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", 422, "image-corrupt"),
        "signature alone": (png[:8], 422, "image-corrupt"),
        "half a png": (png[: len(png) // 2], 422, "image-corrupt"),
        "half a jpeg": (jpeg[: len(jpeg) // 2], 422, "image-corrupt"),
        "flipped bit": (png[:-40] + bytes([png[-40] ^ 1]) + png[-39:], 422, "image-corrupt"),
        "too many pixels": (flat_png(1025, 1024), 422, "image-too-large"),
        "too long a side": (flat_png(1, 4097), 422, "image-too-large"),
        "webp of a long result": (flat_png(1, 4096), 422, "format-limit"),
    }


@pytest.mark.parametrize("name", bodies())
def test_bad_pictures_are_refused(service: Running, name: str) -> None:
    body, status, kind = bodies()[name]
    query = "?format=webp" if kind == "format-limit" else ""
    refused(post(service, body, query), status, kind)


def test_pixel_limit_is_checked_on_the_header(service: Running) -> None:
    """The pixels of this PNG are garbage: it is refused for its size before they are looked at."""
    png = png_of(40_000, 40_000, b"garbage")
    refused(post(service, png), 422, "image-too-large")


def test_encoded_bodies_are_refused(service: Running, small_png: bytes) -> None:
    refused(post(service, small_png, headers={"Content-Encoding": "gzip"}), 415, "unsupported-media-type")


def test_unknown_addresses_and_methods(service: Running) -> None:
    refused(httpx.get(f"{service.url}/v2/nothing"), 404, "not-found")
    response = httpx.get(f"{service.url}/v1/upscale")
    refused(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def exchange(service: Running, sent: bytes) -> tuple[int, dict[str, Any]]:
    """Status and document that come back for exactly these bytes."""
    with connection(service) as client:
        client.sendall(sent)
        response = HTTPResponse(client)
        response.begin()
        return response.status, json.loads(response.read())


def connection(service: Running) -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def request_head(length: int) -> bytes:
    return f"POST /v1/upscale HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode()


def test_announced_body_over_the_limit_is_refused_before_it_is_sent(service: Running) -> None:
    status, problem = exchange(service, request_head(100_000_000))
    assert status == 413
    assert (problem["limit"], problem["actual"]) == (LIMITS.body_bytes, 100_000_000)


def test_streamed_body_over_the_limit_is_refused(service: Running) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"\x89PNG\r\n\x1a\n"
        for _ in range(40):
            yield bytes(10_000)

    problem = refused(post(service, chunks()), 413, "payload-too-large")
    assert problem["limit"] == LIMITS.body_bytes


def test_streamed_body_within_the_limit_is_welcome(service: Running, small_png: bytes) -> None:
    def chunks() -> Iterator[bytes]:
        for start in range(0, len(small_png), 500):
            yield small_png[start : start + 500]

    assert post(service, chunks()).content == post(service, small_png).content


def test_body_that_does_not_arrive_is_given_up(service: Running, small_png: bytes) -> None:
    status, problem = exchange(service, request_head(len(small_png)) + small_png[:100])
    assert (status, problem["type"]) == (408, "/problems/request-timeout")


def test_concurrent_requests_get_their_own_answers(service: Running, engine: Engine) -> None:
    sent = [encode(picture(20 + n, 30), "png") for n in range(6)]
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda png: post(service, png), sent))
    for png, answer in zip(sent, answers, strict=True):
        assert answer.status_code == 200, answer.text
        assert answer.content == encode(upscale_photo(decode(png), engine), "png")


def test_full_service_refuses_at_once_and_long_work_is_ended(service: Running, small_png: bytes) -> None:
    """Four pictures, of which the pixel budget of each of two ingress replicas holds one and the deadline none."""
    big = flat_png(*BIG)
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda png: post(service, png), [big] * 4))
    full = [answer for answer in answers if answer.status_code == 503]
    assert 2 <= len(full) <= 3
    for answer in full:
        refused(answer, 503, "overloaded")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.elapsed.total_seconds() < LIMITS.request_deadline_s
    for answer in answers:
        if answer not in full:
            refused(answer, 504, "timeout")
    works(service, small_png)


def test_client_that_leaves_takes_its_work_along(service: Running, small_png: bytes) -> None:
    """The budgets of two ingress replicas are full: the small picture fits in only if what they hold was ended."""
    big = flat_png(*BIG)
    clients = [connection(service) for _ in range(4)]
    try:
        for client in clients:
            client.sendall(request_head(len(big)) + big)
        answered = select.select(clients, [], [], LIMITS.request_deadline_s)[0]
        assert answered, "of four at least two are over the budgets, which hold one each"
        assert all(client.recv(65536).startswith(b"HTTP/1.1 503 ") for client in answered)
    finally:
        for client in clients:
            client.close()
    works(service, small_png)


def test_information(service: Running) -> None:
    assert httpx.get(f"{service.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{service.url}/readyz").json() == {"status": "ready"}
    record = service.store.show("portrait")
    models = httpx.get(f"{service.url}/v1/models").json()
    named = {"id": "portrait", "name": "portrait", "version": record.version, "scale": 4}
    served = {**named, "purpose": "other", "description": "", "denoise": False}
    assert models == {"models": [served]}
    assert httpx.get(f"{service.url}/v1/limits").json() == LIMITS.model_dump(mode="json")
    api = httpx.get(f"{service.url}/openapi.json").json()
    options = {option["name"] for option in api["paths"]["/v1/upscale"]["post"]["parameters"]}
    assert options == set(UpscaleQuery.model_fields)


def test_problem_types_can_be_looked_up(service: Running, small_png: bytes) -> None:
    problem = post(service, small_png, "?scale=0").json()
    meaning = httpx.get(f"{service.url}{problem['type']}").json()
    assert meaning == {key: problem[key] for key in ("type", "title", "status")}
    refused(httpx.get(f"{service.url}/problems/nonsense"), 404, "not-found")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/"])
def test_head_is_answered_as_get_without_the_body(service: Running, path: str) -> None:
    head, get = httpx.head(service.url + path), httpx.get(service.url + path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_base64_may_be_broken_into_lines(service: Running, small_png: bytes) -> None:
    sent = {"image": base64.encodebytes(small_png).decode().replace("\n", "\r\n")}
    answer = httpx.post(f"{service.url}/v1/upscale", json=sent, timeout=60)
    assert answer.content == post(service, small_png).content
