"""Which inputs are clips or animations, where their results go, and how options of photos apply to them."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_sr.errors import RecipeError, ResourceError
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions
from ray_sr.upscaling.results import FileResult
from ray_sr.upscaling.target_size import TargetSize
from ray_sr.video.animations import upscale_animation
from ray_sr.video.clip import CLIP_SUFFIXES, RESULT_SUFFIXES
from ray_sr.video.options import ClipOptions, ClipResult

ANIMATIONS = {".gif": "gif", ".webp": "webp", ".png": "png", ".apng": "png"}

_HEAD_BYTES = 1 << 20


def split_inputs(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Inputs that are photos (or folders, or are not there), and files that move. Patterns are expanded where one
    of their matches moves."""
    photos: list[str] = []
    moving: list[str] = []
    for name in inputs:
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        found = [match for match in matches if is_moving(match)]
        moving += found
        photos += [match for match in matches if match not in found] if found else [name]
    return photos, list(dict.fromkeys(moving))


def is_moving(path: str) -> bool:
    """Whether this is a clip or an animation: by its name, and for .webp and .png by what the file says."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in CLIP_SUFFIXES or suffix in (".gif", ".apng"):
        return os.path.isfile(path)
    if suffix not in ANIMATIONS or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    if head[:4] == b"RIFF":
        return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and 0 <= head.find(b"acTL") < (head.find(b"IDAT") % (1 << 62))


@dataclass(frozen=True)
class MovingJob:
    """A clip or animation and the place of its result."""

    source: Path
    target: Path

    @property
    def is_animation(self) -> bool:
        return self.target.suffix.lower() in ANIMATIONS


def plan_moving(
    inputs: Sequence[str], output: str | None, suffix: str, format: str | None, others: int = 0
) -> list[MovingJob]:
    """Where each result goes; see `ray_sr.upscaling.naming.plan_jobs`, which does it for photos. others: how many
    inputs there are beside these.

    Clips keep their container where results can have it, else .mkv, which holds any sound; animations theirs,
    or what `format` says. Raises RecipeError where that cannot be.
    """
    file = _output_file(output)
    if file and len(inputs) + others != 1:
        raise RecipeError(f"{file} names one file, but there are {len(inputs) + others}: name a folder")
    jobs: dict[Path, MovingJob] = {}
    for name in inputs:
        source = Path(name)
        ending = suffix + _ending(source, format)
        place = source.with_name(source.stem + ending) if output is None else Path(output, source.stem + ending)
        if place in jobs:
            place = place.with_name(f"{source.name.replace('.', '_')}{ending}")
        target = file or place
        if os.path.realpath(target) == os.path.realpath(source):
            raise RecipeError(f"{target}: the result would replace its source: use another folder or --suffix")
        if source.suffix.lower() in CLIP_SUFFIXES and target.suffix.lower() in ANIMATIONS:
            raise RecipeError(f"{target}: a clip's result must end in one of {', '.join(RESULT_SUFFIXES)}")
        jobs[target] = MovingJob(source, target)
    return list(jobs.values())


def _output_file(output: str | None) -> Path | None:
    path = None if output is None else Path(output)
    if path is None or path.is_dir():
        return None
    suffix = path.suffix.lower()
    if suffix in RESULT_SUFFIXES or suffix in ANIMATIONS:
        return path
    if suffix in (*CLIP_SUFFIXES, ".jpg", ".jpeg", ".tif", ".tiff", ".avif", ".heic", ".jxl"):
        known = ", ".join((*RESULT_SUFFIXES, *ANIMATIONS))
        raise RecipeError(f"{output}: what moves cannot be written as that: the name must end in one of {known}")
    return None


def _ending(source: Path, format: str | None) -> str:
    suffix = source.suffix.lower()
    if suffix in ANIMATIONS:
        return {"png": ".png", "webp": ".webp", None: suffix}.get(format, suffix)
    return suffix if suffix in RESULT_SUFFIXES else ".mkv"


def clip_options(options: FileOptions, codec: str | None, crf: int | None, resume: bool) -> ClipOptions:
    """The options of clips that those of photos stand for. Raises RecipeError where there are none of that kind."""
    if options.compare or options.consistency:
        raise RecipeError("--compare and --consistency are for photos, not for clips and animations")
    keep = options.metadata == "keep"
    encoding = options.quality, options.lossless
    return ClipOptions(codec, crf, options.existing, resume, keep, options.limits, *encoding)


def require_av(jobs: Sequence[MovingJob]) -> None:
    """Raises ResourceError where PyAV is absent and one of these needs it."""
    if all(job.is_animation for job in jobs):
        return
    try:
        import av  # noqa: F401
    except ImportError:
        raise ResourceError("clips need PyAV, which is not installed: pip install 'ray-sr[video]'") from None


def upscale_moving(
    jobs: Sequence[MovingJob],
    engine: Engine,
    *,
    model: str,
    wanted: TargetSize,
    options: FileOptions,
    choices: dict[str, Any],
    dry_run: bool = False,
    quiet: bool = False,
    report: Callable[[FileResult], None] = lambda result: None,
) -> Iterator[ClipResult]:
    """Upscales clips and animations one after the other. choices: of `clip_options`."""
    chosen = clip_options(options, **choices)
    for job in jobs:
        if dry_run:
            yield ClipResult(str(job.source), str(job.target), "planned")
            continue
        common: dict[str, Any] = {"model": model, "wanted": wanted, "options": chosen, "quiet": quiet}
        if job.is_animation:
            result = upscale_animation(job.source, job.target, engine, **common)
        else:
            from ray_sr.video.clips import upscale_clip

            result = upscale_clip(job.source, job.target, engine, **common)
        report(result)
        yield result
