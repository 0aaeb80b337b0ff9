"""One picture from bytes to bytes: measure, decode, upscale, encode. Requests and jobs go through it alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from typing import ParamSpec, Protocol, TypeVar, get_args

from ray_sr import images
from ray_sr.images import Header
from ray_sr.serving import codec
from ray_sr.serving.admission import AdmissionQueue
from ray_sr.serving.codec_pool import CodecPool
from ray_sr.serving.options import Format, ServiceLimits, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.requests import AcceptedResponse, Query
from ray_sr.serving.responses import Answer
from ray_sr.serving.router import Catalogue, Router
from ray_sr.serving.schemas import ModelInfo, Permit, ScaleChanged, Upscaled
from ray_sr.serving.telemetry import Metrics

P = ParamSpec("P")
T = TypeVar("T")
OnProgress = Callable[[float], None]

_TAKE_OVERS = 5  # of other scales that one request bears


class Admission(Protocol):
    """What a request has to get before its pixels are decoded; jobs need none: they let others go first."""

    def of(self, pixels: int, queue: AdmissionQueue) -> AbstractAsyncContextManager[None]: ...


class Pipeline:
    """The stages of one process of the service, with `processes` codec processes. For one event loop."""

    def __init__(self, catalogue: Catalogue, metrics: Metrics, processes: int) -> None:
        self.catalogue = catalogue
        self._metrics = metrics
        self._codec = CodecPool(processes)
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="headers")

    def close(self) -> None:
        """Ends the codec processes."""
        self._codec.close()

    async def measure(
        self, data: bytes, query: UpscaleQuery, limits: ServiceLimits
    ) -> tuple[Header, Router, codec.EncodeSettings, int]:
        """Header, model and settings of a request, and the pixels that the network will make of it.

        Raises Problem and PhotoError where something is over a limit.
        """
        header = await self.in_thread(measure, data, limits)
        router = await self.catalogue.pick(query.model)
        settings = settle(query, await router.model())
        return header, router, settings, check_result(header, settings, limits)

    async def run(
        self,
        data: bytes,
        query: UpscaleQuery,
        limits: ServiceLimits,
        admission: Admission | None = None,
        on_progress: OnProgress | None = None,
        permit: Permit | None = None,
    ) -> Answer:
        """The picture upscaled; with `on_progress` as a job, tile by tile. Raises Problem and PhotoError."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "decode"):
            header, router, settings, pixels = await self.measure(data, query, limits)
        async with admission.of(pixels, router.queue) if admission else nullcontext():
            with _timed(seconds, "decode"):
                photo = await self._codec.decode(data, header, limits)
            with _timed(seconds, "queue"):
                settings, result = await _upscaled(router, photo, query, settings, on_progress, permit)
            seconds["queue"] -= result.seconds + result.load_s
            if result.load_s:
                seconds["load"] = result.load_s
            seconds["infer"] = result.seconds
            with _timed(seconds, "encode"):
                encoded = await self._codec.encode(result.photo, settings)
        self._metrics.picture(header.width * header.height, encoded.width * encoded.height, seconds)
        return Answer(encoded, settings, result.model, seconds)

    async def in_thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What takes milliseconds of the processor, beside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))


async def _upscaled(
    router: Router,
    photo: images.Photo,
    query: UpscaleQuery,
    settings: codec.EncodeSettings,
    on_progress: OnProgress | None,
    permit: Permit | None,
) -> tuple[codec.EncodeSettings, Upscaled]:
    """The photo from a replica. Where another model has taken over meanwhile, the query is settled by that one."""
    for _ in range(_TAKE_OVERS):
        try:
            return settings, await router.upscale(photo, settings, on_progress, permit)
        except ScaleChanged:
            router.forget()
            settings = settle(query, await router.model())
    raise Problem("starting", "the model is being replaced; try again soon")


def measure(data: bytes, limits: ServiceLimits) -> Header:
    """The picture's header; no pixel is decoded. Raises Problem and PhotoError."""
    if images.sniff(data) not in limits.formats:
        accepted = ", ".join(limits.formats)
        raise Problem("unsupported-media-type", f"the body must be the bytes of a picture: {accepted}")
    header = images.scan_header(data)
    try:
        images.check_header(header, codec.accepted_photos(limits))
    except images.PhotoError as error:
        pixels = header.width * header.height
        if error.reason != "image-too-large" or pixels <= limits.input_pixels:
            raise
        raise Problem(error.reason, str(error), limit=limits.input_pixels, actual=pixels) from None
    return header


def check_result(header: Header, settings: codec.EncodeSettings, limits: ServiceLimits) -> int:
    """Pixels that the network will make. Raises PhotoError and Problem where the result is over a limit."""
    images.check_result_size(
        settings.format, round(header.width * settings.scale), round(header.height * settings.scale)
    )
    width, height = header.width * settings.network_scale, header.height * settings.network_scale
    if width * height > limits.result_pixels:
        detail = f"the network would make {width}x{height}, over the limit of {limits.result_pixels} pixels"
        raise Problem("result-too-large", detail, limit=limits.result_pixels, actual=width * height)
    return width * height


def settle(query: UpscaleQuery, model: ModelInfo) -> codec.EncodeSettings:
    """The query with its open ends closed by the model. Raises Problem where the model cannot do it."""
    scale = float(model.scale) if query.scale is None else query.scale
    if scale > model.scale:
        detail = f"the model {model.tag} upscales by at most {model.scale}"
        errors = [{"parameter": "scale", "detail": detail}]
        raise Problem("invalid-parameter", f"scale: {detail}", errors=errors)
    if query.denoise is not None and not model.denoise:
        cleans = model.purpose == "unknown"
        why = "cleans by itself" if cleans else "has no cleaning model that it could be blended with"
        detail = f"the model {model.tag} {why}"
        errors = [{"parameter": "denoise", "detail": detail}]
        raise Problem("invalid-parameter", f"denoise: {detail}", errors=errors)
    assert query.format is not None
    assert query.format != "same"
    red, green, blue = bytes.fromhex(query.background)
    return codec.EncodeSettings(
        scale=scale,
        network_scale=model.scale,
        format=query.format,
        quality=query.quality,
        lossless=query.lossless,
        background=(red, green, blue),
        metadata=query.metadata,
        denoise=query.denoise,
    )


def with_format(query: Query, accepted: AcceptedResponse, data: bytes) -> Query:
    """The query with the format settled: the option, else what Accept asks for, else png.

    Raises Problem (invalid-parameter) for one that this installation cannot write.
    """
    format: str = query.format or accepted.format or "png"
    if format == "same":
        kind = images.sniff(data)
        # HEIC is read only; what is no picture at all is refused when it is measured.
        format = kind if kind is not None and kind in _WRITTEN else "png"
    if not images.at_hand([format]):
        written = ", ".join(images.at_hand(_WRITTEN))
        detail = f"{format} is not installed where this service runs; it writes {written}"
        raise Problem("invalid-parameter", f"format: {detail}", errors=[{"parameter": "format", "detail": detail}])
    return query.model_copy(update={"format": format})


_WRITTEN: tuple[Format, ...] = get_args(Format)


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begin
