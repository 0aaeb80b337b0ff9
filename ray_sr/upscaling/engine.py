"""Runs a generator over a picture of any size, tile by tile, on one device.

The picture and its result stay on the host; only tiles travel, to and from a GPU while it computes others. The
result comes in bands from top to bottom, so that a caller who writes them away never holds the whole. When a tile
does not fit in memory, what is left is planned anew with tiles of half the side; a tile with NaN or infinite values
is run again in float32.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as GeneratorOf
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from torch import nn

from ray_sr.errors import ModelError, RecipeError, ResourceError
from ray_sr.models import Capability, Generator, folded
from ray_sr.upscaling.accelerator import exact_float32, free_memory, require_usable
from ray_sr.upscaling.copies import Copies
from ray_sr.upscaling.precision import (
    WORST_DEVIATION,
    Trial,
    deviation,
    has_fast_bfloat16,
    to_bfloat16,
    try_out,
)
from ray_sr.upscaling.tile_memory import DEVICE, measured_bytes_per_pixel
from ray_sr.upscaling.tile_results import TileResults
from ray_sr.upscaling.tiles import Span, TilePlan, plan_tiles

Precision = Literal["auto", "float32", "bf16"]
OnProgress = Callable[[float], None]
Run = Callable[[nn.Module, torch.Tensor], torch.Tensor]
Cores = list[np.ndarray]
Finish = Callable[[], Cores | None]
_Begun = tuple[Span, Sequence[Span], Finish]

LARGEST_TILE = 1024
LARGEST_CPU_TILE = 448  # larger ones leave the caches: Compact is then a third slower
LEAST_OVERLAP = 32
_CPU_TILE_BYTES = 3 << 29
_LIVE_TENSORS = 3  # of the largest kind at the same time, all float32: measured on MSRResNet and Compact
_LEVELS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """A picture H×W×C and how its result is wanted."""

    picture: np.ndarray
    dtype: np.dtype
    exact: bool

    def __post_init__(self) -> None:
        shape, dtypes = self.picture.shape, (self.picture.dtype, self.dtype)
        if len(shape) != 3 or shape[2] not in (1, 3) or not self.picture.size:
            raise ValueError(f"a picture is H×W×1 or H×W×3, not {shape}")
        if any(dtype not in _LEVELS for dtype in dtypes):
            raise ValueError(f"pictures are uint8, uint16 or float32, not {dtypes[0]} to {dtypes[1]}")


@dataclass
class EngineStats:
    """What an engine did so far: tiles, of these run again in float32, times that the tile was halved, and tiles
    whose result was there already."""

    tiles: int = 0
    reruns: int = 0
    halvings: int = 0
    reused: int = 0


class Engine:
    """A generator on a device, ready to run. One thread at a time.

    module: N×3×h×w -> N×3×(h·scale)×(w·scale), values in [0, 1]; it is copied, with BatchNorm folded.
    device: `auto` (CUDA where there is one), or as torch spells it.
    precision: `auto` is bf16 where the device multiplies it in hardware and the network bears it, else float32.
    16-bit pictures are run in float32 in any case.
    tile: largest tile as the side of a square, in input pixels, margins included; by default what fits in
    1.5 GiB on a CPU (at most 448) and in half of the free memory on a GPU (at most 1024); how much fits is
    estimated on a CPU and measured on a GPU, once.
    overlap: margin of a tile; by default the receptive field, but at most a sixth of the tile or 32 px,
    whichever is more: what very deep networks see beyond that weighs next to nothing.
    batch: tiles that are run at once. ensemble: each tile is run in its eight orientations, turned and mirrored,
    and the mean of the results, in float32, is kept (Timofte et al., Seven Ways, 2016, section 3.5).

    Networks that normalise by the whole picture run untiled where half of the memory allows it; else they are
    tiled, with a warning in the log, because no overlap makes that exact.
    Raises RecipeError for a tile without room inside its margins, ResourceError for an absent device.
    """

    def __init__(
        self,
        module: nn.Module,
        capability: Capability,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        tile: int | None = None,
        overlap: int | None = None,
        batch: int = 1,
        ensemble: bool = False,
    ) -> None:
        self.device = _device(device)
        self.capability = capability
        self.batch = batch
        self.stats = EngineStats()
        self.tile_results: TileResults | None = None  # where frames follow each other, tiles are often the same
        self.overlap = overlap
        self.ensemble = ensemble
        self.copies = Copies(self.device) if self.device.type == "cuda" else None
        self._apply: Run = nn.Module.__call__
        exact: nn.Module = folded(cast(Generator, module)).requires_grad_(False)
        exact = exact.to(self.device).to(memory_format=torch.channels_last)
        trial = try_out(exact, capability.channels)
        self._exact = self._fast = exact
        if trial.last and _wants_bf16(precision, self.device, capability):
            self._fast = _fast_twin(exact, trial, precision, capability)
        self.precision = "float32" if self._fast is exact else "bf16"
        self.tile = tile or self._default_tile(trial.values_per_pixel)
        if self.tile < self._least_tile(self.tile):
            least = self._least_tile(self.tile)
            raise RecipeError(f"a tile of {self.tile} px is too small for this network: use at least {least}")

    @property
    def scale(self) -> int:
        return self.capability.scale

    def through(self, apply: Run) -> Engine:
        """The same engine for another thread: its networks are run by apply(network, batch)."""
        twin = copy.copy(self)
        twin._apply = apply
        return twin

    def run(
        self,
        picture: np.ndarray,
        dtype: type[np.generic] | np.dtype = np.float32,
        *,
        exact: bool | None = None,
        progress: OnProgress | None = None,
    ) -> np.ndarray:
        """The whole result of `bands`: (H·scale)×(W·scale)×C."""
        bands = self.bands(picture, dtype, exact=exact, progress=progress)
        height, width, channels = picture.shape
        try:
            result = np.empty((height * self.scale, width * self.scale, channels), dtype)
        except MemoryError:
            size = f"{width * self.scale}x{height * self.scale}"
            raise ResourceError(f"no memory for a result of {size}; upscale a smaller picture") from None
        for top, band in bands:
            result[top : top + len(band)] = band
        return result

    def bands(
        self,
        picture: np.ndarray,
        dtype: type[np.generic] | np.dtype = np.float32,
        *,
        exact: bool | None = None,
        progress: OnProgress | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The upscaled picture from top to bottom: (first row, rows×(W·scale)×C) of `dtype`.

        picture: H×W×C, C = 1 or 3, uint8, uint16 or float32 in [0, 1]. Gray is run as three equal channels
        whose results are averaged: of all gray pictures, the mean is the nearest to the network's. dtype:
        float32 is neither rounded nor clamped, uint8 and uint16 are. exact: run in float32; by default for
        uint16. progress: called after each tile with the share done, in [0, 1]; what it raises ends the run.
        Raises ModelError where the network gives no finite values, ResourceError where no tile fits.
        """
        job = _Job(picture, np.dtype(dtype), picture.dtype == np.uint16 if exact is None else exact)
        return self._bands(job, progress)

    def _bands(self, job: _Job, progress: OnProgress | None) -> Iterator[tuple[int, np.ndarray]]:
        plan = self._plan(job.picture, 0)
        while (missing := (yield from self._bands_of(job, plan, progress))) is not None:
            self._halve(plan)
            # From here on only: what is above has been handed out and may be in a file already.
            plan = self._plan(job.picture, missing)

    def _bands_of(
        self, job: _Job, plan: TilePlan, progress: OnProgress | None
    ) -> GeneratorOf[tuple[int, np.ndarray], None, int | None]:
        """The bands of a plan; returns the row at which the first one begins for which memory did not suffice."""
        height, width, channels = job.picture.shape
        band = np.empty(0, job.dtype)
        for rows, some, cores in self._in_turn(job, plan):
            if cores is None:
                return rows.start
            if some[0] is plan.columns[0]:
                size = (rows.stop - rows.start) * self.scale, width * self.scale, channels
                band = np.empty(size, job.dtype)
            for span, core in zip(some, cores, strict=True):
                band[:, span.start * self.scale : span.stop * self.scale] = core
            self.stats.tiles += len(some)
            if progress:
                progress((rows.start + (rows.stop - rows.start) * some[-1].stop / width) / height)
            del cores  # or it would be there beside its band
            if some[-1] is plan.columns[-1]:
                yield rows.start * self.scale, band
                band = np.empty(0, job.dtype)  # or it would be there beside the next one
        return None

    def _in_turn(self, job: _Job, plan: TilePlan) -> Iterator[tuple[Span, Sequence[Span], Cores | None]]:
        """Rows and columns of tiles that run at once, with their results, in the order of the plan.

        Where copies run beside the network, the next tiles are begun before the results of these are waited for.
        None for those for which memory did not suffice: none come after them.
        """
        begun: deque[_Begun] = deque()
        for rows, some in _parts(plan, self.batch):
            begun.append((rows, some, self._begin(job, rows, some)))
            if begun[-1][2] is _failed:
                break
            if len(begun) > (self.copies is not None):
                yield _finished(begun)
        while begun:
            yield _finished(begun)

    def _plan(self, picture: np.ndarray, top: int) -> TilePlan:
        height, width = picture.shape[:2]
        overlap = self._overlap_of(self.tile)
        plan = plan_tiles(height, width, self.tile, overlap, self.capability.multiple, top)
        if self.capability.whole_image_norm and (top or len(plan) > 1):
            _log.warning("%dx%d does not fit in memory at once: tiles will differ in tone", width, height)
        return plan

    def _overlap_of(self, tile: int) -> int:
        if self.overlap is not None:
            return self.overlap
        return min(self.capability.receptive_field, max(LEAST_OVERLAP, tile // 6))

    def _least_tile(self, tile: int) -> int:
        return 2 * self._overlap_of(tile) + 8 * self.capability.multiple

    def _default_tile(self, values_per_pixel: float) -> int:
        whole = self.capability.whole_image_norm
        estimate = max(4.0, 4 * values_per_pixel * _LIVE_TENSORS)
        measured = measured_bytes_per_pixel(self._fast, self.capability, self.device, self.precision, estimate)
        pixels = _memory_for_tiles(self.device, whole) / (measured or estimate)
        side = math.isqrt(int(pixels))
        largest = LARGEST_CPU_TILE if self.device.type == "cpu" else LARGEST_TILE
        return max(self._least_tile(side), side if whole else min(side, largest))

    def _halve(self, plan: TilePlan) -> None:
        """Makes room after a failure: fewer tiles at once, or else smaller ones."""
        self.stats.halvings += 1
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.batch > 1:  # first, because smaller tiles have more margin, which is computed in vain
            self.batch //= 2
            return
        height, width = plan.source_size
        side = math.isqrt(height * width) // 2
        if side < self._least_tile(side):
            raise ResourceError(
                f"out of memory on {self.device} with a tile of {width}x{height}, and smaller ones are not "
                "possible: free some memory or use another device"
            )
        self.tile = side
        _log.warning("out of memory on %s: going on with tiles of %d px", self.device, side)

    def _begin(self, job: _Job, rows: Span, columns: Sequence[Span]) -> Finish:
        """Begins tiles side by side; with `tile_results`, only those that are not known."""
        if self.tile_results is None:
            return self._begin_cores(job, rows, columns)
        known = self.tile_results
        keys = [
            TileResults.key(
                _cut(job.picture, rows, span), self._inner(rows), self._inner(span), job.dtype, job.exact
            )
            for span in columns
        ]
        found = [known.get(key) for key in keys]
        missing = [span for span, core in zip(columns, found, strict=True) if core is None]
        finish_missing: Finish = self._begin_cores(job, rows, missing) if missing else list
        if finish_missing is _failed:
            return _failed

        def finish() -> Cores | None:
            new = finish_missing()
            if new is None:
                return None
            self.stats.reused += len(columns) - len(missing)
            fresh = iter(new)
            cores = [next(fresh) if core is None else core for core in found]
            for key, core in zip(keys, cores, strict=True):
                known.put(key, core if self.copies is None else core.copy())  # page-locked memory is scarce
            return cores

        return finish

    def _begin_cores(self, job: _Job, rows: Span, columns: Sequence[Span]) -> Finish:
        """Begins to run tiles; without `copies` they are done with that."""
        if self.copies is None:
            cores = self._cores(job, rows, columns)
            return _failed if cores is None else lambda: cores
        try:
            with self._running():
                return self._send(self.copies, job, rows, columns)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        return _failed

    def _send(self, copies: Copies, job: _Job, rows: Span, columns: Sequence[Span]) -> Finish:
        """Hands tiles to the device, whose results come back beside the next tiles."""
        tiles = torch.from_numpy(self._stacked(job, rows, columns))
        results = self._results(self._network(job), self._to_batch(copies.upload(tiles), job.picture.dtype))
        finite = torch.isfinite(results).all()
        arrive = copies.download([finite, *self._cores_of(results, job, rows, columns)])

        def finish() -> Cores | None:
            is_finite, *cores = arrive()
            if not is_finite:
                return self._cores(job, rows, columns)  # again, waiting at each step
            return [_to_array(core, job.dtype) for core in cores]

        return finish

    def _cores(self, job: _Job, rows: Span, columns: Sequence[Span]) -> Cores | None:
        """The results of tiles side by side, without their margins; None where memory did not suffice."""
        try:
            with self._running():
                tiles = torch.from_numpy(self._stacked(job, rows, columns)).to(self.device)
                results = self._finite(self._to_batch(tiles, job.picture.dtype), self._network(job))
                return [_to_array(core.cpu(), job.dtype) for core in self._cores_of(results, job, rows, columns)]
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        return None  # outside of the handler, so that the failure's tensors are gone before the next attempt

    @contextmanager
    def _running(self) -> Iterator[None]:
        with DEVICE.among_others(), torch.inference_mode(), exact_float32(self.device):
            yield

    def _network(self, job: _Job) -> nn.Module:
        return self._exact if job.exact else self._fast

    def _inner(self, span: Span) -> slice:
        """Where the core lies in the result of the source."""
        start = (span.start - span.source_start) * self.scale
        return slice(start, start + (span.stop - span.start) * self.scale)

    def _stacked(self, job: _Job, rows: Span, columns: Sequence[Span]) -> np.ndarray:
        """The sources of tiles as they travel: N×h×w×C, uint8 or float32."""
        tiles = np.stack([_cut(job.picture, rows, span) for span in columns])
        return tiles if tiles.dtype == np.uint8 else tiles.astype(np.float32)

    def _to_batch(self, tiles: torch.Tensor, dtype: np.dtype) -> torch.Tensor:
        """N×h×w×C with the levels of `dtype` to float32 N×3×h×w in [0, 1], channels last."""
        batch = tiles.to(torch.float32).div_(_LEVELS[dtype]).permute(0, 3, 1, 2)
        batch = batch.expand(-1, self.capability.channels, -1, -1)
        return batch.contiguous(memory_format=torch.channels_last)

    def _cores_of(
        self, results: torch.Tensor, job: _Job, rows: Span, columns: Sequence[Span]
    ) -> Iterator[torch.Tensor]:
        """N×3×h×w to h×w×C of each core, rounded on the device so that the fewest bytes travel."""
        if job.picture.shape[2] == 1:
            results = results.mean(1, keepdim=True)
        for result, span in zip(results, columns, strict=True):
            yield _rounded(result[:, self._inner(rows), self._inner(span)], job.dtype).permute(1, 2, 0)

    def _results(self, network: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """float32 results of one network: of the batch, or the mean of those of its eight orientations."""
        if not self.ensemble:
            return self._apply(network, batch).to(torch.float32)
        return sum(_orientations(network, batch), torch.zeros((), device=batch.device)) / 8

    def _finite(self, batch: torch.Tensor, network: nn.Module) -> torch.Tensor:
        """The network's results, float32; those that are not finite come from a second run in float32."""
        results = self._results(network, batch)
        finite = torch.isfinite(results).flatten(1).all(1)
        if finite.all():
            return results
        broken = ~finite
        self.stats.reruns += int(broken.sum())
        again = self._results(self._exact, batch[broken])
        if not torch.isfinite(again).all():
            raise ModelError("the network gives values that are not finite, in float32 too: check its weights")
        results[broken] = again
        return results


def _orientations(network: nn.Module, batch: torch.Tensor) -> Iterator[torch.Tensor]:
    """The network's results, float32, of the batch in each of its eight orientations, turned back."""
    for turns in range(4):
        turned = torch.rot90(batch, turns, (2, 3))
        for mirrored in (False, True):
            view = turned.flip(3) if mirrored else turned
            result = network(view.contiguous(memory_format=torch.channels_last)).to(torch.float32)
            yield torch.rot90(result.flip(3) if mirrored else result, -turns, (2, 3))


def _cut(picture: np.ndarray, rows: Span, columns: Span) -> np.ndarray:
    """The source of a tile; the last row and column are repeated where it passes the border."""
    height, width = picture.shape[:2]
    part = picture[rows.source_start : rows.source_stop, columns.source_start : columns.source_stop]
    below, beside = max(0, rows.source_stop - height), max(0, columns.source_stop - width)
    return np.pad(part, ((0, below), (0, beside), (0, 0)), mode="edge") if below or beside else part


def _rounded(result: torch.Tensor, dtype: np.dtype) -> torch.Tensor:
    """[0, 1] to the levels of `dtype`; 16 bits as int32."""
    levels = _LEVELS[dtype]
    if levels == 1:
        return result
    return result.clamp(0, 1).mul_(levels).round_().to(torch.uint8 if levels == 255 else torch.int32)


def _to_array(core: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    return core.numpy().astype(dtype, copy=False)


def _parts(plan: TilePlan, batch: int) -> Iterator[tuple[Span, Sequence[Span]]]:
    """Rows and columns of tiles that run at once, `batch` of them where a row has as many."""
    for rows in plan.rows:
        for first in range(0, len(plan.columns), batch):
            yield rows, plan.columns[first : first + batch]


def _finished(begun: deque[_Begun]) -> tuple[Span, Sequence[Span], Cores | None]:
    """Of the tiles that were begun first; nothing of them stays here."""
    rows, some, finish = begun.popleft()
    return rows, some, finish()


def _failed() -> None:
    """The results of tiles for which memory did not suffice."""


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ResourceError(f"device {name} cannot be used ({reason}): choose auto, cpu or cuda") from None
    require_usable(device)
    return device


def _wants_bf16(precision: str, device: torch.device, capability: Capability) -> bool:
    """Statistics of the whole picture lose too much in bfloat16 (Fast-SRGAN: 0.014 dB of PSNR on Set5)."""
    if precision not in ("auto", "float32", "bf16"):
        raise RecipeError(f"precision {precision!r} is unknown: choose auto, float32 or bf16")
    suits = capability.bf16 and not capability.whole_image_norm and has_fast_bfloat16(device)
    return precision == "bf16" or (precision == "auto" and suits)


def _fast_twin(exact: nn.Module, trial: Trial, precision: str, capability: Capability) -> nn.Module:
    """The network in bfloat16; with `auto` the network itself where bfloat16 changes its results too much."""
    fast = to_bfloat16(exact, trial, capability.residual)
    if precision == "bf16" or deviation(fast, exact, capability.channels) <= WORST_DEVIATION:
        return fast
    _log.info("bfloat16 would change this network's results too much: it runs in float32")
    return exact


def _memory_for_tiles(device: torch.device, whole: bool) -> int:
    """Bytes that one run of the network may take."""
    if device.type == "cuda":
        return free_memory(device) // 2
    if whole:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return _CPU_TILE_BYTES


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error)
    return "not enough memory" in words or "allocate memory" in words  # torch's CPU allocator has no own type
