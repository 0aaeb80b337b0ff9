"""Photos from Parquet data sets, HTTP and storage that asks for credentials; what can be dropped on wish."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_sr.data.checking import describe, resolutions, sub_image_sheet
from ray_sr.data.manifest import Cutting, read_photos
from ray_sr.data.pixels import read_index
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos, read_photo_bytes
from ray_sr.data.sub_images import detail
from ray_sr.errors import InputError
from tests.photos import noise, real_photos, write_real_photos


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("as_struct", [False, True])
def test_rows_of_a_parquet_data_set_are_photos(as_struct: bool, tmp_path: Path) -> None:
    encoded = [png(noise(20, 30, seed)) for seed in range(5)]
    names = [f"p{number}.png" for number in range(5)]
    image = [{"bytes": b, "path": n} for b, n in zip(encoded, names, strict=True)] if as_struct else encoded
    table = pa.table({"label": list(range(5)), "image": image, **({} if as_struct else {"file_name": names})})
    pq.write_table(table, tmp_path / "set.parquet", row_group_size=2)
    photos = find_photos([str(tmp_path)])
    assert [photo.name for photo in photos] == [f"set/{name}" for name in names]
    assert [read_photo_bytes(photo) for photo in photos] == encoded


def test_a_parquet_file_without_photos_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(InputError, match=r"numbers\.parquet: no column of encoded photos"):
        find_photos([str(tmp_path)])


@pytest.mark.usefixtures("ray_local")
def test_a_parquet_data_set_becomes_shards(tmp_path: Path) -> None:
    images = [png(pixels[:200, :200]) for pixels in real_photos().values()]
    pq.write_table(pa.table({"image": [*images, None, b"broken"]}), tmp_path / "set.parquet")
    made = prepare(find_photos([str(tmp_path / "set.parquet")]), str(tmp_path / "out"), validation=0)
    assert made.manifest.rows("train") == 4
    assert [photo["name"] for photo in made.left_out] == ["set/00000004", "set/00000005"]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


class _Refusing(BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = _refuse

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def serve() -> Iterator[object]:
    servers = []

    def start(handler: object) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_photos_are_read_over_http(serve: object, tmp_path: Path) -> None:
    write_real_photos(tmp_path / "photos", 64)
    host = serve(partial(_Quiet, directory=str(tmp_path)))  # type: ignore[operator]
    (photo,) = find_photos([f"http://{host}/photos/coffee.png"])
    assert photo.name == "coffee.png"
    assert read_photo_bytes(photo) == (tmp_path / "photos" / "coffee.png").read_bytes()
    with pytest.raises(InputError, match="no such file or folder"):
        find_photos([f"http://{host}/photos/none.png"])


def test_storage_that_wants_credentials_says_which(serve: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    host = serve(_Refusing)  # type: ignore[operator]
    place = f"s3://bucket/photos?endpoint_override={host}&scheme=http&region=us-east-1"
    with pytest.raises(InputError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        find_photos([place])


@pytest.mark.usefixtures("ray_local")
def test_flat_and_duplicate_sub_images_are_dropped_on_wish(tmp_path: Path) -> None:
    half = np.concatenate([noise(96, 96), np.full((96, 96, 3), 200, np.uint8)], axis=1)
    Image.fromarray(half).save(tmp_path / "a.png")
    Image.fromarray(half).save(tmp_path / "b.webp", lossless=True)
    photos = find_photos([str(tmp_path)])

    def index_of(**wishes: object) -> int:
        cutting = Cutting(sub_image=96, step=96, **wishes)  # type: ignore[arg-type]
        output = str(tmp_path / f"out-{len(wishes)}-{wishes.get('drop_flat', 0)}")
        prepare(photos, output, cutting=cutting, validation=0)
        facts, text = describe(output)
        assert (facts["flat"], facts["duplicates"]) == (
            2 if "drop_flat" in wishes else 0,
            (1 if "drop_flat" in wishes else 2) if "drop_duplicates" in wishes else 0,
        )
        assert ("dropped" in text) == bool(wishes)
        return len(read_index(output, "train"))

    assert index_of() == 4
    assert index_of(drop_flat=1.0) == 2
    assert index_of(drop_duplicates=True) == 2
    assert index_of(drop_flat=1.0, drop_duplicates=True) == 1


def test_detail_tells_flat_from_photographs() -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None], (100, 100, 3))
    assert detail(np.zeros((50, 50, 3), np.uint8)) == 0
    assert detail(ramp) == 0.5
    assert all(detail(photo) > 1.5 for photo in real_photos().values())


@pytest.mark.usefixtures("ray_local")
def test_info_has_a_histogram_and_a_contact_sheet(tmp_path: Path) -> None:
    shards = str(tmp_path / "shards")
    photos = find_photos([str(write_real_photos(tmp_path / "photos"))])
    prepare(photos, shards, cutting=Cutting(sub_image=128, step=96))
    facts, text = describe(shards)
    assert sum(facts["resolutions"].values()) == 4
    assert "#" in text
    sub_image_sheet(shards, str(tmp_path / "sheet.png"))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 8 * 128
    assert sheet.std() > 20


def test_resolutions_count_every_photo_once() -> None:
    counts = resolutions(np.array([[100, 100], [1000, 1000], [2000, 2000], [9000, 9000]]))
    assert {name: count for name, count in counts.items() if count} == {"0-0.05": 1, "1-2": 1, "4-8": 1, "64-": 1}


def test_a_list_of_photos_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read photos\.parquet"):
        read_photos(str(tmp_path))
