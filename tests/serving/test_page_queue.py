"""Many photos on the page, in a real browser: the list, its ZIP, what is broken, a reload in the middle, keys."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_sr.images import encode
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import Running, flat_png, picture
from tests.serving.page_browser import Visit

BROKEN = 11


@pytest.fixture
def page(browser: Any, service: Running) -> Iterator[Visit]:
    opened = Visit(browser, service.url)
    yield opened
    if opened.tab.locator("#clear").is_visible():
        opened.tab.click("#clear")
    opened.context.close()
    assert opened.errors == []


def pick(page: Visit, files: dict[str, bytes]) -> None:
    given = [{"name": name, "mimeType": "", "buffer": data} for name, data in files.items()]
    page.tab.set_input_files("#file", given)


def zip_of(page: Visit) -> zipfile.ZipFile:
    with page.tab.expect_download(timeout=60_000) as download:
        page.tab.click("#save-all")
    assert download.value.suggested_filename == "upscaled.zip"
    return zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.nightly)])
def test_many_photos_of_which_one_is_broken(page: Visit, engine: Engine, count: int) -> None:
    photos = {f"photo {number}.png": picture(8, 8 + number % 9) for number in range(count)}
    files = {name: encode(photo, "png") for name, photo in photos.items()}
    broken = f"photo {BROKEN}.png"
    files[broken] = files[broken][:60]
    pick(page, files)
    page.sees("#start", f"Upscale {count} photos")
    assert page.violations() == ""
    page.tab.click("text=2×")
    page.tab.click("#start")
    page.sees("#all-state", f"{count - 1} of {count} done · 1 failed", seconds=200)
    page.sees("[data-state=failed]", broken)
    with zip_of(page) as archive:
        assert archive.testzip() is None
        expected = {name.replace(".png", "_x2.png") for name in photos if name != broken}
        assert set(archive.namelist()) == expected
        name = "photo 7_x2.png"
        assert archive.read(name) == encode(upscale_photo(photos["photo 7.png"], engine, scale=2), "png")
    assert page.violations() == ""


def test_list_survives_a_reload_in_the_middle(page: Visit) -> None:
    files = {f"{number}.png": flat_png(100, 100 + number) for number in range(6)}
    pick(page, files)
    page.sees("#start", "Upscale 6 photos")  # what is taken in later would wait for a click of its own
    page.tab.click("#start")
    page.sees("#all-state", re.compile("[1-5] of 6 done"))  # type: ignore[arg-type]
    page.tab.reload()
    page.sees("#all-state", "6 of 6 done", seconds=120)
    posted = [url for method, url in page.sent if method == "POST"]
    assert all(url.startswith("/v1/jobs?") for url in posted)
    with zip_of(page) as archive:
        assert sorted(archive.namelist()) == [f"{number}_x4.png" for number in range(6)]


def test_rows_can_be_removed_saved_and_tried_again_by_keys(page: Visit) -> None:
    pick(page, {"one.png": flat_png(16, 16), "two.png": flat_png(16, 17)})
    page.sees("#start", "Upscale 2 photos")
    remove = page.tab.get_by_role("button", name="Remove one.png")
    remove.focus()
    page.tab.keyboard.press("Enter")
    page.sees("#start", "Upscale 1 photo")
    focused = page.tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Remove two.png", "the focus goes on to the next row"
    page.tab.click("#start")
    page.sees("#all-state", "1 of 1 done")
    with page.tab.expect_download() as download:
        page.tab.get_by_role("button", name="Download two.png").click()
    assert download.value.suggested_filename == "two_x4.png"
    page.tab.click("#clear")
    page.sees("#ask", "Choose")
    pick(page, {"alone.png": flat_png(16, 16)})
    page.sees("#name", "alone.png")
    page.sees("#go", "Upscale to 64 × 64")


def test_refused_photos_say_why_and_the_rest_goes_on(page: Visit) -> None:
    pick(page, {"notes.txt": b"text", "fine.png": flat_png(16, 16), "huge.png": flat_png(1500, 1500)})
    page.sees("#start", "Upscale 1 photo")
    page.tab.click("#start")
    page.sees("#all-state", "1 of 3 done · 2 failed")
    rows = page.tab.locator("#rows li").all_inner_texts()
    assert "kind of file" in rows[0]
    assert "too many pixels" in rows[2]
