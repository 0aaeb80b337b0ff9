"""Benchmark tables: how near a model comes to HR photos, with bicubic enlargement beside it.

The protocol is that of published tables: HR cropped to a multiple of the scale, LR by MATLAB's bicubic, the
prediction clamped and rounded to 8 bits, a border of `scale` pixels left out. Every result carries it in words.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from ray_sr.data.pairs import LeftOut, Pair, PairFiles, find_pairs, read_pair
from ray_sr.errors import InputError, ModelError, RecipeError
from ray_sr.evaluation.pictures import Drawing, Panel
from ray_sr.evaluation.table import COLUMNS, Evaluation, Figures, ImageResult, first_of, ratio_of
from ray_sr.images.resample import upscale_array
from ray_sr.metrics import Protocol, measure, sharpness
from ray_sr.perceptual.quality import BRISQUE, DISTS, LPIPS
from ray_sr.perceptual.vgg import FeatureMaps, vgg19_feature_distance
from ray_sr.store import Model
from ray_sr.upscaling.engine import Engine, Precision

OnImage = Callable[[int, int, str], None]


def evaluate(
    model: Model,
    hr_folder: str | os.PathLike[str],
    lr_folder: str | os.PathLike[str] | None = None,
    *,
    scale: int | None = None,
    pictures: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    tile: int | None = None,
    features: FeatureMaps | None = None,
    lpips: LPIPS | None = None,
    dists: DISTS | None = None,
    brisque: BRISQUE | None = None,
    progress: OnImage | None = None,
) -> Evaluation:
    """Measure a model on a folder of HR photos: PSNR, SSIM, and sharpness with its ratio to HR's.

    LR is made of HR by MATLAB's bicubic, or taken from `lr_folder`; x1 models (deblurring) need that folder and
    are compared with their input, whole (no border). Gray photos are measured as gray. pictures: folder for one
    side-by-side PNG a photo. limit: only the first so many photos. features: network of
    `features.distance_network`, for the vgg19_conv3_4 distance. lpips, dists, brisque: what `load_…` of
    `perceptual.quality` gives, for lpips_alex (or _vgg, _squeeze), dists and brisque. progress: called after each
    photo with (done, total, name).

    Photos that cannot be read or matched are named in `left_out` and the rest goes on. Raises InputError where
    no photo is left or a folder is missing, RecipeError for options, ModelError where the model has another
    scale, ResourceError where pictures cannot be written.
    """
    factor = checked_scale(model, scale, lr_folder)
    if limit is not None and limit < 1:
        raise RecipeError(f"a limit of {limit} photos leaves nothing to measure: give 1 or more")
    files, left_out = find_pairs(hr_folder, lr_folder, factor)
    engine = Engine(model.module, model.capability, device=device, precision=precision, tile=tile)
    bench = _Bench(factor, engine, features, lpips, dists, brisque)
    drawing = Drawing(pictures, [entry.name for entry in files]) if pictures is not None else None
    images: list[ImageResult] = []
    files = files[:limit]
    for number, entry in enumerate(files, start=1):
        try:
            images.append(bench.run(entry, drawing))
        except InputError as error:
            left_out.append(LeftOut(entry.name, str(error)))
        if progress:
            progress(number, len(files), entry.name)
    if not images:
        raise InputError(f"{os.fspath(hr_folder)}: no photo could be measured; {first_of(left_out)}")
    return Evaluation(
        model=f"{model.name}@{model.version}",
        scale=factor,
        precision=engine.precision,
        protocol=_protocol(bench, made=lr_folder is None),
        images=images,
        left_out=left_out,
        pictures=drawing.written if drawing else {},
    )


def checked_scale(model: Model, scale: int | None, lr_folder: object) -> int:
    """The model's scale; ModelError where another one is asked for, RecipeError for x1 without input photos."""
    own = model.capability.scale
    if scale is not None and scale != own:
        raise ModelError(f"{model.name} enlarges x{own}, not x{scale}: leave the scale out or give another model")
    if own == 1 and lr_folder is None:
        raise RecipeError(f"{model.name} is a x1 model: give the folder of its input photos (--lr)")
    return own


def _protocol(bench: _Bench, *, made: bool) -> str:
    scale = bench.scale
    source = f"MATLAB bicubic of HR cropped to a multiple of {scale}" if made else "given photos"
    baseline = "MATLAB bicubic, 8-bit" if scale > 1 else "the input as it is"
    sharp = "sharpness: variance of the Laplacian, whole photo"
    parts = [Protocol(_border(scale)).describe(), f"LR: {source}", f"baseline: {baseline}", sharp]
    if bench.features:
        parts.append("VGG19 conv3_4: mean squared distance of unit feature vectors, not LPIPS, lower is better")
    if bench.lpips:
        parts.append(f"LPIPS: version 0.1, {bench.lpips.name}, 8-bit output, whole photo, lower is better")
    if bench.dists:
        parts.append("DISTS: 8-bit output, whole photo, shorter side at most 256, lower is better")
    if bench.brisque:
        parts.append("BRISQUE: 8-bit output alone, whole photo, lower is better")
    return "; ".join(parts)


def _border(scale: int) -> int:
    """Deblurring tables compare whole photos."""
    return scale if scale > 1 else 0


class _Bench:
    """Runs and measures photo by photo."""

    def __init__(
        self,
        scale: int,
        engine: Engine,
        features: FeatureMaps | None = None,
        lpips: LPIPS | None = None,
        dists: DISTS | None = None,
        brisque: BRISQUE | None = None,
    ) -> None:
        self.scale, self.engine, self.features = scale, engine, features
        self.lpips, self.dists, self.brisque = lpips, dists, brisque

    def run(self, files: PairFiles, drawing: Drawing | None) -> ImageResult:
        pair = read_pair(files, self.scale)
        baseline = upscale_array(pair.lr, self.scale) if self.scale > 1 else pair.lr
        expected = self.measure(baseline, pair.hr)  # before the network runs, for photos too small to measure
        output = predict(self.engine, pair.lr)
        result = ImageResult(files.name, self.measure(output, pair.hr), expected)
        if drawing:
            drawing.draw(files.name, _panels(result, pair, baseline, output))
        return result

    def measure(self, output: np.ndarray, hr: np.ndarray) -> Figures:
        figures = measure(output, hr, border=_border(self.scale))
        figures |= {"sharpness": sharpness(output), "sharpness_hr": sharpness(hr)}
        figures["sharpness_ratio"] = ratio_of(figures)
        if self.features is not None:
            distance = vgg19_feature_distance(as_batch(output), as_batch(hr), self.features)
            figures["vgg19_conv3_4"] = float(distance)
        if self.lpips is not None:
            with torch.inference_mode():
                figures[f"lpips_{self.lpips.name}"] = float(self.lpips(as_batch(output), as_batch(hr)))
        if self.dists is not None:
            with torch.inference_mode():
                figures["dists"] = float(self.dists(as_batch(output), as_batch(hr)))
        if self.brisque is not None:
            figures["brisque"] = self.brisque(as_batch(output))
        return figures


def predict(engine: Engine, lr: np.ndarray) -> np.ndarray:
    """What the network makes of uint8 H×W×3, or of H×W, gray; of the same kind."""
    if lr.ndim == 3:
        return engine.run(lr, np.uint8)
    return engine.run(lr[..., None], np.uint8)[..., 0]


def _panels(result: ImageResult, pair: Pair, baseline: np.ndarray, output: np.ndarray) -> list[Panel]:
    """At x1 the input is its own baseline, so there are three."""
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    before, after = _caption(result.baseline), _caption(result.figures)
    original, predicted = (
        Panel("ORIGINAL", _size(pair.hr), as_rgb(pair.hr)),
        Panel("PREDICTED", after, as_rgb(output)),
    )
    if scale == 1:
        return [original, Panel("INPUT", before, as_rgb(pair.lr)), predicted]
    low = as_rgb(pair.lr.repeat(scale, axis=0).repeat(scale, axis=1))
    return [original, Panel("LOW", _size(pair.lr), low), Panel("BICUBIC", before, as_rgb(baseline)), predicted]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} × {pixels.shape[0]} px"


def _caption(figures: Figures) -> str:
    return f"PSNR-Y {COLUMNS['psnr_y'].show(figures['psnr_y'])} dB, SSIM {figures['ssim_y']:.4f}"


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """H×W×3, of H×W three equal channels."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def as_batch(pixels: np.ndarray) -> torch.Tensor:
    """uint8 H×W×3 or H×W as float32 1×3×H×W in [0, 1]."""
    return torch.from_numpy(as_rgb(pixels).astype(np.float32) / 255).permute(2, 0, 1)[None]
