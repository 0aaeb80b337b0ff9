"""Jobs over HTTP: the same picture as at once, with progress; canceled, repeated and refused."""

from __future__ import annotations

import io
import json
import socket
import time
import zipfile
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ray_sr.images import decode, encode
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import BIG, LIMITS, Running, flat_png, picture, png_of

DEADLINE_S = 90


@pytest.fixture(scope="module")
def some_png() -> bytes:
    """Several tiles, done in a few seconds."""
    return encode(picture(130, 130), "png")


def begin(service: Running, body: bytes, query: str = "", **headers: str) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/jobs{query}", content=body, headers=headers, timeout=60)


def status(service: Running, id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{service.url}/v1/jobs/{id}").json()
    return found


def wait(service: Running, id: str, *states: str) -> dict[str, Any]:
    end = time.monotonic() + DEADLINE_S
    while (found := status(service, id))["status"] not in states:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def kind_of(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["type"].removeprefix("/problems/")


def events_of(service: Running, id: str) -> list[tuple[str, dict[str, Any]]]:
    """All events until the service ends the stream."""
    with httpx.stream("GET", f"{service.url}/v1/jobs/{id}/events", timeout=DEADLINE_S) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = "".join(response.iter_text())
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


def test_job_makes_the_picture_tile_by_tile(service: Running, engine: Engine, some_png: bytes) -> None:
    response = begin(service, some_png, "?format=webp&lossless=true")
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["status"] in ("queued", "running")
    assert job["result_url"] is None

    events = events_of(service, job["id"])
    names = [name for name, _ in events]
    assert names[-1] == "end"
    assert set(names[:-1]) == {"progress"}
    shares = [data["progress"] for _, data in events]
    assert shares == sorted(shares)
    assert len({share for share in shares if 0 < share < 1}) >= 2, "progress was shown tile by tile"
    last = events[-1][1]
    assert (last["status"], last["progress"], last["error"]) == ("succeeded", 1.0, None)
    assert last == status(service, job["id"])

    result = httpx.get(service.url + last["result_url"])
    photo = upscale_photo(decode(some_png), engine)
    assert result.content == encode(photo, "webp", lossless=True)
    assert result.headers["content-type"] == "image/webp"
    assert int(result.headers["content-length"]) == len(result.content)
    assert result.headers["raysr-scale"] == "4"


def test_small_pictures_go_before_the_tiles_of_a_job(service: Running, small_png: bytes) -> None:
    """The job would keep the only replica busy for longer than the deadline of the small picture."""
    response = begin(service, flat_png(*BIG))
    job = response.json()["id"]
    wait(service, job, "running")
    assert httpx.post(f"{service.url}/v1/upscale", content=small_png, timeout=60).status_code == 200
    assert kind_of(httpx.get(f"{service.url}/v1/jobs/{job}/result")) == (409, "job-not-ready")

    canceled = httpx.delete(f"{service.url}/v1/jobs/{job}")
    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert kind_of(httpx.get(f"{service.url}/v1/jobs/{job}/result")) == (410, "gone")
    assert [name for name, _ in events_of(service, job)] == ["end"]
    following = begin(service, small_png).json()["id"]
    assert wait(service, following, "succeeded", "failed")["status"] == "succeeded"


def test_same_idempotency_key_is_the_same_job(service: Running, small_png: bytes) -> None:
    first = begin(service, small_png, **{"Idempotency-Key": "one"})
    again = begin(service, small_png, **{"Idempotency-Key": "one"})
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert begin(service, small_png, **{"Idempotency-Key": "two"}).json()["id"] != first.json()["id"]
    other = begin(service, small_png, "?scale=2", **{"Idempotency-Key": "one"})
    assert kind_of(other) == (422, "idempotency-conflict")
    assert kind_of(begin(service, small_png, **{"Idempotency-Key": "x" * 256})) == (400, "bad-request")


def test_respond_async_makes_a_job(service: Running, small_png: bytes) -> None:
    response = httpx.post(f"{service.url}/v1/upscale", content=small_png, headers={"Prefer": "respond-async"})
    assert response.status_code == 202
    job = wait(service, response.json()["id"], "succeeded")
    deleted = httpx.delete(f"{service.url}/v1/jobs/{job['id']}")
    assert deleted.json()["status"] == "succeeded"
    assert kind_of(httpx.get(f"{service.url}/v1/jobs/{job['id']}")) == (410, "gone")


def test_jobs_may_be_larger_and_are_refused_when_they_are_sent(service: Running) -> None:
    larger = flat_png(1025, 1024)
    assert kind_of(httpx.post(f"{service.url}/v1/upscale", content=larger)) == (422, "image-too-large")
    accepted = begin(service, larger)
    assert accepted.status_code == 202
    httpx.delete(f"{service.url}/v1/jobs/{accepted.json()['id']}")
    assert kind_of(begin(service, flat_png(1400, 1400))) == (422, "image-too-large")
    assert kind_of(begin(service, b"text")) == (415, "unsupported-media-type")
    assert kind_of(begin(service, larger, "?scale=5")) == (422, "invalid-parameter")
    assert kind_of(begin(service, bytes(LIMITS.body_bytes + 1))) == (413, "payload-too-large")


def test_damage_that_only_decoding_finds_is_the_jobs_error(service: Running) -> None:
    job = wait(service, begin(service, png_of(8, 8, b"garbage")).json()["id"], "failed", "succeeded")
    assert job["status"] == "failed"
    assert job["error"]["type"] == "/problems/image-corrupt"
    assert kind_of(httpx.get(f"{service.url}/v1/jobs/{job['id']}/result")) == (422, "image-corrupt")


@pytest.mark.parametrize("address", ["/nothing", "/nothing/result", "/nothing/events"])
def test_unknown_jobs(service: Running, address: str) -> None:
    assert kind_of(httpx.get(f"{service.url}/v1/jobs{address}")) == (404, "not-found")
    assert kind_of(httpx.delete(f"{service.url}/v1/jobs/nothing")) == (404, "not-found")


def test_clients_that_leave_take_no_job_along(service: Running) -> None:
    """They send their picture and close the connection: their jobs, and those after them, are done all the same."""
    address, png = urlsplit(service.url), encode(picture(48, 48), "png")
    for number in range(4):
        head = f"POST /v1/jobs HTTP/1.1\r\nHost: test\r\nIdempotency-Key: left {number}\r\n"
        with socket.create_connection((address.hostname, address.port), timeout=30) as client:
            client.sendall(f"{head}Content-Length: {len(png)}\r\n\r\n".encode() + png)
    for key in (*(f"left {number}" for number in range(4)), "after them"):
        job = begin(service, png, **{"Idempotency-Key": key}).json()["id"]
        assert wait(service, job, "succeeded", "failed")["status"] == "succeeded"


def test_results_of_many_jobs_as_one_zip(service: Running, engine: Engine) -> None:
    photos = [picture(20, 20 + number) for number in range(3)]
    ids = [begin(service, encode(photo, "png")).json()["id"] for photo in photos]
    for id in ids:
        wait(service, id, "succeeded")
    names = ["a/one_x4.png", "../one.png", "A/ONE_x4.png"]
    wanted = {"jobs": [{"id": id, "name": name} for id, name in zip(ids, names, strict=True)]}
    described = httpx.post(f"{service.url}/v1/archives", json=wanted)
    assert described.status_code == 201, described.text
    answer = httpx.get(service.url + described.json()["url"])
    assert answer.headers["content-disposition"] == 'attachment; filename="upscaled.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["a/one_x4.png", "one.png", "A/ONE_x4 (2).png"]
        for name, photo in zip(archive.namelist(), photos, strict=True):
            assert archive.read(name) == encode(upscale_photo(photo, engine), "png")
        assert described.json()["bytes"] == sum(info.file_size for info in archive.infolist())


def test_zip_of_what_has_no_result_is_refused(service: Running) -> None:
    broken = begin(service, png_of(8, 8, b"garbage")).json()["id"]
    wait(service, broken, "failed")
    url = f"{service.url}/v1/archives"
    assert kind_of(httpx.post(url, json={"jobs": [{"id": broken, "name": "x"}]})) == (409, "job-not-ready")
    assert kind_of(httpx.post(url, json={"jobs": [{"id": "nothing-there", "name": "x"}]})) == (404, "not-found")
    assert kind_of(httpx.post(url, json={"jobs": []})) == (422, "invalid-parameter")
    assert kind_of(httpx.get(f"{url}/AAAAAAAAAAAAAAAAAAAAAAAA")) == (404, "not-found")


def test_head_of_a_result_tells_its_size_and_kind(service: Running, small_png: bytes) -> None:
    id = begin(service, small_png, "?format=jpg").json()["id"]
    wait(service, id, "succeeded")
    url = f"{service.url}/v1/jobs/{id}/result"
    head, whole = httpx.head(url), httpx.get(url)
    assert head.status_code == 200
    assert head.headers["content-type"] == whole.headers["content-type"] == "image/jpeg"
    assert int(head.headers["content-length"]) == len(whole.content)
    assert httpx.head(f"{service.url}/v1/jobs/nothing-there/result").status_code == 404


def test_messages_are_refused_where_none_are_allowed(service: Running, small_png: bytes) -> None:
    refused = begin(service, small_png, "?webhook=https://example.org/")
    assert kind_of(refused) == (422, "invalid-parameter")
