"""The HTTP face: addresses, headers and documents. What a request means is in `service`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from ray.serve.handle import DeploymentHandle

from ray_sr import __version__
from ray_sr.serving import job_routes, page, problems
from ray_sr.serving.admission import AdmissionQueue
from ray_sr.serving.api import IN, PICTURE, PROBLEMS, ClientState, ServiceState, check_request
from ray_sr.serving.options import ServiceLimits, ServiceOptions, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.responses import picture_document, picture_headers
from ray_sr.serving.router import Catalogue, Router
from ray_sr.serving.schemas import Models, Status, UpscaledPicture
from ray_sr.serving.service import Service
from ray_sr.serving.telemetry import Observed


class ProblemKind(BaseModel):
    """Answer of /problems/{kind}: what a problem type means."""

    type: str
    title: str
    status: int


class Ingress:
    """The deployment that Serve makes of the HTTP face: a handle for each model of the options, in their order."""

    def __init__(self, options: ServiceOptions, *generators: DeploymentHandle[Any]) -> None:
        handles = zip(options.model_ids, generators, strict=True)
        line = partial(AdmissionQueue, options.limits.queue_s, options.max_replicas * options.requests_per_replica)
        catalogue = Catalogue({name: Router(handle, line()) for name, handle in handles})
        self._service = Service(catalogue, options)

    def __del__(self) -> None:
        if hasattr(self, "_service"):
            self._service.close()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self._service)


def make_api(service: Service) -> FastAPI:
    """The ASGI application. The interactive pages are off: they load scripts from elsewhere."""
    api = FastAPI(title="ray-sr", version=__version__, docs_url=None, redoc_url=None)
    api.state.service = service
    api.include_router(router)
    api.include_router(job_routes.router)
    api.include_router(page.router)
    problems.install(api, UpscaleQuery.model_fields)
    api.add_middleware(Observed, metrics=service.metrics, log=service.log)
    return api


router = APIRouter()

_OUT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the upscaled picture",
        "content": {
            **{f"image/{name}": PICTURE for name in ("png", "jpeg", "webp", "tiff")},
            "application/json": {"schema": UpscaledPicture.model_json_schema()},
        },
    },
    **PROBLEMS,
}


@router.post("/v1/upscale", response_class=Response, responses=_OUT, openapi_extra=IN)
async def upscale(
    request: Request, query: Annotated[UpscaleQuery, Query()], service: ServiceState, client: ClientState
) -> Response:
    """The picture in the body, upscaled. With `Prefer: respond-async` it becomes a job."""
    if "respond-async" in request.headers.get("prefer", ""):
        return await job_routes.begin(request, query, service, client)
    check_request(request)
    answer, wish = await service.upscale(request, query, client)
    if wish.as_json:
        return JSONResponse(picture_document(answer).model_dump(mode="json"))
    return Response(answer.encoded.data, headers=picture_headers(answer))


@router.get("/v1/models")
async def models(service: ServiceState) -> Models:
    """The models that can be asked for."""
    return Models(models=await service.catalogue.models())


@router.get("/v1/limits")
async def limits(service: ServiceState) -> ServiceLimits:
    """What the service accepts."""
    return service.limits


@router.get("/healthz")
@router.get("/v2/health/live", include_in_schema=False)
async def healthz() -> Status:
    """The process is alive."""
    return Status(status="ok")


@router.get("/readyz")
@router.get("/v2/health/ready", include_in_schema=False)
async def readyz(service: ServiceState) -> Status:
    """All models are loaded; 503 before."""
    await service.catalogue.models()
    return Status(status="ready")


@router.get("/problems/{kind}")
async def problem_kind(kind: str) -> ProblemKind:
    """What the `type` of a problem document means."""
    if kind not in problems.KINDS:
        raise Problem("not-found", "there is no such kind of problem")
    status, title = problems.KINDS[kind]
    return ProblemKind(type=f"/problems/{kind}", title=title, status=status)
