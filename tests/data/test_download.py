"""Downloads from a server on loopback that breaks off, and archives that mean harm."""

from __future__ import annotations

import hashlib
import io
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_sr.data.download import SETS, Archive, download_set, fetch, unpack
from ray_sr.errors import InputError, ResourceError
from tests.photos import noise


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


PHOTO = noise(400, 500).tobytes()
DATA = zipped({"set/a.png": PHOTO, "set/b.png": PHOTO[::-1]})


class Breaking(ThreadingHTTPServer):
    """Serves `data`, at most `at_once` bytes a connection; notes the Range header of every request."""

    def __init__(self, data: bytes, at_once: int, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data, self.at_once, self.ranges = data, at_once, ranges
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set.zip"


class _Handler(BaseHTTPRequestHandler):
    server: Breaking

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path != "/set.zip":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(self.server.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(self.server.data)}")
            self.end_headers()
            return
        body = self.server.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.at_once])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def breaking() -> Iterator[Breaking]:
    server = Breaking(DATA, 500_000)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_goes_on_where_the_connection_broke(breaking: Breaking, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    archive = Archive(breaking.url, hashlib.sha256(DATA).hexdigest())
    count = download_set([archive], tmp_path, progress=lambda done, total: heard.append((done, total)))
    assert count == 2
    assert breaking.asked == [None, "bytes=500000-", "bytes=1000000-"]
    assert heard[-1] == (len(DATA), len(DATA))
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert (tmp_path / "set" / "a.png").read_bytes() == PHOTO
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".set.zip.done",
        "a.png",
        "b.png",
    ]
    assert download_set([archive], tmp_path) == 2
    assert len(breaking.asked) == 3


def test_a_later_call_goes_on_with_the_part_that_is_there(breaking: Breaking, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(DATA[:700_000])
    fetch(Archive(breaking.url), tmp_path / "set.zip")
    assert breaking.asked[0] == "bytes=700000-"
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_a_part_that_is_whole_is_not_fetched_again(breaking: Breaking, tmp_path: Path) -> None:
    (tmp_path / "set.zip.part").write_bytes(DATA)
    fetch(Archive(breaking.url), tmp_path / "set.zip")
    assert breaking.asked == [f"bytes={len(DATA)}-"]
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_a_server_without_ranges_sends_all_again(breaking: Breaking, tmp_path: Path) -> None:
    breaking.ranges, breaking.at_once = False, len(DATA)
    (tmp_path / "set.zip.part").write_bytes(b"another file")
    fetch(Archive(breaking.url), tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_wrong_bytes_are_removed_and_named(breaking: Breaking, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SHA-256 is"):
        fetch(Archive(breaking.url, "0" * 64), tmp_path / "set.zip")
    assert list(tmp_path.iterdir()) == []
    breaking.data = b"<html>moved</html>"
    with pytest.raises(InputError, match="not a ZIP file"):
        fetch(Archive(breaking.url), tmp_path / "set.zip")


def test_errors_of_the_server_are_named(breaking: Breaking, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="404 Not Found"):
        fetch(Archive(breaking.url.replace("set", "other")), tmp_path / "set.zip")
    breaking.at_once = 0
    with pytest.raises(InputError, match=r"run the command again"):
        fetch(Archive(breaking.url), tmp_path / "set.zip")


def test_two_processes_fetch_a_file_once(breaking: Breaking, tmp_path: Path) -> None:
    breaking.at_once = len(DATA)
    code = "import sys; from pathlib import Path; from ray_sr.storage.download import download\n"
    code += "download(sys.argv[1], Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, breaking.url, str(tmp_path / "set.zip")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    assert breaking.asked == [None]
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_a_full_disk_is_one_line(breaking: Breaking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"GB needed, 0\.0 GB free"):
        fetch(Archive(breaking.url), tmp_path / "set.zip")
    assert list(tmp_path.iterdir()) == []


def linked() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        zipped({"good.png": b"1", "../out.png": b"2"}),
        zipped({"good.png": b"1", "/tmp/out.png": b"2"}),
        zipped({"good.png": b"1", "a/../../out.png": b"2"}),
        zipped({"good.png": b"1", "C:out.png": b"2"}),
        linked(),
    ],
    ids=["parent", "absolute", "hidden parent", "drive", "link"],
)
def test_harmful_archives_write_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(data)
    folder = tmp_path / "photos"
    folder.mkdir()
    with pytest.raises(InputError, match="refuses to unpack"):
        unpack(tmp_path / "set.zip", folder)
    assert list(folder.iterdir()) == []


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(zipped({"way/out.png": b"2"}))
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "way").symlink_to(elsewhere)
    with pytest.raises(InputError, match="a link on its way"):
        unpack(tmp_path / "set.zip", folder)
    assert list(elsewhere.iterdir()) == []


def test_a_damaged_member_is_named_and_not_left_behind(tmp_path: Path) -> None:
    data = bytearray(DATA)
    data[1000] ^= 1
    (tmp_path / "set.zip").write_bytes(data)
    with pytest.raises(InputError, match="damaged archive: Bad CRC-32"):
        unpack(tmp_path / "set.zip", tmp_path / "photos")
    assert not list((tmp_path / "photos").rglob("a.png"))


def test_the_named_sets_come_by_https() -> None:
    assert SETS.keys() == {"div2k", "flickr2k", "gopro"}
    assert all(archive.url.startswith("https://") for photos in SETS.values() for archive in photos.archives)
