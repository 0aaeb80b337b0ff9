"""Side-by-side pictures: whole photos above, their most detailed part enlarged below, captions under them."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter

from ray_sr.errors import ResourceError
from ray_sr.images import write_bytes
from ray_sr.metrics import luma
from ray_sr.storage import first_line

PANEL = 324  # width of a column in pixels
_TALLEST = 432
_ZOOM = 3
_GAP = 14
_WINDOW = 9
_PAPER, _INK, _FAINT, _MARK = (24, 26, 29), (240, 240, 238), (164, 168, 173), (255, 196, 61)


@dataclass(frozen=True)
class Panel:
    """One column. pixels: uint8 H×W×3, the same size in all panels of a picture."""

    label: str
    caption: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Box:
    """A square of a photo, in pixels."""

    left: int
    top: int
    side: int

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        return pixels[self.top : self.top + self.side, self.left : self.left + self.side]


class Drawing:
    """Writes side-by-side pictures of photos into a folder, with the subfolders of the photos.

    `names` are those of all photos. Raises ResourceError where a folder cannot be made or written into.
    """

    def __init__(self, folder: str | os.PathLike[str], names: Iterable[str]) -> None:
        self.folder = Path(folder)
        self.written: dict[str, Path] = {}
        self.stems = Counter(PurePosixPath(name).with_suffix("") for name in names)
        _make_folder(self.folder)

    def draw(self, name: str, panels: Sequence[Panel]) -> None:
        stem = PurePosixPath(name).with_suffix("")
        own = stem if self.stems[stem] == 1 else name  # photos that differ by suffix alone keep theirs
        path = self.folder / f"{own}.png"
        _make_folder(path.parent)
        write_bytes(path, side_by_side(name, panels))
        self.written[name] = path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot make this folder: {first_line(error)}") from None


def side_by_side(title: str, panels: Sequence[Panel]) -> bytes:
    """PNG of the panels in a row, each with the part of the first one that has most detail (marked there)."""
    box = most_detailed(panels[0].pixels, PANEL // _ZOOM)
    photos = [_fitted(panel.pixels) for panel in panels]
    _mark(photos[0], box, photos[0].width / panels[0].pixels.shape[1])
    details = [_enlarged(box.cut(panel.pixels), PANEL // box.side) for panel in panels]
    top = _GAP + 30
    middle = top + photos[0].height + _GAP
    below = middle + details[0].height + _GAP - 4
    sheet = Image.new("RGB", (_GAP + (PANEL + _GAP) * len(panels), below + 52), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP - 3), _shortened(title, pen, sheet.width - 2 * _GAP), _INK, _font(20, bold=True))
    for number, panel in enumerate(panels):
        left = _GAP + number * (PANEL + _GAP)
        for picture, height in ((photos[number], top), (details[number], middle)):
            sheet.paste(picture, (left, height))
        pen.text((left, below), panel.label, _INK, _font(18, bold=True))
        pen.text((left, below + 23), panel.caption, _FAINT, _font(17))
    return _png(sheet)


def most_detailed(rgb: np.ndarray, side: int) -> Box:
    """The square of at most `side` pixels whose local variance of luma (9×9 windows) is largest in the mean."""
    side = min(side, *rgb.shape[:2])
    y = luma(rgb)
    variance = uniform_filter(y * y, _WINDOW) - uniform_filter(y, _WINDOW) ** 2
    sums = np.pad(variance, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    totals = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    top, left = np.unravel_index(np.argmax(totals), totals.shape)
    return Box(int(left), int(top), side)


def _fitted(pixels: np.ndarray) -> Image.Image:
    """The photo within the column: shrunk smoothly, or enlarged by whole pixels."""
    height, width = pixels.shape[:2]
    factor = min(PANEL / width, _TALLEST / height)
    if factor >= 1:
        return _enlarged(pixels, int(factor))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def _enlarged(pixels: np.ndarray, factor: int) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1)))


def _mark(photo: Image.Image, box: Box, factor: float) -> None:
    corners = (box.left, box.top, box.left + box.side, box.top + box.side)
    left, top, right, bottom = (round(corner * factor) for corner in corners)
    ImageDraw.Draw(photo).rectangle((left, top, right - 1, bottom - 1), outline=_MARK, width=2)


def _shortened(text: str, pen: ImageDraw.ImageDraw, width: int) -> str:
    font = _font(20, bold=True)
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and knows Latin, Greek, Cyrillic and Arabic letters."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, size)


def _png(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
