"""Pairs of photos to measure on: HR files, and LR photos made of them or found in a second folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from ray_sr.data.sources import PhotoFile, find_photos
from ray_sr.errors import InputError
from ray_sr.images import Photo, decode, rgb8
from ray_sr.images.resample import downscale_array, mod_crop
from ray_sr.storage import first_line, open_filesystem, read_file

# Benchmark sets name their LR files 0801x4, babyx4, img_001_SRF_4_LR, baby_LRBI_x4 …; HR files end in _HR or _GT.
_ENDING = r"[ ._-]+(?:x[1-8]|lr|hr|gt|lrbic?|bicubic|srf[ ._-]?[1-8]|blur|blurred|blurry|sharp)$"
_DECORATION = re.compile(_ENDING, re.IGNORECASE)
_SCALE = re.compile(r"x[1-8]$", re.IGNORECASE)  # without a separator: of LR files, once
_MOST_CUT = 12  # sets made for several scales crop HR to a multiple of 12, so their LR may miss up to 11 rows


@dataclass(frozen=True)
class PairFiles:
    """An HR file and its LR file; without `lr`, LR is made of HR."""

    hr: PhotoFile
    lr: PhotoFile | None = None

    @property
    def name(self) -> str:
        return self.hr.name


@dataclass(frozen=True)
class LeftOut:
    """A photo that was not measured, and why, in one line."""

    name: str
    reason: str


@dataclass(frozen=True)
class Pair:
    """uint8 pixels: HR (h·scale)×(w·scale)×3 and LR h×w×3, both without the last axis where they are gray."""

    hr: np.ndarray
    lr: np.ndarray


def find_pairs(
    hr_folder: str | os.PathLike[str], lr_folder: str | os.PathLike[str] | None, scale: int
) -> tuple[list[PairFiles], list[LeftOut]]:
    """The HR photos of a folder (or URI) with their LR files, and those that have no LR file.

    LR photos are matched by name without suffix, within the same subfolder; else by what remains when endings
    such as x4, _LR or _HR are dropped. Raises InputError where a folder is missing or holds no photo.
    """
    photos = find_photos([os.fspath(hr_folder)])
    if lr_folder is None:
        return [PairFiles(photo) for photo in photos], []
    return match_pairs(photos, os.fspath(lr_folder), scale)


def match_pairs(photos: Sequence[PhotoFile], lr_folder: str, scale: int) -> tuple[list[PairFiles], list[LeftOut]]:
    """As `find_pairs`, for HR photos that were found already."""
    found, left_out = [], []
    match = _Matcher(photos, find_photos([lr_folder]), scale)
    for photo in photos:
        if match.is_ambiguous(photo):
            left_out.append(LeftOut(photo.name, "several photos have this name: give them different ones"))
            continue
        candidates = match.candidates(photo)
        if len(candidates) == 1:
            found.append(PairFiles(photo, candidates[0]))
        else:
            left_out.append(LeftOut(photo.name, _mismatch(candidates, lr_folder)))
    return found, left_out


def read_pair(files: PairFiles, scale: int) -> Pair:
    """Decoded pixels of a pair, 8-bit; gray photos stay gray, because the field measures them so.

    HR is cropped at its lower right to a multiple of `scale`; LR is made as MATLAB's imresize makes it. A given
    LR of up to 11 HR rows or columns less crops HR further. Raises InputError, without the file's name.
    """
    hr = _read(files.hr)
    lr = _read(files.lr) if files.lr else None
    gray = hr.channels == 1 and (lr is None or lr.channels == 1)
    pixels = _pixels(hr, gray)
    if lr is not None:
        given = _pixels(lr, gray)
        return Pair(cropped_to(pixels, given, scale), given)
    if min(pixels.shape[:2]) < scale:
        raise InputError(f"{hr.width}x{hr.height} is too small to be shrunk {scale} times")
    cropped = np.ascontiguousarray(mod_crop(pixels, scale))
    return Pair(cropped, downscale_array(cropped, scale))


def read_pixels(file: PhotoFile) -> np.ndarray:
    """One photo: uint8 H×W×3, or H×W where it is gray. Raises InputError, without the file's name."""
    photo = _read(file)
    return _pixels(photo, photo.channels == 1)


class _Matcher:
    """Finds the LR files that may belong to an HR file."""

    def __init__(self, hr: Sequence[PhotoFile], lr: Sequence[PhotoFile], scale: int) -> None:
        self.scale = scale
        self.exact = _grouped((_without_suffix(photo.name), photo) for photo in lr)
        self.hr = Counter(_without_suffix(photo.name) for photo in hr)
        spare = [photo for photo in lr if _without_suffix(photo.name) not in self.hr]
        self.bare = _grouped((name, photo) for photo in spare for name in _bare_names(photo.name, is_lr=True))
        others = [photo for photo in hr if _without_suffix(photo.name) not in self.exact]
        self.wanted = Counter(name for photo in others for name in _bare_names(photo.name, is_lr=False))

    def is_ambiguous(self, photo: PhotoFile) -> bool:
        """Whether other HR photos have the same name: no LR photo says which of them it belongs to."""
        return self.hr[_without_suffix(photo.name)] > 1

    def candidates(self, photo: PhotoFile) -> list[PhotoFile]:
        name = _without_suffix(photo.name)
        if name in self.exact:
            return self.exact[name]
        for bare in _bare_names(photo.name, is_lr=False):
            if found := self.bare.get(bare, []) if self.wanted[bare] == 1 else []:
                wanted = rf"(x|srf[ ._-]?){self.scale}(?!\d)"
                at_scale = [lr for lr in found if re.search(wanted, lr.name, re.IGNORECASE)]
                return at_scale if len(found) > 1 and at_scale else found
        return []


def _grouped(entries: Iterable[tuple[str, PhotoFile]]) -> dict[str, list[PhotoFile]]:
    groups: dict[str, list[PhotoFile]] = {}
    for key, photo in entries:
        groups.setdefault(key, []).append(photo)
    return groups


def _without_suffix(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _bare_names(name: str, *, is_lr: bool) -> list[str]:
    """The name without suffix, then without one after the other of the endings that say which side it is."""
    path = PurePosixPath(name)
    stem, names, scaled = path.stem, [path.stem], not is_lr
    while True:
        shorter = _DECORATION.sub("", stem)
        if shorter == stem and not scaled:
            shorter, scaled = _SCALE.sub("", stem), True
        if shorter in (stem, ""):
            return [str(path.with_name(stem)) for stem in names]
        scaled = scaled or bool(re.search(r"x[1-8]$", stem, re.IGNORECASE))
        stem = shorter
        names.append(stem)


def _mismatch(candidates: Sequence[PhotoFile], folder: str | os.PathLike[str]) -> str:
    if not candidates:
        return f"no LR photo of this name in {os.fspath(folder)}"
    names = ", ".join(photo.name for photo in candidates[:4])
    return f"several LR photos match: {names}; keep one of them"


def _read(file: PhotoFile) -> Photo:
    try:
        return decode(read_file(*open_filesystem(file.uri)))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot be read: {first_line(error)}") from None


def _pixels(photo: Photo, gray: bool) -> np.ndarray:
    pixels = rgb8(photo)
    return np.ascontiguousarray(pixels[..., 0]) if gray else pixels


def cropped_to(hr: np.ndarray, lr: np.ndarray, scale: int) -> np.ndarray:
    """HR cropped at its lower right to `scale` times LR; InputError where more than 11 px would be cut."""
    height, width = (side * scale for side in lr.shape[:2])
    cut = hr.shape[0] - height, hr.shape[1] - width
    if min(cut) < 0 or max(cut) >= (_MOST_CUT if scale > 1 else 1):
        raise InputError(
            f"LR is {lr.shape[1]}x{lr.shape[0]}, but HR of {hr.shape[1]}x{hr.shape[0]} needs "
            f"{hr.shape[1] // scale}x{hr.shape[0] // scale} at x{scale}"
        )
    return np.ascontiguousarray(hr[:height, :width])
