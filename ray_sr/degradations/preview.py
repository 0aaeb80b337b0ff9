"""A contact sheet that shows what a recipe's degradation does to photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ray_sr.degradations import degrade
from ray_sr.recipes.degradations import DegradationSpec

_GAP = 6
_LINE = 22
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


def contact_sheet(
    photos: Sequence[np.ndarray],
    steps: Sequence[DegradationSpec],
    scale: int,
    seed: int,
    *,
    columns: int = 5,
    crop: int = 192,
) -> np.ndarray:
    """uint8 H×W×3 picture: a row for each photo with its crop and `columns` degraded variants of it.

    Photos are uint8 H×W×3; of each the middle is shown, at most `crop` pixels wide and high. Variants are
    enlarged to the crop's size by repeating pixels. The same seed gives the same sheet.

    Raises ValueError without photos, and whatever `degrade` raises.
    """
    if not photos:
        raise ValueError("a contact sheet needs at least one photo")
    rows = [
        _row(_middle(photo, crop, scale), steps, scale, seed, number, columns)
        for number, photo in enumerate(photos)
    ]
    return _laid_out(rows, _headings(steps, scale, columns), crop)


def _middle(photo: np.ndarray, crop: int, scale: int) -> np.ndarray:
    sides = [min(crop, side) // scale * scale for side in photo.shape[:2]]
    top, left = ((side - kept) // 2 for side, kept in zip(photo.shape[:2], sides, strict=True))
    return photo[top : top + sides[0], left : left + sides[1]]


def _row(
    hr: np.ndarray, steps: Sequence[DegradationSpec], scale: int, seed: int, number: int, columns: int
) -> list[np.ndarray]:
    rngs = [np.random.default_rng((seed, number, column)) for column in range(columns)]
    variants = degrade(np.stack([hr] * columns), steps, scale, rngs)
    return [hr, *variants.repeat(scale, axis=1).repeat(scale, axis=2)]


def _headings(steps: Sequence[DegradationSpec], scale: int, columns: int) -> tuple[str, list[str]]:
    title = f"x{scale}: " + ", ".join(step.kind.replace("_", " ") for step in steps)
    return title, ["HR", *(f"variant {column + 1}" for column in range(columns))]


def _laid_out(rows: list[list[np.ndarray]], headings: tuple[str, list[str]], crop: int) -> np.ndarray:
    """Pastes the pictures into a grid of cells of `crop` pixels below the title and the column headings."""
    pitch, top = crop + _GAP, 2 * _LINE
    sheet = Image.new("RGB", (_GAP + pitch * len(rows[0]), top + pitch * len(rows)), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    title, labels = headings
    pen.text((_GAP, 3), title, _INK, font)
    for column, label in enumerate(labels):
        pen.text((_GAP + column * pitch, _LINE), label, _INK, font)
    for number, row in enumerate(rows):
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (_GAP + column * pitch, top + number * pitch))
    return np.asarray(sheet)
