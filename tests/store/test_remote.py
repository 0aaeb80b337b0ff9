"""Importing by address, from servers on loopback: hashes, breaks, catalogues, licences."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from ray_sr.errors import InputError
from ray_sr.models import build_generator
from ray_sr.recipes.networks import CompactSpec, NetworkSpec
from ray_sr.store import Store
from ray_sr.store.remote import fetch_weights
from tests.test_cli import run

NETWORK = NetworkSpec(scale=2, generator=CompactSpec(convs=2, channels=8))


class Server(ThreadingHTTPServer):
    """Serves `files` by path, at most `at_once` bytes a connection; notes every path and range asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.at_once = 1 << 30
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path, asked = self.path.partition("?")[0], self.headers.get("Range")
        self.server.asked.append((path, asked))
        data = self.server.files.get(path)
        if data is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(data[start : start + self.server.at_once])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    serving = Server()
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


def weights(seed: int = 0) -> bytes:
    torch.manual_seed(seed)
    buffer = io.BytesIO()
    torch.save({"params": build_generator(NETWORK).state_dict()}, buffer)
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_fetched_over_breaks_checked_and_imported(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = weights()
    server.files["/x2_small.pth"], server.at_once = data, len(data) // 3 + 1
    address, store = f"{server.url}/x2_small.pth#sha256={digest(data)}", str(tmp_path / "store")
    code, out, err = run("models", "import", address, "--store", store, "--json", capsys=capsys)
    assert code == 0, err
    assert [asked is not None for _, asked in server.asked] == [False, True, True]
    record = Store(store).show(json.loads(out)["model"])
    assert (record.name, record.network) == ("x2_small", NETWORK)
    assert record.provenance.source == f"{server.url}/x2_small.pth"
    assert "licence: not named" in err
    again = len(server.asked)
    assert fetch_weights(address).sha256 == digest(data)
    assert len(server.asked) == again  # it is there


def test_a_file_of_another_hash_is_never_read(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files["/x.pth"] = b"not even weights"
    address, store = f"{server.url}/x.pth#sha256={digest(weights())}", tmp_path / "store"
    code, _, err = run("models", "import", address, "--store", str(store), capsys=capsys)
    assert code == 3
    assert f"SHA-256 is {digest(b'not even weights')}" in err
    assert not list((tmp_path / "cache").rglob("*.pth*"))
    assert not list(store.rglob("model.json"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://127.0.0.1:1/x.pth#sha1=00", "64 hexadecimal digits"),
        ("http://127.0.0.1:1/x.pth", "anyone on the way may change"),
        ("https://127.0.0.1:1/page", "not the address of a weights file"),
        ("hf:owner/x.pth", "hf:OWNER/REPO/FILE"),
    ],
)
def test_addresses_that_lead_nowhere_are_refused(address: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fetch_weights(address)


@pytest.fixture
def catalogue(server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A catalogue of OpenModelDB's form, and the weights that its first model has."""
    data = weights(1)
    file = {"platform": "pytorch", "type": "pth", "size": len(data), "sha256": digest(data)}
    page = "https://drive.google.com/drive/folders/abc"
    models = {
        "2x-Small": {
            "name": "Small",
            "license": "CC-BY-NC-SA-4.0",
            "architecture": "compact",
            "scale": 2,
            "resources": [
                {"platform": "onnx", "type": "onnx", "sha256": digest(b""), "urls": [f"{server.url}/2x.onnx"]},
                {**file, "urls": [page, f"{server.url}/gone.pth", f"{server.url}/2x%20Small.pth"]},
            ],
        },
        "4x-Paged": {"name": "Paged", "license": None, "resources": [{**file, "urls": [page]}]},
    }
    server.files["/models.json"] = json.dumps(models).encode()
    server.files["/2x%20Small.pth"] = data
    monkeypatch.setenv("RAY_SR_OPENMODELDB", f"{server.url}/models.json")
    return data


def test_a_model_of_the_catalogue_comes_with_its_licence(
    catalogue: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    options = ("--name", "small", "--store", store, "--json")
    code, out, err = run("models", "import", "openmodeldb:2x-Small", *options, capsys=capsys)
    assert code == 0, err
    assert json.loads(out)["licence"] == "CC-BY-NC-SA-4.0"
    assert "licence: CC-BY-NC-SA-4.0" in err
    record = Store(store).show("small")
    assert record.provenance.licence == "CC-BY-NC-SA-4.0"
    assert record.provenance.source == "openmodeldb:2x-Small"
    code, out, _ = run("models", "show", "small", "--store", store, capsys=capsys)
    assert "CC-BY-NC-SA-4.0" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("2x-Smal", "did you mean '2x-Small'"),
        ("4x-Paged", "no file of it that has a hash"),
        ("q", "lists 2 others"),
    ],
)
def test_what_the_catalogue_cannot_give_is_told(catalogue: bytes, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fetch_weights(f"openmodeldb:{name}")


def test_a_catalogue_that_is_none_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SR_OPENMODELDB", f"{server.url}/models.json")
    with pytest.raises(InputError, match="cannot be fetched: HTTP Error 404"):
        fetch_weights("openmodeldb:2x-Small")
    server.files["/models.json"] = b"<html>"
    with pytest.raises(InputError, match="no catalogue of models"):
        fetch_weights("openmodeldb:2x-Small")


def test_a_file_of_the_hub_comes_with_the_licence_of_its_card(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the optional huggingface-hub: pip install ray-sr[hub]")
    from huggingface_hub import constants

    data = weights(2)
    server.files["/someone/nets/resolve/main/x2.pth"] = data
    info = {"id": "someone/nets", "cardData": {"license": "apache-2.0"}, "tags": [], "siblings": []}
    server.files["/api/models/someone/nets"] = json.dumps(info).encode()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = fetch_weights("hf:someone/nets/x2.pth")
    assert found.path.read_bytes() == data
    assert (found.licence, found.sha256) == ("apache-2.0", digest(data))
    with pytest.raises(InputError, match=r"hf:someone/nets/none\.pth: "):
        fetch_weights("hf:someone/nets/none.pth")
