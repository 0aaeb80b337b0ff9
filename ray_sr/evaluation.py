"""Benchmark tables: how near a model comes to HR photos, with bicubic enlargement beside it.

The protocol is that of published tables: HR cropped to a multiple of the scale, LR by MATLAB's bicubic, the
prediction clamped and rounded to 8 bits, a border of `scale` pixels left out. Every result carries it in words.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ray_sr.errors import InputError, ModelError, RecipeError, ResourceError
from ray_sr.features import FeatureMaps, vgg19_feature_distance
from ray_sr.images import write_bytes
from ray_sr.lpips import LPIPS
from ray_sr.metrics import Protocol, mean_metrics, measure, sharpness
from ray_sr.model_store import Model
from ray_sr.photo_pairs import LeftOut, Pair, PairFiles, find_pairs, read_pair
from ray_sr.pictures import Panel, side_by_side
from ray_sr.resample import upscale_array
from ray_sr.storage import first_line
from ray_sr.upscaling.engine import Engine, Precision

Figures = dict[str, float]
Progress = Callable[[int, int, str], None]

_LINE = 100


@dataclass(frozen=True)
class Column:
    """How a figure is shown: its heading, its digits behind the point, which of two is the better; and whether
    a terminal's table is broken before it."""

    label: str
    digits: int
    lower_is_better: bool = False
    begins_table: bool = False

    def show(self, value: float) -> str:
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "inf"


COLUMNS = {
    "psnr_y": Column("PSNR-Y", 2),
    "ssim_y": Column("SSIM-Y", 4),
    "psnr_rgb": Column("PSNR-RGB", 2),
    "ssim_rgb": Column("SSIM-RGB", 4),
    "sharpness": Column("sharpness", 1, begins_table=True),
    "sharpness_ratio": Column("sharp/HR", 3),
    "vgg19_conv3_4": Column("VGG19 conv3_4", 4, lower_is_better=True),
    "lpips_alex": Column("LPIPS", 4, lower_is_better=True),
    "lpips_vgg": Column("LPIPS-VGG", 4, lower_is_better=True),
    "lpips_squeeze": Column("LPIPS-Squeeze", 4, lower_is_better=True),
}


@dataclass(frozen=True)
class ImageResult:
    """Figures of one photo: of the model's output and of the baseline."""

    name: str
    figures: Figures
    baseline: Figures


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `pictures` are the PNG files written, by photo name."""

    model: str
    scale: int
    precision: str
    protocol: str
    images: list[ImageResult]
    left_out: list[LeftOut] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)

    @property
    def baseline_name(self) -> str:
        """`bicubic`; at x1, where there is nothing to enlarge, the unchanged `input`."""
        return "bicubic" if self.scale > 1 else "input"

    @property
    def mean(self) -> Figures:
        """Means over the photos; sharpness_ratio is the ratio of the two mean sharpnesses."""
        return _mean([image.figures for image in self.images])

    @property
    def bicubic(self) -> Figures:
        """The same of the baseline."""
        return _mean([image.baseline for image in self.images])

    @property
    def columns(self) -> list[str]:
        """Names of the figures that a table shows, in their order."""
        return [name for name in COLUMNS if name in self.images[0].figures]

    def rows(self) -> list[ImageResult]:
        """What a table shows: every photo and, last, the mean."""
        return [*self.images, ImageResult("mean", self.mean, self.bicubic)]

    def table(self) -> str:
        """Text for a terminal: the protocol, a line for each photo, the mean; sharpness and what was left out.

        PSNR and SSIM are in the first table; no table is wider than 100 columns, however many figures there are.
        """
        head = [f"{self.model}, x{self.scale}, {self.precision}", *textwrap.wrap(self.protocol, _LINE)]
        tables = (_ruled(_aligned(block)) for block in self._blocks())
        left_out = [f"left out: {photo.name}: {photo.reason}" for photo in self.left_out]
        return "\n\n".join(["\n".join(head), *tables, "\n".join([self._sharpness(), *left_out])])

    def to_json(self) -> dict[str, Any]:
        """One object for `--json`. JSON has no infinity: the PSNR of a photo equal to its reference is null."""
        images = [
            {"name": image.name, **_json(image.figures), "bicubic": _json(image.baseline)} for image in self.images
        ]
        return {
            "model": self.model,
            "scale": self.scale,
            "precision": self.precision,
            "protocol": self.protocol,
            "baseline": self.baseline_name,
            "images": images,
            "mean": _json(self.mean),
            "bicubic": _json(self.bicubic),
            "left_out": [{"name": photo.name, "reason": photo.reason} for photo in self.left_out],
        }

    def _blocks(self) -> list[list[list[str]]]:
        """Cells by row, the heading first: comparisons of pixels, then of looks, as many side by side as fit."""
        names = [["photo"], *([row.name] for row in self.rows())]
        blocks, block = [], names
        for column in self.columns:
            pair = self._pair(column)
            wider = _beside(block, pair)
            too_wide = len(_aligned(wider)[0]) > _LINE
            if block is not names and (too_wide or COLUMNS[column].begins_table):
                blocks.append(block)
                wider = _beside(names, pair)
            block = wider
        return [*blocks, block]

    def _pair(self, name: str) -> list[list[str]]:
        """The cells of one figure: heading, photos, mean; of the model and of the baseline."""
        column = COLUMNS[name]
        cells = [[column.show(row.figures[name]), column.show(row.baseline[name])] for row in self.rows()]
        return [[column.label, self.baseline_name], *cells]

    def _sharpness(self) -> str:
        """The line of system E's table: mean sharpness before and after, and its share of HR's."""
        shares = [
            f"{name} {figures['sharpness']:.1f} ({figures['sharpness_ratio']:.1%})"
            for name, figures in ((self.baseline_name, self.bicubic), ("model", self.mean))
        ]
        return f"mean sharpness: {', '.join(shares)} of HR's {self.mean['sharpness_hr']:.1f}"


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
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on a folder of HR photos: PSNR, SSIM, and sharpness with its ratio to HR's.

    LR is made of HR by MATLAB's bicubic, or taken from `lr_folder`; x1 models (deblurring) need that folder and
    are compared with their input, whole (no border). Gray photos are measured as gray. pictures: folder for one
    side-by-side PNG a photo. limit: only the first so many photos. features: network of
    `features.distance_network`, for the vgg19_conv3_4 distance. lpips: what `lpips.load_lpips` gives, for
    lpips_alex (or _vgg, _squeeze). progress: called after each photo with (done, total, name).

    Photos that cannot be read or matched are named in `left_out` and the rest goes on. Raises InputError where
    no photo is left or a folder is missing, RecipeError for options, ModelError where the model has another
    scale, ResourceError where pictures cannot be written.
    """
    factor = _checked_scale(model, scale, lr_folder)
    if limit is not None and limit < 1:
        raise RecipeError(f"a limit of {limit} photos leaves nothing to measure: give 1 or more")
    files, left_out = find_pairs(hr_folder, lr_folder, factor)
    engine = Engine(model.module, model.capability, device=device, precision=precision, tile=tile)
    bench = _Bench(factor, engine, features, lpips)
    drawing = _Drawing(Path(pictures), files) if pictures is not None else None
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
        raise InputError(f"{os.fspath(hr_folder)}: no photo could be measured; {_first(left_out)}")
    return Evaluation(
        model=f"{model.name}@{model.version}",
        scale=factor,
        precision=engine.precision,
        protocol=_protocol(bench, made=lr_folder is None),
        images=images,
        left_out=left_out,
        pictures=drawing.written if drawing else {},
    )


def _checked_scale(model: Model, scale: int | None, lr_folder: object) -> int:
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
    return "; ".join(parts)


def _border(scale: int) -> int:
    """Deblurring tables compare whole photos."""
    return scale if scale > 1 else 0


class _Bench:
    """Runs and measures photo by photo."""

    def __init__(
        self, scale: int, engine: Engine, features: FeatureMaps | None = None, lpips: LPIPS | None = None
    ) -> None:
        self.scale, self.engine, self.features, self.lpips = scale, engine, features, lpips

    def run(self, files: PairFiles, drawing: _Drawing | None) -> ImageResult:
        pair = read_pair(files, self.scale)
        baseline = upscale_array(pair.lr, self.scale) if self.scale > 1 else pair.lr
        expected = self.measure(baseline, pair.hr)  # before the network runs, for photos too small to measure
        output = self._predict(pair.lr)
        result = ImageResult(files.name, self.measure(output, pair.hr), expected)
        if drawing:
            drawing.draw(result, pair, baseline, output)
        return result

    def measure(self, output: np.ndarray, hr: np.ndarray) -> Figures:
        figures = measure(output, hr, border=_border(self.scale))
        figures |= {"sharpness": sharpness(output), "sharpness_hr": sharpness(hr)}
        figures["sharpness_ratio"] = _ratio(figures)
        if self.features is not None:
            distance = vgg19_feature_distance(_batch(output), _batch(hr), self.features)
            figures["vgg19_conv3_4"] = float(distance)
        if self.lpips is not None:
            figures[f"lpips_{self.lpips.name}"] = float(self.lpips(_batch(output), _batch(hr)))
        return figures

    def _predict(self, lr: np.ndarray) -> np.ndarray:
        if lr.ndim == 3:
            return self.engine.run(lr, np.uint8)
        return self.engine.run(lr[..., None], np.uint8)[..., 0]


class _Drawing:
    """Writes ORIGINAL / LOW / BICUBIC / PREDICTED pictures into a folder, with the subfolders of the photos."""

    def __init__(self, folder: Path, files: Sequence[PairFiles]) -> None:
        self.folder = folder
        self.written: dict[str, Path] = {}
        self.stems = Counter(PurePosixPath(entry.name).with_suffix("") for entry in files)
        _make_folder(folder)

    def draw(self, result: ImageResult, pair: Pair, baseline: np.ndarray, output: np.ndarray) -> None:
        stem = PurePosixPath(result.name).with_suffix("")
        name = stem if self.stems[stem] == 1 else result.name  # photos that differ by suffix alone keep theirs
        path = self.folder / f"{name}.png"
        _make_folder(path.parent)
        write_bytes(path, side_by_side(result.name, _panels(result, pair, baseline, output)))
        self.written[result.name] = path


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot make this folder: {first_line(error)}") from None


def _panels(result: ImageResult, pair: Pair, baseline: np.ndarray, output: np.ndarray) -> list[Panel]:
    """At x1 the input is its own baseline, so there are three."""
    scale = pair.hr.shape[0] // pair.lr.shape[0]
    before, after = _caption(result.baseline), _caption(result.figures)
    original, predicted = Panel("ORIGINAL", _size(pair.hr), _rgb(pair.hr)), Panel("PREDICTED", after, _rgb(output))
    if scale == 1:
        return [original, Panel("INPUT", before, _rgb(pair.lr)), predicted]
    low = _rgb(pair.lr.repeat(scale, axis=0).repeat(scale, axis=1))
    return [original, Panel("LOW", _size(pair.lr), low), Panel("BICUBIC", before, _rgb(baseline)), predicted]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} × {pixels.shape[0]} px"


def _caption(figures: Figures) -> str:
    return f"PSNR-Y {COLUMNS['psnr_y'].show(figures['psnr_y'])} dB, SSIM {figures['ssim_y']:.4f}"


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _batch(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(_rgb(pixels).astype(np.float32) / 255).permute(2, 0, 1)[None]


def _mean(entries: Sequence[Figures]) -> Figures:
    means = mean_metrics(entries)
    if "sharpness_ratio" in means:
        means["sharpness_ratio"] = _ratio(means)
    return means


def _ratio(figures: Figures) -> float:
    """Sharpness to HR's; 1 where both are flat."""
    if figures["sharpness_hr"]:
        return figures["sharpness"] / figures["sharpness_hr"]
    return math.inf if figures["sharpness"] else 1.0


def _json(figures: Figures) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _first(left_out: Sequence[LeftOut]) -> str:
    return f"the first of {len(left_out)}: {left_out[0].name}: {left_out[0].reason}"


def _beside(left: list[list[str]], right: list[list[str]]) -> list[list[str]]:
    return [cells + more for cells, more in zip(left, right, strict=True)]


def _ruled(lines: list[str]) -> str:
    """Rules under the heading and above the last line."""
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


# ------------------------------------------------------------------------------------------ self-check

# Set, scale: PSNR in dB and SSIM on Y of MATLAB's bicubic, as EDSR (arXiv 1707.02921, table 3) and others print.
PUBLISHED_BICUBIC = {
    ("Set5", 2): (33.66, 0.9299),
    ("Set5", 3): (30.39, 0.8682),
    ("Set5", 4): (28.42, 0.8104),
    ("Set14", 2): (30.24, 0.8688),
    ("Set14", 3): (27.55, 0.7742),
    ("Set14", 4): (26.00, 0.7027),
}
PSNR_TOLERANCE, SSIM_TOLERANCE = 0.02, 0.001


@dataclass(frozen=True)
class CheckRow:
    """Bicubic's figures on one set, measured here and published."""

    set: str
    scale: int
    psnr_y: float
    ssim_y: float
    published_psnr_y: float
    published_ssim_y: float

    @property
    def ok(self) -> bool:
        """Within 0.02 dB and 0.001."""
        psnr_off = abs(self.psnr_y - self.published_psnr_y)
        return psnr_off <= PSNR_TOLERANCE and abs(self.ssim_y - self.published_ssim_y) <= SSIM_TOLERANCE


@dataclass(frozen=True)
class SelfCheck:
    """Whether resizing, metrics and protocol of this installation give the figures that everybody publishes."""

    rows: list[CheckRow]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def table(self) -> str:
        """Aligned text for a terminal."""
        cells = [["set", "scale", "PSNR-Y", "published", "SSIM-Y", "published", ""]]
        for row in self.rows:
            psnr_cells = [f"{row.psnr_y:.3f}", f"{row.published_psnr_y:.2f}"]
            ssim_cells = [f"{row.ssim_y:.4f}", f"{row.published_ssim_y:.4f}"]
            cells.append([row.set, f"x{row.scale}", *psnr_cells, *ssim_cells, "ok" if row.ok else "DIFFERS"])
        return "\n".join(_aligned(cells))

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "rows": [{**row.__dict__, "ok": row.ok} for row in self.rows]}


def self_check(
    benchmarks_folder: str | os.PathLike[str],
    *,
    scales: Sequence[int] = (2, 3, 4),
    progress: Progress | None = None,
) -> SelfCheck:
    """Measure bicubic on FOLDER/Set5/HR and FOLDER/Set14/HR at these scales against the published figures.

    A set whose folder is absent is left out; InputError where both are, or where a photo cannot be read.
    progress: called after each set and scale with (done, total, what).
    """
    folder = Path(benchmarks_folder)
    known = [key for key in PUBLISHED_BICUBIC if key[1] in scales and (folder / key[0] / "HR").is_dir()]
    if not known:
        raise InputError(f"{folder}: neither Set5/HR nor Set14/HR is in this folder: give the one that holds them")
    rows = []
    for number, (name, scale) in enumerate(known, start=1):
        figures = _bicubic_figures(folder / name / "HR", scale)
        rows.append(CheckRow(name, scale, figures["psnr_y"], figures["ssim_y"], *PUBLISHED_BICUBIC[name, scale]))
        if progress:
            progress(number, len(known), f"{name} x{scale}")
    return SelfCheck(rows)


def _bicubic_figures(folder: Path, scale: int) -> Figures:
    figures = []
    for files in find_pairs(folder, None, scale)[0]:
        try:
            pair = read_pair(files, scale)
        except InputError as error:
            raise InputError(f"{folder / files.name}: {error}") from None
        figures.append(measure(upscale_array(pair.lr, scale), pair.hr, border=scale))
    return mean_metrics(figures)
