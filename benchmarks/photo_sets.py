"""What RESULTS.md is measured on: photographs as they are, with JPEG artefacts, and with camera shake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ray_sr.degradations import degrade
from ray_sr.images import decode, rgb8
from ray_sr.images.resample import mod_crop
from ray_sr.recipes.degradations import (
    CompressionSpec,
    DegradationSpec,
    DownscaleSpec,
    MotionBlurSpec,
    SecondOrderSpec,
)

QUALITY = 40
SHAKE = MotionBlurSpec(size=31)


@dataclass(frozen=True)
class PhotoSet:
    """HR photographs, and their LR where it is not MATLAB's bicubic of them."""

    title: str
    scale: int
    hr: Path
    lr: Path | None = None


def found_sets(benchmarks: Path, scales: Sequence[int]) -> Iterator[PhotoSet]:
    """SET/HR in the folder, at each scale."""
    folders = sorted(path for path in benchmarks.glob("*/HR") if path.is_dir())
    if not folders:
        raise SystemExit(f"error: {benchmarks}: no folder SET/HR in it")
    for scale in scales:
        yield from (PhotoSet(f"{folder.parent.name} x{scale}", scale, folder) for folder in folders)


def compressed_sets(benchmarks: Path, scale: int, work: Path) -> Iterator[PhotoSet]:
    """The same with LR that went through JPEG."""
    steps: list[DegradationSpec] = [DownscaleSpec(), CompressionSpec(quality=(QUALITY, QUALITY))]
    for plain in found_sets(benchmarks, (scale,)):
        lr = _degraded(plain.hr, work / f"{plain.title} jpeg", steps, scale)
        yield PhotoSet(f"{plain.title}, LR as JPEG of quality {QUALITY}", scale, plain.hr, lr)


def unknown_sets(benchmarks: Path, scale: int, work: Path) -> Iterator[PhotoSet]:
    """The same with LR of unknown quality: Real-ESRGAN's second-order degradation."""
    for plain in found_sets(benchmarks, (scale,)):
        lr = _degraded(plain.hr, work / f"{plain.title} second order", [SecondOrderSpec()], scale)
        yield PhotoSet(f"{plain.title}, LR by second-order degradation", scale, plain.hr, lr)


def shaken_sets(benchmarks: Path, deblur: Path | None, work: Path) -> Iterator[PhotoSet]:
    """The photographs with made camera shake; and pairs of `deblur`, sharp/NAME.png and blurred/NAME_*.png."""
    for plain in found_sets(benchmarks, (1,)):
        lr = _degraded(plain.hr, work / f"{plain.title} shaken", [SHAKE], 1)
        yield PhotoSet(f"{plain.hr.parent.name}, made camera shake", 1, plain.hr, lr)
    if deblur:
        yield PhotoSet(
            f"{deblur.name}, real camera shake", 1, _sharp_ones(deblur, work / "sharp"), deblur / "blurred"
        )


def _degraded(hr: Path, folder: Path, steps: Sequence[DegradationSpec], scale: int) -> Path:
    """Made LR photographs, as PNG; random steps by the photo's place in the alphabet."""
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(hr.iterdir())):
        pixels = np.ascontiguousarray(mod_crop(rgb8(decode(path.read_bytes())), scale))
        made = degrade(pixels[None], steps, scale, [np.random.default_rng(number)])[0]
        Image.fromarray(made).save(folder / f"{path.stem}.png")
    return folder


def _sharp_ones(deblur: Path, folder: Path) -> Path:
    """A sharp photo under the name of each blurred one."""
    folder.mkdir()
    for path in sorted((deblur / "blurred").iterdir()):
        (folder / path.name).symlink_to(
            (deblur / "sharp" / f"{path.stem.rpartition('_')[0]}{path.suffix}").resolve()
        )
    return folder
