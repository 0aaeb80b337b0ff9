"""The HTTP face: addresses, headers and documents. What a request means is in `service`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel
from ray.serve.handle import DeploymentHandle

from ray_sr import __version__
from ray_sr.serving import page, problems
from ray_sr.serving.generators import Generators
from ray_sr.serving.messages import Models, ServedModel, Status
from ray_sr.serving.options import ServiceLimits, ServiceOptions, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.service import Answer, Service

SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tif"}


class ProblemKind(BaseModel):
    """Answer of /problems/{kind}: what a problem type means."""

    type: str
    title: str
    status: int


class Ingress:
    """The deployment that Serve makes of the HTTP face."""

    def __init__(self, generators: DeploymentHandle[Any], options: ServiceOptions) -> None:
        self._service = Service(Generators(generators), options.limits)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self._service)


def make_api(service: Service) -> FastAPI:
    """The ASGI application. The interactive pages are off: they load scripts from elsewhere."""
    api = FastAPI(title="ray-sr", version=__version__, docs_url=None, redoc_url=None)
    api.state.service = service
    api.include_router(router)
    api.include_router(page.router)
    problems.install(api, UpscaleQuery.model_fields)
    return api


async def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceState = Annotated[Service, Depends(_service_of)]
router = APIRouter()

_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_IN = {"requestBody": {"required": True, "content": {"application/octet-stream": _PICTURE}}}
_OUT: dict[int | str, dict[str, Any]] = {
    200: {"description": "the upscaled picture", "content": {f"image/{name}": _PICTURE for name in SUFFIXES}},
    "4XX": {"description": "problem details (RFC 9457)", "content": {problems.MEDIA_TYPE: {}}},
    "5XX": {"description": "problem details (RFC 9457)", "content": {problems.MEDIA_TYPE: {}}},
}


@router.post("/v1/upscale", response_class=Response, responses=_OUT, openapi_extra=_IN)
async def upscale(request: Request, query: Annotated[UpscaleQuery, Query()], service: ServiceState) -> Response:
    """The picture in the body, upscaled."""
    _refuse_repeated_options(request)
    _refuse_encoded_body(request)
    return _picture(await service.upscale(request, query))


@router.get("/v1/models")
async def models(service: ServiceState) -> Models:
    """The models that can be asked for."""
    info = await service.generators.model()
    return Models(models=[ServedModel(id=info.name, **info.model_dump())])


@router.get("/v1/limits")
async def limits(service: ServiceState) -> ServiceLimits:
    """What the service accepts."""
    return service.limits


@router.get("/healthz")
async def healthz() -> Status:
    """The process is alive."""
    return Status(status="ok")


@router.get("/readyz")
async def readyz(service: ServiceState) -> Status:
    """A model is loaded; 503 before."""
    await service.generators.model()
    return Status(status="ready")


@router.get("/problems/{kind}")
async def problem_kind(kind: str) -> ProblemKind:
    """What the `type` of a problem document means."""
    if kind not in problems.KINDS:
        raise Problem("not-found", "there is no such kind of problem")
    status, title = problems.KINDS[kind]
    return ProblemKind(type=f"/problems/{kind}", title=title, status=status)


def _refuse_repeated_options(request: Request) -> None:
    names = [name for name, _ in request.query_params.multi_items()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        errors = [{"parameter": name, "detail": "given more than once"} for name in repeated]
        detail = f"{', '.join(repeated)}: given more than once"
        raise Problem("invalid-parameter", detail, errors=errors)


def _refuse_encoded_body(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem("unsupported-media-type", "Content-Encoding is not accepted; send the picture as it is")


def _picture(answer: Answer) -> Response:
    job, encoded = answer.job, answer.encoded
    headers = {
        "Content-Disposition": f'inline; filename="upscaled_x{job.scale:g}.{SUFFIXES[job.format]}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Server-Timing": ", ".join(f"{name};dur={1000 * s:.1f}" for name, s in answer.seconds.items()),
        "RaySR-Model": answer.model.tag,
        "RaySR-Scale": f"{job.scale:g}",
    }
    if encoded.warnings:
        headers["RaySR-Warnings"] = ", ".join(encoded.warnings)
    return Response(encoded.data, media_type=f"image/{job.format}", headers=headers)
