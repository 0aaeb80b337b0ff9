"""Upscaling of whole archives on a Ray cluster: folders and buckets in, a folder or bucket out.

Each engine is an actor of Ray Data on a GPU of its own, or on the CPUs of a node, and upscales its share of the
photos just as `ray-sr upscale` does on one machine. Results are written aside and renamed, so one that is there
is whole: a job that was killed is finished by the same call, which skips them. `manifest.jsonl` beside them says
what became of every photo; its first line tells what they were made with.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs
from tqdm import tqdm

from ray_sr.cluster import capacity, require_shared
from ray_sr.data.sources import PhotoFile, find_others, find_photos, read_photo_bytes
from ray_sr.errors import ClusterError, InputError, RecipeError, ResourceError
from ray_sr.images import SUFFIXES
from ray_sr.progress import Progress
from ray_sr.storage import (
    exists,
    first_line,
    make_folder,
    open_filesystem,
    read_file,
    remove_quietly,
    temporary_name,
    write_file,
)
from ray_sr.store import Model
from ray_sr.upscaling import Engine
from ray_sr.upscaling.files import FileOptions, UpscaleWorker, run_jobs
from ray_sr.upscaling.naming import ARCHIVES, ENDINGS, UpscaleJob
from ray_sr.upscaling.progress import ProgressReport
from ray_sr.upscaling.record import ResultRecords
from ray_sr.upscaling.results import FileResult, Summary
from ray_sr.upscaling.target_size import TargetSize

MANIFEST = "manifest.jsonl"
PHOTOS_IN_TASK = 8
MOST_TASKS = 2000  # Ray Data plans them in a second or two, and 20,000 in a minute
SECONDS_BETWEEN_MANIFESTS = 10.0

_STRAY = re.compile(r"\.(.+\.[0-9a-f]{8}\.tmp|[0-9a-f]{16}\.part)")
_UPLOAD_BYTES = 8 << 20


@dataclass(frozen=True)
class ArchivePlan:
    """What a job means: results still to be made, and what is known of all others.

    strays: what a killed job left half-written below the output.
    """

    output: str
    wanted: TargetSize
    options: FileOptions
    made_with: dict[str, Any]
    todo: tuple[FileResult, ...]
    known: tuple[FileResult, ...]
    strays: tuple[str, ...] = ()


def upscale_archive(
    places: Sequence[str],
    output: str,
    model: Model,
    *,
    wanted: TargetSize | None = None,
    options: FileOptions | None = None,
    engine_options: dict[str, Any] | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    apart: Collection[str] = (),
) -> Summary:
    """Upscales every photo of folders, patterns, files and URIs into `output`; Ray must be running.

    Results keep the structure of their folders, which are always searched to the bottom. Those that are there
    are skipped, unless `options.existing` is "overwrite". engine_options: of `Engine`. workers: engines; by
    default one for each GPU of the cluster, else one for each node. apart: absolute paths that are taken care of
    elsewhere; what else is no photo is named as passed over.
    Raises RecipeError for options that do not fit or an output that was made otherwise, ResourceError where
    the output cannot be written, ClusterError where Ray fails; failing photos are in the summary.
    """
    begin = time.perf_counter()
    engine_options = engine_options or {}
    wanted, options = wanted or TargetSize(), options or FileOptions()
    Engine(model.module, model.capability, **{**engine_options, "device": "cpu"})  # raises for wrong options here
    plan = _plan(places, output, model, wanted, options, bool(engine_options.get("ensemble")), apart)
    others = _passed_over(places, output, apart)
    if dry_run:
        return Summary((*plan.known, *plan.todo), time.perf_counter() - begin, others)
    for result in plan.known:
        if result.status == "failed":
            print(result, file=sys.stderr)
    filesystem, folder = open_filesystem(output)
    for stray in plan.strays:
        remove_quietly(filesystem, f"{folder}/{stray}")
    manifest = _Manifest(plan)
    manifest.write()
    photos = [photo.source.partition("#")[0] for photo in plan.todo[:1]]
    require_shared(output if "://" in output else f"{folder}/{MANIFEST}", *photos)
    try:
        for result in _run(plan, model, engine_options, workers, quiet):
            manifest.add(result)
    finally:
        manifest.write()
    return Summary(manifest.results, time.perf_counter() - begin, others)


# What is to be done ---------------------------------------------------------------------------------------


def _plan(
    places: Sequence[str],
    output: str,
    model: Model,
    wanted: TargetSize,
    options: FileOptions,
    ensemble: bool,
    apart: Collection[str],
) -> ArchivePlan:
    suffix = wanted.suffix(model.capability.scale) if options.suffix is None else options.suffix
    _check_names(output, suffix)
    filesystem, folder = open_filesystem(output)
    ending = suffix + ENDINGS[options.format or "png"]
    names = _listing(filesystem, folder)
    strays = tuple(name for name in names if _STRAY.fullmatch(PurePosixPath(name).name))
    there = set(names)
    overwrite = options.existing == "overwrite"
    made_with = _made_with(model, wanted, options, ensemble)
    before = _earlier(filesystem, folder, made_with, overwrite)
    known: list[FileResult] = []
    todo: list[FileResult] = []
    for result in _results(places, _plain(output), ending, apart):
        if result.status == "failed" or result.target not in there or overwrite:
            (known if result.status == "failed" else todo).append(result)
        else:
            done = before.get(result.target, result)
            known.append(replace(done, status="skipped", reason="the result is there already"))
    return ArchivePlan(output, wanted, options, made_with, tuple(todo), tuple(known), strays)


def _passed_over(places: Sequence[str], output: str, apart: Collection[str]) -> tuple[str, ...]:
    """Files of the folders that nothing is read from, except what lies in the output."""
    base, found = _plain(output), dict.fromkeys(path for place in places for path in find_others(place))
    bare = base.partition("://")[2] or base
    return tuple(path for path in found if path not in apart and not path.startswith(f"{bare}/"))


def _check_names(output: str, suffix: str) -> None:
    if PurePosixPath(output).suffix.lower() in (*SUFFIXES, *ARCHIVES) or not output:
        raise RecipeError(f"{output or 'an empty name'}: results go into a folder: name one with -o")
    if "/" in suffix:
        raise RecipeError(f"the suffix {suffix!r} is a part of names and cannot hold /")


def _results(places: Sequence[str], output: str, ending: str, apart: Collection[str]) -> Iterator[FileResult]:
    """A planned result, its target below the output, for each photo; a failed one where that cannot be.

    Results of earlier runs that were found in a folder are passed over: those of this run's names, and on local
    storage those that say so themselves.
    """
    found: dict[str, tuple[PhotoFile, str]] = {}
    records = ResultRecords()
    for place in places:
        try:
            for photo in find_photos([place]):
                if photo.uri not in apart:
                    found.setdefault(photo.uri, (photo, place))
        except InputError as error:
            if any(path.startswith(f"{_plain(place)}/") for path in apart):
                continue  # a folder of clips alone
            yield FileResult(place, None, "failed", str(error).removeprefix(f"{place}: "))
    targets = {_target(photo, ending) for photo, _ in found.values()}
    taken: dict[str, str] = {}
    for uri, (photo, place) in found.items():
        path = _plain(uri)
        if path.startswith(f"{output}/") and path.removeprefix(f"{output}/") in targets:
            continue  # a result of an earlier run, in the folder of its photo or in one inside it
        if path.startswith("/") and path != _plain(place) and records.is_result(Path(path)):
            continue
        target = _free_target(photo, place, ending, taken)
        problem = (
            f"the result would have the same name as that of another photo: {target}" if target in taken else ""
        )
        taken.setdefault(target, place)
        yield FileResult(uri, target, "failed" if problem else "planned", problem)


def _free_target(photo: PhotoFile, place: str, ending: str, taken: dict[str, str]) -> str:
    """The photo's target; where a photo of another folder has it, below the name of its own folder, and where one
    of the same folder has it, with its own suffix in the name."""
    path = PurePosixPath(photo.name)
    names = _target(photo, ending), str(path.with_name(path.name.replace(".", "_") + ending))
    at = PurePosixPath(_plain(place))
    folder = at.parent.name if str(at) == _plain(photo.uri) else at.name
    below = [f"{folder}/{name}" for name in names if taken.get(names[0], place) != place]
    return next((name for name in (names[0], *below, names[1]) if name not in taken), names[0])


def _target(photo: PhotoFile, ending: str) -> str:
    path = PurePosixPath(photo.name)
    return str(path.with_name(path.stem + ending))


def _plain(place: str) -> str:
    """A path or URI in the form in which two of them can be compared."""
    if "://" not in place:
        return str(Path(place).expanduser().absolute())
    return place.partition("?")[0].removeprefix("file://").rstrip("/")


def _listing(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    """Names of the files below the output."""
    selector = pafs.FileSelector(folder, recursive=True, allow_not_found=True)
    try:
        found = filesystem.get_file_info(selector)
    except (OSError, pa.ArrowException) as error:
        raise ResourceError(f"{folder}: cannot be listed: {first_line(error)}") from None
    files = (info.path for info in found if info.type == pafs.FileType.File)
    return [str(PurePosixPath(path).relative_to(folder)) for path in files]


# The manifest ---------------------------------------------------------------------------------------------


def _made_with(model: Model, wanted: TargetSize, options: FileOptions, ensemble: bool) -> dict[str, Any]:
    """What results of one manifest have in common."""
    encoding = {name: getattr(options, name) for name in ("quality", "lossless", "metadata", "consistency")}
    version = f"{model.name}@{model.version}"
    return {"model": version, **asdict(wanted), "format": options.format or "png", "tta": ensemble, **encoding}


def _earlier(
    filesystem: pafs.FileSystem, folder: str, made_with: dict[str, Any], overwrite: bool
) -> dict[str | None, FileResult]:
    """What earlier runs into this folder made, by target. Raises RecipeError where they made it otherwise."""
    path = f"{folder}/{MANIFEST}"
    if overwrite or not exists(filesystem, path):
        return {}
    try:
        head, *lines = read_file(filesystem, path).decode().splitlines()
        before = json.loads(head)["made_with"]
        results = [_result(line) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = first_line(error)
        raise InputError(f"{path}: is no manifest of ours ({told}): remove it or name another folder") from None
    other = [name for name, value in made_with.items() if before.get(name) != value]
    if other:
        told = ", ".join(f"{name} {before.get(name)} not {made_with[name]}" for name in other)
        raise RecipeError(f"{path}: these results were made otherwise ({told}): name another folder or --overwrite")
    return {result.target: result for result in results}


class _Manifest:
    """The results so far, written now and then: whole, aside, renamed."""

    def __init__(self, plan: ArchivePlan) -> None:
        self._head = json.dumps({"made_with": plan.made_with})
        self._filesystem, self._folder = open_filesystem(plan.output)
        self._results = {(result.source, result.target): result for result in plan.known}
        self._order = [(result.source, result.target) for result in (*plan.known, *plan.todo)]
        self._next = 0.0

    @property
    def results(self) -> tuple[FileResult, ...]:
        return tuple(self._results[key] for key in self._order if key in self._results)

    def add(self, result: FileResult) -> None:
        self._results[result.source, result.target] = result
        if time.monotonic() > self._next:
            self.write()

    def write(self) -> None:
        begin = time.monotonic()
        # A skipped result was done by an earlier run, and that is what the manifest tells.
        kept = (replace(r, status="done", reason="") if r.status == "skipped" else r for r in self.results)
        lines = [self._head, *(json.dumps(asdict(result), ensure_ascii=False) for result in kept)]
        make_folder(self._filesystem, self._folder)
        write_file(self._filesystem, f"{self._folder}/{MANIFEST}", ("\n".join(lines) + "\n").encode())
        now = time.monotonic()
        self._next = now + max(SECONDS_BETWEEN_MANIFESTS, 20 * (now - begin))


# The work -------------------------------------------------------------------------------------------------


def _run(
    plan: ArchivePlan, model: Model, engine_options: dict[str, Any], workers: int | None, quiet: bool
) -> Iterator[FileResult]:
    import ray

    if not plan.todo:
        return
    resources, count = engine_resources(workers, str(engine_options.get("device", "auto")), len(plan.todo))
    rows = [{"source": result.source, "target": result.target} for result in plan.todo]
    tasks = max(min(len(rows), 2 * count), math.ceil(len(rows) / PHOTOS_IN_TASK))
    dataset = ray.data.from_items(rows, override_num_blocks=min(tasks, MOST_TASKS)).map_batches(
        _Upscaler,
        fn_constructor_kwargs={
            "model": ray.put((model.module, model.capability)),
            "plan": replace(plan, todo=(), known=(), strays=()),
            "engine_options": engine_options,
            "gpu": bool(resources.get("num_gpus")),
        },
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=count),
        **resources,
    )
    megapixels, begin = 0.0, time.monotonic()
    with Progress("upscale", len(rows), "photos", quiet=quiet) as progress:
        try:
            for row in dataset.iter_rows():
                result = _result(row["result"])
                megapixels += result.megapixels
                if result.status == "failed":
                    tqdm.write(str(result), file=sys.stderr)
                progress.advance(f"{megapixels / (time.monotonic() - begin):.1f} Mpx/s")
                yield result
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the upscaling job failed: {first_line(error)}; run it again to go on") from None


def _result(text: str) -> FileResult:
    fields = json.loads(text)
    return FileResult(**{**fields, "warnings": tuple(fields["warnings"])})


def engine_resources(workers: int | None, device: str, photos: int) -> tuple[dict[str, Any], int]:
    """What each engine reserves, and how many there are."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    most = capacity()
    gpus = 0 if device == "cpu" else int(most.get("GPU", 0))
    if device.startswith("cuda") and not gpus:
        raise ResourceError(f"device {device}: this Ray cluster has no GPU: choose auto or cpu")
    if most.get("CPU", 0) < 1:
        raise ClusterError("no node of this Ray cluster has a CPU to work with: add worker nodes")
    if not nodes and not gpus:  # the autoscaler brings them when there is work
        return {"num_cpus": 1}, min(workers or int(most["CPU"]), photos)
    count = min(workers or gpus or len(nodes), photos)
    if gpus:
        return {"num_gpus": 1, "num_cpus": 1}, min(count, gpus)
    total = sum(int(node["CPU"]) for node in nodes)
    smallest = min(int(node["CPU"]) for node in nodes)
    return {"num_cpus": max(1, min(smallest, total // count))}, min(count, total)


class _Upscaler:
    """The actor: holds an engine and upscales tasks of photos."""

    def __init__(self, model: Any, plan: ArchivePlan, engine_options: dict[str, Any], gpu: bool) -> None:
        import ray

        module, capability = ray.get(model)
        device = engine_options.get("device", "auto") if gpu else "cpu"
        self._engine = Engine(module, capability, **{**engine_options, "device": device})
        self._plan = plan

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-sr-")))
            couples = zip(batch["source"].tolist(), batch["target"].tolist(), strict=True)
            output = open_filesystem(self._plan.output)
            options = self._plan.options
            journeys = [_Journey.of(*names, output, options, folder / str(i)) for i, names in enumerate(couples)]
            by_job = {id(journey.job): journey for journey in journeys}
            worker = UpscaleWorker(
                self._engine,
                self._plan.wanted,
                self._plan.options,
                fetch=lambda job: by_job[id(job)].fetch(),
                deliver=lambda job: by_job[id(job)].deliver(),
            )
            report = ProgressReport(len(journeys), io.StringIO(), quiet=True)
            results = run_jobs([journey.job for journey in journeys], worker, report)
            named = [
                replace(result, source=journey.source, target=journey.target)
                for journey, result in zip(journeys, results, strict=True)
            ]
        return {"result": [json.dumps(asdict(result), ensure_ascii=False) for result in named]}


@dataclass(frozen=True, eq=False)
class _Journey:
    """A photo's way from its storage and back: through local files, which are its own where storage is local."""

    source: str
    target: str
    job: UpscaleJob
    uploaded: tuple[pafs.FileSystem, str] | None
    fetched: bool

    @classmethod
    def of(
        cls, source: str, target: str, output: tuple[pafs.FileSystem, str], options: FileOptions, local: Path
    ) -> _Journey:
        """local: names files in a temporary folder."""
        store, folder = output
        fetched = "://" in source or ".parquet#" in source
        sent = not isinstance(store, pafs.LocalFileSystem)
        # Another try of a task whose actor was lost: the photos before are done.
        skip = options.existing != "overwrite" and exists(store, f"{folder}/{target}")
        job = UpscaleJob(
            local.with_suffix(".in") if fetched else Path(source),
            local.with_suffix(".out") if sent else Path(folder, target),
            options.format or "png",
            skip=skip,
        )
        return cls(source, target, job, (store, f"{folder}/{target}") if sent else None, fetched)

    def fetch(self) -> None:
        if not self.fetched:
            return
        try:
            self.job.source.write_bytes(read_photo_bytes(PhotoFile(self.source, self.target, 0)))
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"cannot be read: {first_line(error)}") from None

    def deliver(self) -> None:
        if self.uploaded is None or self.job.target is None:
            return
        filesystem, place = self.uploaded
        make_folder(filesystem, place.rpartition("/")[0])
        aside = temporary_name(place)
        try:
            with filesystem.open_output_stream(aside) as stream, open(self.job.target, "rb") as file:
                while piece := file.read(_UPLOAD_BYTES):
                    stream.write(piece)
            filesystem.move(aside, place)
        except (OSError, pa.ArrowException) as error:
            remove_quietly(filesystem, aside)
            raise ResourceError(f"{place}: cannot write: {first_line(error)}") from None
        self.job.target.unlink()
