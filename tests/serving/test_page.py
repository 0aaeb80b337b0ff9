"""The page in a real browser on the real service: every way in, the comparison, refusals, cancel, accessibility."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pillow_heif
import pytest
from PIL import Image
from ray import serve

from ray_sr.images import Photo, decode, encode
from ray_sr.serving.app import build
from ray_sr.serving.keys import add_key
from ray_sr.serving.page import FOLDER, MEDIA_TYPES
from ray_sr.upscaling import Engine, upscale_photo
from tests.serving.conftest import BIG, LIMITS, Running, flat_png, picture
from tests.serving.page_browser import Visit

Visitor = Callable[..., Visit]


@pytest.fixture
def visit(browser: Any, service: Running) -> Iterator[Visitor]:
    """Opens the page. At the end of the test, the console of none of its tabs may have said anything."""
    opened: list[Visit] = []

    def open_page(**context: Any) -> Visit:
        opened.append(Visit(browser, service.url, **context))
        return opened[-1]

    yield open_page
    errors = [error for one in opened for error in one.errors]
    for one in opened:
        one.context.close()
    assert errors == []


@pytest.fixture(scope="module")
def result(browser: Any, service: Running) -> Iterator[Visit]:
    """The page with a result that is larger than the part of the page that shows it, made once."""
    page = Visit(browser, service.url, viewport={"width": 640, "height": 480})
    page.upscale(encode(picture(80, 170), "png"))
    page.sees("#zoom", "100 %")
    yield page
    page.context.close()
    assert page.errors == []


@pytest.fixture
def compared(result: Visit) -> Visit:
    """That page with its middle shown at 100 % and the divider in the middle."""
    result.tab.click("#fit")
    result.tab.click("#full")
    move_divider(result, 50)
    return result


def move_divider(page: Visit, share: float) -> None:
    page.tab.locator("#split").evaluate(
        "(range, share) => { range.value = share; range.dispatchEvent(new Event('input')) }", share
    )


def test_files_are_served_as_they_are_and_asked_for_once(service: Running) -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(MEDIA_TYPES)
    for name, media_type in MEDIA_TYPES.items():
        answer = httpx.get(f"{service.url}/{name}")
        assert (answer.status_code, answer.content) == (200, (FOLDER / name).read_bytes())
        assert answer.headers["content-type"] == media_type
        assert answer.headers.get_list("cache-control") == ["no-cache"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        again = httpx.get(f"{service.url}/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        stale = httpx.get(f"{service.url}/{name}", headers={"If-None-Match": '"another"'})
        assert stale.status_code == 200
    assert httpx.get(service.url).content == (FOLDER / "index.html").read_bytes()
    assert httpx.head(service.url).status_code == 200


def test_policy_keeps_out_what_is_not_ours(visit: Visitor) -> None:
    """Also shows that the other tests would notice a violation."""
    page = visit()
    page.tab.evaluate("""() => {
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:1/elsewhere.png";
        document.body.append(image);
        document.body.setAttribute("style", "color: red");
        try { document.createElement("script").src = "/page.js"; } catch { /* the console has it */ }
    }""")
    for rule in ("img-src", "style-src", "TrustedScriptURL"):
        wait_until(lambda rule=rule: any(rule in error for error in page.errors))
    page.errors.clear()


def test_limits_and_models_are_told_before_anything_is_sent(visit: Visitor) -> None:
    page = visit()
    page.sees("#limits", "PNG, JPEG, WebP, AVIF, HEIC or JPEG XL · at most 293 KiB and")
    assert ("POST", "/v1/jobs") not in page.sent
    page.pick(encode(picture(24, 32), "png"))
    page.sees("#model", "portrait – up to 4×")
    assert page.tab.locator("#scales label").all_inner_texts() == ["2×", "3×", "4×"]
    page.sees("#go", "Upscale to 128 × 96")
    page.tab.click("text=2×")
    page.sees("#go", "Upscale to 64 × 48")


@pytest.mark.parametrize(("event", "name"), [("drop", "dropped.png"), ("paste", "pasted.png")])
def test_photo_can_be_dropped_and_pasted(visit: Visitor, small_png: bytes, event: str, name: str) -> None:
    page = visit()
    page.hand_over(event, small_png, name)
    page.sees("#name", name)
    page.sees("#facts", "32 × 24")
    assert page.box("#before")["width"] > 0


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_download_is_what_the_library_makes_of_the_same_bytes(
    visit: Visitor, service: Running, engine: Engine, small_png: bytes, format: str
) -> None:
    page = visit()
    page.pick(small_png, "my cat.holiday.png")
    page.tab.select_option("#format", format)
    page.tab.click("text=3×")
    page.tab.click("#go")
    page.sees("#result-facts", "96 × 72")
    with page.tab.expect_download() as download:
        page.tab.click("#download")
    assert download.value.suggested_filename == f"my cat.holiday_x3.{'jpg' if format == 'jpeg' else 'png'}"
    expected = encode(upscale_photo(decode(small_png), engine, scale=3), format)
    assert Path(download.value.path()).read_bytes() == expected
    page.sees("#made-by", f"portrait@{service.store.show('portrait').version}")


def test_photo_under_way_is_not_pushed_aside(visit: Visitor, small_png: bytes) -> None:
    page = visit()
    page.pick(flat_png(*BIG))
    page.tab.click("#go")
    page.sees("#phase", "Upscaling")
    page.hand_over("drop", small_png, "second.png")
    page.sees("[role=alert]", "One photo is under way")
    page.sees("#name", "cat.png")
    cancel(page)


def test_hidden_data_is_left_out_on_wish(visit: Visitor) -> None:
    page = visit()
    photo = Photo(picture(8, 8).pixels, xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>at home</x:xmpmeta>")
    page.pick(encode(photo, "png"))
    page.tab.click("#go")
    page.sees("#done", "Done")
    assert b"at home" in downloaded(page)
    page.tab.check("#private")
    with page.tab.expect_response(re.compile("/result$")):
        page.tab.click("#go")
    page.sees("#done", "Done")
    assert b"at home" not in downloaded(page)


def test_what_the_format_cannot_hold_is_said(visit: Visitor) -> None:
    page = visit()
    page.pick(encode(picture(8, 8, alpha=True, depth=16), "png"))
    page.tab.select_option("#format", "jpeg")
    page.tab.click("#go")
    page.sees("#warnings", "16 bits a colour became 8")
    page.sees("#warnings", "JPEG has no transparency")


def test_result_that_browsers_cannot_show_can_be_downloaded(visit: Visitor, small_png: bytes) -> None:
    page = visit()
    page.upscale(small_png)
    page.tab.select_option("#format", "tiff")
    page.tab.click("#go")
    page.sees("#warnings", "This browser cannot show the result")
    assert not page.tab.locator("#after").is_visible()
    page.sees("#file-name", "cat_x4.tif")
    assert decode(downloaded(page)).width == 128


def heic() -> bytes:
    stream = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture(24, 32).pixels)).save(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "shown"), [("avif", True), ("avif named mif1", True), ("jxl", False), ("heif", False)]
)
def test_photos_of_telephones_are_taken_also_where_browsers_do_not_show_them(
    visit: Visitor, kind: str, shown: bool
) -> None:
    data = heic() if kind == "heif" else encode(picture(24, 32), kind.split()[0])
    if kind.endswith("mif1"):
        data = data[:8] + b"mif1" + data[12:]
    page = visit()
    page.pick(data, "photo")
    page.tab.select_option("#format", "avif")
    page.tab.click("#go")
    page.sees("#file-name", "photo_x4.avif")
    assert page.tab.locator("#after").is_visible() == shown, "both, else the result alone"
    width = page.tab.eval_on_selector("#after" if shown else "#before", "image => image.naturalWidth")
    assert width == 128
    assert decode(downloaded(page)).width == 128


def cancel(page: Visit) -> None:
    """Ends the job under way. Waits for the answer: a tab that is closed at once takes the request with it."""
    with page.tab.expect_response(lambda answer: answer.request.method == "DELETE"):
        page.tab.click("#cancel")


def downloaded(page: Visit) -> bytes:
    with page.tab.expect_download() as download:
        page.tab.click("#download")
    return Path(download.value.path()).read_bytes()


def test_divider_shows_before_on_its_left_and_after_on_its_right(compared: Visit) -> None:
    def with_divider_at(share: float) -> np.ndarray[Any, Any]:
        move_divider(compared, share)
        return compared.looks("#stage")[60:-60]  # without the words in the corners

    before, after, half = with_divider_at(100), with_divider_at(0), with_divider_at(50)
    middle, margin = half.shape[1] // 2, 30
    assert np.abs(before - after).mean() > 1
    assert np.abs(half - before)[:, margin : middle - margin].max() <= 1
    assert np.abs(half - after)[:, middle + margin : -margin].max() <= 1


def test_divider_moves_by_mouse_and_keys(compared: Visit) -> None:
    divider = compared.tab.locator("#split")
    stage = compared.box("#stage")
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + 60
    compared.tab.mouse.move(x, y)
    compared.tab.mouse.down()
    compared.tab.mouse.move(x - stage["width"] / 4, y, steps=4)
    compared.tab.mouse.up()
    assert float(divider.input_value()) == pytest.approx(25, abs=1)
    assert divider.get_attribute("aria-valuetext") == "25 % before, 75 % after"
    divider.focus()
    compared.tab.keyboard.press("End")
    assert divider.input_value() == "100"
    compared.tab.keyboard.press("ArrowLeft")
    assert 80 < float(divider.input_value()) < 100


def test_result_is_shown_at_100_percent_and_can_be_zoomed_and_moved(compared: Visit) -> None:
    stage, middle = compared.box("#stage"), compared.box("#after")
    assert (middle["width"], middle["height"]) == (680, 320)
    assert compared.box("#before") == middle

    compared.tab.mouse.move(stage["x"] + 100, stage["y"] + 100)
    compared.tab.mouse.down()
    compared.tab.mouse.move(stage["x"] + 130, stage["y"] + 120, steps=3)
    compared.tab.mouse.up()
    assert compared.box("#after")["x"] == pytest.approx(middle["x"] + 30, abs=1)
    assert compared.box("#before")["y"] == pytest.approx(middle["y"] + 20, abs=1)
    compared.tab.focus("#stage")
    compared.tab.keyboard.press("ArrowRight")
    assert compared.box("#after")["x"] == pytest.approx(middle["x"] - 30, abs=1)
    compared.tab.keyboard.press("+")
    compared.sees("#zoom", "200 %")
    assert compared.box("#after")["width"] == 1360
    compared.tab.click("#fit")
    fitted = compared.box("#after")
    assert fitted["width"] <= stage["width"]
    assert fitted["height"] <= stage["height"]
    compared.tab.click("#full")
    assert compared.box("#after")["width"] == 680


def test_wheel_with_ctrl_zooms_around_the_pointer(compared: Visit) -> None:
    stage, before = compared.box("#stage"), compared.box("#after")
    x, y = stage["x"] + 150, stage["y"] + 100
    compared.tab.mouse.move(x, y)
    compared.tab.keyboard.down("Control")
    compared.tab.mouse.wheel(0, -200)
    compared.tab.keyboard.up("Control")
    compared.sees("#zoom", "200 %")
    after = compared.box("#after")
    assert x - after["x"] == pytest.approx(2 * (x - before["x"]), abs=2)
    assert y - after["y"] == pytest.approx(2 * (y - before["y"]), abs=2)


def test_two_fingers_zoom(visit: Visitor, small_png: bytes) -> None:
    page = visit(has_touch=True)
    page.pick(small_png)
    page.sees("#zoom", "800 %")
    page.tab.click("#full")
    stage = page.box("#stage")
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    touch = page.context.new_cdp_session(page.tab)
    for kind, gap in (("touchStart", 50), ("touchMove", 70), ("touchMove", 100), ("touchEnd", 0)):
        points = [{"x": x + side * gap, "y": y, "id": side} for side in (-1, 1)] if gap else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    page.sees("#zoom", "200 %")


def test_edges_of_the_photo_are_not_left_behind(compared: Visit) -> None:
    compared.tab.focus("#stage")
    for _ in range(40):
        compared.tab.keyboard.press("ArrowLeft")
    assert compared.box("#after")["x"] == pytest.approx(compared.box("#stage")["x"] + 1, abs=1)


def refusals() -> dict[str, tuple[bytes, str, str]]:
    """Files that the page itself refuses: bytes, the title it gives and a part of what it says."""
    return {
        "gif": (b"GIF89a" + bytes(20), "cannot be upscaled", "This is a GIF file. Save the photo as PNG"),
        "text": (b"not a picture", "cannot be upscaled", "Save the photo as"),
        "too many bytes": (
            flat_png(8, 8) + bytes(LIMITS.body_bytes), "The file is too large", "at most 293 KiB are accepted",
        ),
        "too long": (flat_png(1, LIMITS.side + 1), "The photo is too long", "at most 4,096 a side"),
        "damaged": (flat_png(64, 64)[:40], "The file is damaged", "This browser cannot show it"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_bad_files_are_refused_in_words_before_they_are_sent(visit: Visitor, name: str) -> None:
    data, title, detail = refusals()[name]
    page = visit()
    page.pick(data, name)
    page.sees("[role=alert]", title)
    page.sees("[role=alert]", detail)
    assert not page.tab.locator("#work").is_visible()
    assert "POST" not in [method for method, _ in page.sent]


def test_refusals_of_the_service_are_shown_in_words_and_one_can_go_on(visit: Visitor, small_png: bytes) -> None:
    page = visit()
    jpeg = encode(picture(200, 300), "jpeg")
    page.pick(jpeg[: len(jpeg) // 2], "half.jpg")
    page.tab.click("#go")
    page.sees("[role=alert]", "The picture is damaged")
    assert page.tab.locator("#go").evaluate("(go) => go === document.activeElement")
    page.upscale(small_png)
    assert page.tab.locator("[role=alert]").inner_text() == ""


def test_progress_is_told_and_cancel_ends_the_job(visit: Visitor, service: Running, small_png: bytes) -> None:
    page = visit()
    page.pick(flat_png(*BIG))
    with page.tab.expect_response(re.compile("/v1/jobs[?]")) as posted:
        page.tab.click("#go")
    job = posted.value.json()["id"]
    page.sees("#phase", "Upscaling")
    page.sees("#percent", "%")
    assert page.tab.locator("#cancel").evaluate("(cancel) => cancel === document.activeElement")
    cancel(page)
    page.sees("#go", "Upscale to 4096 × 4096")
    assert page.tab.locator("[role=status]").first.inner_text() == "Cancelled."
    assert httpx.get(f"{service.url}/v1/jobs/{job}").json()["status"] == "canceled"
    page.upscale(small_png)


def test_leaving_the_page_ends_the_job(visit: Visitor, service: Running) -> None:
    page = visit()
    page.pick(flat_png(*BIG))
    with page.tab.expect_response(re.compile("/v1/jobs[?]")) as posted:
        page.tab.click("#go")
    job = posted.value.json()["id"]
    page.sees("#phase", "Upscaling")
    page.tab.goto(f"{service.url}/healthz")
    wait_until(lambda: httpx.get(f"{service.url}/v1/jobs/{job}").json()["status"] == "canceled")


def test_result_is_not_kept_by_the_service(visit: Visitor, service: Running, small_png: bytes) -> None:
    page = visit()
    with page.tab.expect_response(lambda answer: answer.request.method == "DELETE") as deleted:
        page.upscale(small_png)
    wait_until(lambda: httpx.get(deleted.value.url).status_code == 410)


@pytest.fixture(scope="module")
def keyed(service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of a service with two models below a path, and the only key it knows."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    key = add_key(keys, "visitor")
    changed = {"model": "bicubic", "further_models": ("portrait",), "keys": str(keys), "cpus": 0.1, "gpus": 0}
    options = service.options.model_copy(update={**changed, "codec_processes": 1})
    serve.run(build(options), name="keyed", route_prefix="/keyed")
    yield f"{service.url}/keyed", key
    serve.delete("keyed")


def test_key_is_asked_for_where_one_is_needed_and_kept_in_the_tab(
    browser: Any, keyed: tuple[str, str], small_png: bytes
) -> None:
    url, key = keyed
    page = Visit(browser, url)
    field = page.tab.locator("#key")
    page.pick(small_png)
    page.tab.select_option("#model", "portrait")
    assert not field.is_visible()
    page.tab.click("#go")
    page.sees("#key-form", "This service asks for an API key")
    assert field.evaluate("(key) => key === document.activeElement")
    assert page.violations() == ""
    field.fill("rsr_wrong")
    page.tab.keyboard.press("Enter")
    page.sees("[role=alert]", "The service does not know this key")
    field.fill(key)
    page.tab.keyboard.press("Enter")
    page.sees("#made-by", "portrait@")
    assert not field.is_visible()
    page.tab.reload()
    page.upscale(small_png)
    page.sees("#made-by", "bicubic@")
    page.context.close()
    assert page.errors == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(visit: Visitor, small_png: bytes, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    dark = page.looks("body").mean() < 128
    assert dark == (scheme == "dark")
    assert page.violations() == ""
    page.pick(b"nothing")
    page.sees("[role=alert]", "cannot be upscaled")
    assert page.violations() == ""
    page.pick(flat_png(*BIG))
    page.tab.click("#go")
    page.sees("#phase", "Upscaling")
    assert page.violations() == ""
    page.tab.click("#cancel")
    page.upscale(small_png)
    assert page.violations() == ""


def test_narrow_screens_need_no_sideways_scrolling(visit: Visitor, small_png: bytes) -> None:
    page = visit(viewport={"width": 360, "height": 640}, has_touch=True)
    for step in (lambda: page.pick(b"nothing"), lambda: page.upscale(small_png)):
        step()
        assert page.tab.evaluate("() => document.documentElement.scrollWidth") == 360
    assert page.violations() == ""


def test_keyboard_alone_is_enough(visit: Visitor, small_png: bytes) -> None:
    page = visit(reduced_motion="reduce")
    focused = page.tab.locator(":focus")
    page.tab.keyboard.press("Tab")
    assert focused.get_attribute("id") == "file"
    outline = "(part) => getComputedStyle(part).outlineStyle"
    assert page.tab.locator("#drop").evaluate(outline) == "solid"
    page.pick(small_png)
    page.sees("#go", "Upscale")
    page.tab.keyboard.press("Enter")
    page.sees("#done", "Done")
    assert focused.get_attribute("id") == "done-title"
    page.tab.keyboard.press("Tab")
    assert focused.get_attribute("id") == "download"
    page.tab.keyboard.press("Shift+Tab")
    for id in ("in", "out", "full", "fit", "split", "stage", "folder", "file"):
        assert focused.get_attribute("id") == id
        page.tab.keyboard.press("Shift+Tab")
