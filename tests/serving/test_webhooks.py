"""Messages about the end of jobs: allowed, signed, sent again, and never redirected."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ray_sr.errors import InputError, RecipeError
from ray_sr.serving import webhooks
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.options import ServiceOptions, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.webhooks import Webhooks, check_address, origin_of, read_secret
from tests.serving.webhook_receiver import SECRET, Receiver


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "DELAYS_S", (0, 0.01, 0.02))


def record(url: str) -> JobRecord:
    now = datetime.now(UTC)
    return JobRecord(
        id="the-id-of-the-job",
        client="ann",
        fingerprint="secret fingerprint",
        query=UpscaleQuery(format="png"),
        picture_bytes=1,
        expires_at=now,
        state="succeeded",
        root="/sr",
        webhook=url,
        webhook_state="due",
    )


def deliver(receiver: Receiver) -> list[tuple[str, str]]:
    """What was noted of the message to that receiver."""
    noted: list[tuple[str, str]] = []

    async def note(id: str, outcome: str) -> None:
        noted.append((id, outcome))

    async def scenario() -> None:
        hooks = Webhooks(SECRET, note)
        hooks.tell(record(receiver.url))
        hooks.tell(record(receiver.url))
        async with asyncio.timeout(30):
            while not noted:
                await asyncio.sleep(0.01)

    asyncio.run(scenario())
    receiver.shutdown()
    receiver.server_close()
    return noted


def test_message_tells_the_status_and_is_signed() -> None:
    receiver = Receiver()
    assert deliver(receiver) == [("the-id-of-the-job", "sent")]
    ((path, headers, body),) = receiver.got
    assert path == "/hook"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    message = json.loads(body)
    assert message["type"] == "job.succeeded"
    assert message["data"]["result_url"] == "/sr/v1/jobs/the-id-of-the-job/result"
    assert b"fingerprint" not in body
    assert b"ann" not in body


def test_example_of_the_standard() -> None:
    """The example in the reference library of Standard Webhooks."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    signature = webhooks.sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_message_is_sent_until_it_is_taken(quickly: None) -> None:
    receiver = Receiver(500, 503)
    assert deliver(receiver) == [("the-id-of-the-job", "sent")]
    assert len({body for _, _, body in receiver.got}) == 1
    assert len(receiver.got) == 3


@pytest.mark.parametrize(("statuses", "attempts"), [((500,) * 9, 3), ((410,), 1), ((302,) * 9, 3)])
def test_message_is_given_up(quickly: None, statuses: tuple[int, ...], attempts: int) -> None:
    receiver = Receiver(*statuses)
    assert deliver(receiver) == [("the-id-of-the-job", "given up")]
    assert [path for path, *_ in receiver.got] == ["/hook"] * attempts, "no redirect is followed"


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org.evil.net/",
        "https://hooks.example.org@evil.net/",
        "https://hooks.example.org:444/",
        "http://hooks.example.org/",
        "file:///etc/passwd",
        "//hooks.example.org/",
        "https://[::1/",
        "https://hooks.example.org:99999/",
        "",
    ],
)
def test_other_origins_are_refused(url: str) -> None:
    with pytest.raises(Problem) as caught:
        check_address(url, ("https://hooks.example.org",))
    assert caught.value.kind == "invalid-parameter"


def test_allowed_origins() -> None:
    check_address("https://hooks.example.org/any/path?x=1", ("https://hooks.example.org",))
    assert origin_of("http://[::1]:8080/x") == "http://[::1]:8080"
    with pytest.raises(Problem, match="sends no messages"):
        check_address("https://hooks.example.org/", ())


def test_secret_is_checked_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("whsec_" + base64.b64encode(SECRET).decode() + "\n")
    assert read_secret(path) == SECRET
    for wrong in ("whsec_dG9vIHNob3J0", "not base64!", ""):
        path.write_text(wrong)
        with pytest.raises(RecipeError, match="24 to 64 bytes"):
            read_secret(path)
    with pytest.raises(InputError, match="No such file"):
        read_secret(tmp_path / "nothing")
    with pytest.raises(ValueError, match="webhook_secret"):
        ServiceOptions(webhook_origins=("https://hooks.example.org",))
