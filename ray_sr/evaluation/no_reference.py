"""Photographs without HR: how natural a model's output looks by itself (BRISQUE), beside bicubic enlargement."""

from __future__ import annotations

import os

import numpy as np

from ray_sr.data.pairs import LeftOut, read_pixels
from ray_sr.data.sources import find_photos
from ray_sr.errors import InputError, RecipeError
from ray_sr.evaluation.evaluate import OnImage, as_batch, as_rgb, checked_scale, predict
from ray_sr.evaluation.pictures import Drawing, Panel
from ray_sr.evaluation.table import COLUMNS, Evaluation, Figures, ImageResult, first_of
from ray_sr.images.resample import upscale_array
from ray_sr.metrics import sharpness
from ray_sr.perceptual.quality import BRISQUE
from ray_sr.store import Model
from ray_sr.upscaling.engine import Engine, Precision

LARGEST = 4096
"""Sides of the largest output that is judged: the statistics of 16 megapixels take about 2 GB."""


def evaluate_alone(
    model: Model,
    photos: str | os.PathLike[str],
    brisque: BRISQUE,
    *,
    scale: int | None = None,
    pictures: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    tile: int | None = None,
    progress: OnImage | None = None,
) -> Evaluation:
    """Judge what a model makes of photos (a folder, URI or file) that have no HR: BRISQUE and sharpness.

    Of photos whose output would be larger than 4096x4096 the middle is taken. The other arguments, what is done
    with photos that cannot be read, and the errors are those of `evaluate`.
    """
    if limit is not None and limit < 1:
        raise RecipeError(f"a limit of {limit} photos leaves nothing to measure: give 1 or more")
    factor = checked_scale(model, scale, photos)
    engine = Engine(model.module, model.capability, device=device, precision=precision, tile=tile)
    files = find_photos([os.fspath(photos)])
    drawing = Drawing(pictures, [file.name for file in files]) if pictures is not None else None
    images: list[ImageResult] = []
    left_out: list[LeftOut] = []
    files = files[:limit]
    for number, file in enumerate(files, start=1):
        try:
            photo = middle(read_pixels(file), LARGEST // factor)
            before = upscale_array(photo, factor) if factor > 1 else photo
            baseline = _figures(before, brisque)  # before the network runs, for photos that cannot be judged
            after = predict(engine, photo)
            images.append(ImageResult(file.name, _figures(after, brisque), baseline))
            if drawing:
                drawing.draw(file.name, _panels(images[-1], factor, before, after))
        except InputError as error:
            left_out.append(LeftOut(file.name, str(error)))
        if progress:
            progress(number, len(files), file.name)
    if not images:
        raise InputError(f"{os.fspath(photos)}: no photo could be judged; {first_of(left_out)}")
    return Evaluation(
        model=f"{model.name}@{model.version}",
        scale=factor,
        precision=engine.precision,
        protocol=_protocol(factor),
        images=images,
        left_out=left_out,
        pictures=drawing.written if drawing else {},
    )


def middle(pixels: np.ndarray, largest: int) -> np.ndarray:
    """The middle of H×W[×C], with sides of at most `largest`."""
    top, left = (max(0, side - largest) // 2 for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + largest, left : left + largest])


def _figures(pixels: np.ndarray, brisque: BRISQUE) -> Figures:
    return {"sharpness": sharpness(pixels), "brisque": brisque(as_batch(pixels))}


def _protocol(scale: int) -> str:
    return "; ".join(
        [
            "no HR: each output is judged alone",
            f"8-bit output, at most the middle {LARGEST}x{LARGEST}",
            f"baseline: {'MATLAB bicubic, 8-bit' if scale > 1 else 'the input as it is'}",
            "sharpness: variance of the Laplacian",
            "BRISQUE: lower is better",
        ]
    )


def _panels(result: ImageResult, scale: int, before: np.ndarray, after: np.ndarray) -> list[Panel]:
    first = "BICUBIC" if scale > 1 else "INPUT"
    return [
        Panel(label, _caption(figures), as_rgb(pixels))
        for label, figures, pixels in ((first, result.baseline, before), ("PREDICTED", result.figures, after))
    ]


def _caption(figures: Figures) -> str:
    return f"BRISQUE {COLUMNS['brisque'].show(figures['brisque'])}"
