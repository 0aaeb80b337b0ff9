"""`ray-sr upscale`: photos in, larger photos out."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from ray_sr.commands.common import FiniteRange, chosen_model, connect_ray, json_option, note, show, store_option
from ray_sr.commands.model_advice import ModelAdvice
from ray_sr.commands.process import was_closed
from ray_sr.errors import InputError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ray_sr.store import Model
    from ray_sr.upscaling import Engine
    from ray_sr.upscaling.files import FileOptions
    from ray_sr.upscaling.naming import Existing
    from ray_sr.upscaling.results import FileResult, Summary
    from ray_sr.upscaling.target_size import TargetSize
    from ray_sr.video.inputs import MovingInFolders, MovingJob

PIPE = "-"
_SIDE = click.IntRange(1)


@click.command()
@click.argument("photos", nargs=-1, required=True)
@click.option("-o", "--output", metavar="OUT", help="File or folder to write to, - for stdout (default: beside "
              "each photo).")  # fmt: skip
@click.option("-n", "--model", metavar="MODEL", help="Model (default: channel `best`, else the newest "
              "published, else the best that comes with ray-sr).")  # fmt: skip
@click.option("-s", "--scale", type=FiniteRange(0, min_open=True), help="Any scale (default: the model's).")
@click.option("--width", type=_SIDE, help="Width of the results in pixels, instead of a scale.")
@click.option("--height", type=_SIDE, help="Height of the results; with --width: they fit into that box.")
@click.option(
    "-f",
    "--format",
    type=click.Choice(["png", "jpeg", "webp", "tiff", "avif", "jxl"]),
    help="Format of the results.",
)
@click.option("-t", "--tile", type=click.IntRange(16), help="Tile side in pixels (default: what fits in memory).")
@click.option("--denoise", type=FiniteRange(0, 1), help="Weight of the cleaning model that is blended in.")
@click.option("--denoise-model", metavar="MODEL", help="The cleaning model (default: the one of the same network).")
@click.option("--tta", is_flag=True, help="Test-time augmentation: mean of 8 orientations, at 8 times the cost.")
@click.option("--consistency", is_flag=True, help="Correct results so that, downscaled, they give the photo again.")
@click.option(
    "--compare", is_flag=True, help="Also write NAME_compare.png: bicubic on the left, result on the right."
)
@click.option(
    "-q",
    "--quality",
    default=95,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Of jpeg, webp, avif and jxl.",
)
@click.option("--lossless", is_flag=True, help="Lossless webp, avif or jxl.")
@click.option("--metadata", type=click.Choice(["keep", "copyright", "none"]), default="keep", show_default=True)
@click.option("--suffix", help="Added to the names of results (default: _x and the scale).")
@click.option("--overwrite", is_flag=True, help="Replace existing results.")
@click.option("--skip-existing", is_flag=True, help="Skip photos whose results exist.")
@click.option("--recursive", is_flag=True, help="Include the folders inside folders.")
@click.option("--lenient", is_flag=True, help="Read damaged photos as far as possible.")
@click.option("--watch", is_flag=True, help="Keep upscaling what arrives in the folders PHOTOS, until interrupted.")
@click.option("--codec", type=click.Choice(["h264", "h265", "av1", "vp9", "ffv1"]), help="Of clips (default: h264; "
              "h265 for more than 8 bits, vp9 in .webm).")  # fmt: skip
@click.option("--crf", type=click.IntRange(0, 63), help="Quality of clips, lower is better (default: by codec).")
@click.option("--resume", is_flag=True, help="Continue an interrupted run, also within clips.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("-d", "--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]), default="auto", show_default=True)
@click.option("--ray", "on_ray", is_flag=True, help="Run on a Ray cluster; PHOTOS and OUT may be bucket URIs.")
@click.option("--workers", type=_SIDE, help="With --ray: engines (default: one per GPU, else one per node).")
@store_option
@json_option
def upscale(
    photos: tuple[str, ...],
    output: str | None,
    model: str | None,
    tile: int | None,
    denoise: float | None,
    denoise_model: str | None,
    tta: bool,
    watch: bool,
    codec: str | None,
    crf: int | None,
    resume: bool,
    dry_run: bool,
    device: str,
    precision: Any,
    on_ray: bool,
    workers: int | None,
    store: str | None,
    as_json: bool,
    **choices: Any,
) -> None:
    """Upscale PHOTOS: files, folders, glob patterns, or - for stdin.

    A photo that cannot be read is reported and the others go on; the exit code is then 3. With --ray, photos whose
    results exist are skipped, and OUT/manifest.jsonl says what became of each photo. With --watch, each photo is
    taken once, also across restarts, when its size and time have not changed for two seconds.
    """
    output = PIPE if output is not None and _is_stdout(output) else output
    clip_choices = {"codec": codec, "crf": crf, "resume": resume}
    request = _Request(
        photos, output, _wanted(choices), _options(choices, resume), dry_run, as_json, watch, clip_choices
    )
    _check(request, on_ray)
    from ray_sr.store import load_model

    loaded = load_model(chosen_model(model, store, request.wanted.scale), store)
    if denoise is not None:
        loaded = _denoising(loaded, denoise, denoise_model, store)
    engine_options = {"device": device, "precision": precision, "tile": tile, "ensemble": tta}
    if watch:
        _watch(request, loaded, engine_options)
        return
    if on_ray:
        summary = _on_ray(request, loaded, engine_options, workers)
    else:
        advice = None if as_json or dry_run or denoise is not None else ModelAdvice(loaded, store, note)
        summary = _here(request, loaded, engine_options, advice)
    result = {"model": f"{loaded.name}@{loaded.version}", **summary.to_dict()}
    if output == PIPE:
        note(json.dumps(result, ensure_ascii=False) if as_json else str(summary))
    else:
        show(result, str(summary), as_json)
    for file in summary.files:
        if (dry_run and not as_json) or (request.piped and (file.status == "failed" or not as_json)):
            note(str(file))
    if summary.exit_code:
        raise InputError(f"{summary.count('failed')} of {len(summary.files)} inputs failed, they are named above")


@dataclass(frozen=True)
class _Request:
    """What is to be upscaled, into what. quiet: no notes for people. clips: options of clips alone."""

    photos: tuple[str, ...]
    output: str | None
    wanted: TargetSize
    options: FileOptions
    dry_run: bool
    quiet: bool
    watch: bool
    clip_choices: dict[str, Any]

    @property
    def piped(self) -> bool:
        return PIPE in (*self.photos, self.output) or self.reads_pipe

    @property
    def reads_pipe(self) -> bool:
        """Whether the one photo comes by a pipe that has a name, as /dev/stdin or <(…) have."""
        return len(self.photos) == 1 and _is_pipe(self.photos[0])

    def split(self) -> tuple[_Request, _Request]:
        """The same for the photos alone, and for the clips and animations."""
        from ray_sr.video.inputs import check_photos_output, split_inputs

        photos, moving = split_inputs(self.photos)
        check_photos_output(photos, self.output)
        return replace(self, photos=tuple(photos)), replace(self, photos=tuple(moving))


def _wanted(choices: dict[str, Any]) -> TargetSize:
    from ray_sr.upscaling.target_size import TargetSize

    try:
        return TargetSize(*(choices.pop(name) for name in ("scale", "width", "height")))
    except RecipeError:
        raise click.UsageError("--scale excludes --width and --height") from None


def _options(choices: dict[str, Any], resume: bool) -> FileOptions:
    """Options of photos; what goes on with a run leaves alone what is done."""
    from ray_sr.images import Limits
    from ray_sr.upscaling.files import FileOptions

    overwrite, skip, lenient = (choices.pop(name) for name in ("overwrite", "skip_existing", "lenient"))
    if overwrite and skip:
        raise click.UsageError("--overwrite and --skip-existing exclude each other")
    existing: Existing = "overwrite" if overwrite else "skip" if skip or resume else "refuse"
    return FileOptions(existing=existing, limits=Limits(strict=not lenient), **choices)


def _check(request: _Request, on_ray: bool) -> None:
    """Raises UsageError or RecipeError before any model is loaded."""
    if request.watch and (on_ray or request.piped or request.dry_run or request.options.compare):
        raise click.UsageError("--watch excludes --ray, --dry-run, --compare and -")
    if request.watch and request.output is None:
        raise click.UsageError("--watch needs a folder to write to: -o OUT")
    if on_ray and request.piped:
        raise click.UsageError("- and --ray exclude each other")
    if on_ray and request.output is None:
        raise click.UsageError("--ray needs a folder or bucket to write to: -o OUT")
    if on_ray and request.options.compare:
        raise click.UsageError("--compare and --ray exclude each other")
    if request.output == PIPE and was_closed(1):
        raise RecipeError("-o -: stdout is closed: name a file, or open it")
    if request.piped:
        from ray_sr.upscaling.piped import check_piped

        photos = (PIPE,) if request.reads_pipe else request.photos
        check_piped(photos, request.output, request.options)


def _watch(request: _Request, loaded: Model, engine_options: dict[str, Any]) -> None:
    from ray_sr.upscaling import Engine
    from ray_sr.upscaling.watching import Watch

    engine = Engine(loaded.module, loaded.capability, **engine_options)
    options: dict[str, Any] = {"wanted": request.wanted, "options": request.options, "quiet": request.quiet}
    moving = _moving(request, engine, loaded, watching=True)
    watch = Watch(request.photos, str(request.output), engine, moving=moving, **options)
    note(f"{loaded.name}: x{engine.scale} on {engine.device}, watching {', '.join(request.photos)}: Ctrl-C ends it")
    try:
        watch.run()
    except KeyboardInterrupt:
        result = {"model": f"{loaded.name}@{loaded.version}", **watch.summary.to_dict()}
        show(result, str(watch.summary), request.quiet)
        raise


def _denoising(loaded: Model, share: float, name: str | None, store: str | None) -> Model:
    from ray_sr.errors import ModelError
    from ray_sr.recipes.purpose import told_by
    from ray_sr.store import Store, load_model
    from ray_sr.store.blending import blended, cleaning_partner

    if name is None:
        purpose = told_by(loaded.card.get("recipe"), loaded.capability.scale)["purpose"]
        name = cleaning_partner(loaded.network, purpose, Store(store))
        if name is None:
            why = "cleans by itself" if purpose == "unknown" else "has a network that no cleaning model has"
            raise ModelError(f"--denoise: {loaded.name} {why}; --denoise-model names one")
    return blended(loaded, load_model(name, store), share)


def _here(request: _Request, loaded: Model, engine_options: dict[str, Any], advice: ModelAdvice | None) -> Summary:
    from ray_sr.upscaling import Engine
    from ray_sr.upscaling.files import upscale_files
    from ray_sr.upscaling.piped import upscale_piped
    from ray_sr.upscaling.results import Summary

    photos, moving = request.split()
    planned = _plan_moving(moving, len(photos.photos), loaded.capability.scale)
    engine = Engine(loaded.module, loaded.capability, **engine_options)
    if not request.quiet:
        version = f"@{loaded.version}" if loaded.version else ""
        note(f"{loaded.name}{version}: x{engine.scale} on {engine.device}, {engine.precision}")
    common: dict[str, Any] = {
        "wanted": request.wanted,
        "options": request.options,
        "dry_run": request.dry_run,
    }
    if request.reads_pipe:
        with open(request.photos[0], "rb") as pipe:
            return upscale_piped(PIPE, request.output, engine, stdin=pipe, stdout=sys.stdout.buffer, **common)
    if request.piped:
        streams: dict[str, Any] = {"stdin": sys.stdin.buffer, "stdout": sys.stdout.buffer}
        return upscale_piped(request.photos[0], request.output, engine, **streams, **common)
    summary = Summary((), 0.0)
    if photos.photos:
        before: dict[str, Any] = {} if advice is None else {"before": advice}
        before["moving"] = _moving(request, engine, loaded)
        summary = upscale_files(photos.photos, request.output, engine, quiet=request.quiet, **before, **common)
    if planned:
        from ray_sr.video.inputs import upscale_moving

        name = f"{loaded.name}@{loaded.version}"
        common |= {"choices": request.clip_choices, "quiet": request.quiet, "report": _tell(request)}
        summary = summary.and_then(upscale_moving(planned, engine, model=name, **common))
    return summary


def _moving(request: _Request, engine: Engine, loaded: Model, watching: bool = False) -> MovingInFolders | None:
    """What makes the clips and animations of folders; None where options are given that are for photos alone."""
    if request.options.compare or request.options.consistency:
        return None
    from ray_sr.video.inputs import MovingInFolders

    common: dict[str, Any] = {"wanted": request.wanted, "options": request.options, "quiet": request.quiet}
    common |= {"choices": request.clip_choices, "report": _tell(request), "watching": watching}
    return MovingInFolders(engine, model=f"{loaded.name}@{loaded.version}", **common)


def _plan_moving(request: _Request, others: int, scale: int) -> list[MovingJob]:
    """Jobs for clips and animations, checked before the engine is made."""
    if not request.photos:
        return []
    from ray_sr.video.inputs import clip_options, plan_moving, require_av

    clip_options(request.options, **request.clip_choices)
    suffix = request.wanted.suffix(scale) if request.options.suffix is None else request.options.suffix
    jobs = plan_moving(request.photos, request.output, suffix, request.options.format, others)
    require_av(jobs)
    return jobs


def _tell(request: _Request) -> Callable[[FileResult], None]:
    """Says what became of a clip: of failures always."""
    return lambda result: note(str(result)) if result.status == "failed" or not request.quiet else None


def _is_stdout(output: str) -> bool:
    """Whether this is another name of standard output: /dev/stdout, /dev/fd/1, /proc/self/fd/1."""
    return os.path.abspath(output) in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def _is_pipe(photo: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(photo).st_mode)
    except (OSError, ValueError):
        return False


def _on_ray(request: _Request, loaded: Model, engine_options: dict[str, Any], workers: int | None) -> Summary:
    from ray_sr.upscaling.on_ray import upscale_archive
    from ray_sr.upscaling.results import Summary

    photos, moving = request.split()
    planned = _plan_moving(moving, len(photos.photos), loaded.capability.scale)
    planned += (inside := _moving_below(request, loaded))
    connect_ray()
    options = request.options
    common: dict[str, Any] = {
        "wanted": request.wanted,
        "options": options if options.existing == "overwrite" else replace(options, existing="skip"),
        "engine_options": engine_options,
        "workers": workers,
        "dry_run": request.dry_run,
        "quiet": request.quiet,
    }
    summary = Summary((), 0.0)
    if photos.photos:
        apart = {os.path.abspath(job.source) for job in inside}
        summary = upscale_archive(photos.photos, str(request.output), loaded, apart=apart, **common)
    if planned:
        from ray_sr.video.on_ray import upscale_clips_on_ray

        common |= {"choices": request.clip_choices, "report": _tell(request)}
        summary = summary.and_then(upscale_clips_on_ray(planned, loaded, **common))
    return summary


def _moving_below(request: _Request, loaded: Model) -> list[MovingJob]:
    """What moves in folders that the nodes of a cluster share; none where results go into a bucket."""
    output, options = str(request.output), request.options
    if "://" in output or options.compare or options.consistency:
        return []
    from ray_sr.video.inputs import MovingFiles, plan_below

    common: dict[str, Any] = {"wanted": request.wanted, "options": options, "choices": request.clip_choices}
    return plan_below(request.photos, output, MovingFiles(loaded.capability.scale, **common))
