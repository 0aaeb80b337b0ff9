"""The HTTP face: addresses, headers and documents. What a request means is in `service`."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from ray import serve
from ray.serve.handle import DeploymentHandle

from ray_sr import __version__
from ray_sr.serving import archives, job_routes, page, problems
from ray_sr.serving.api import IN, PICTURE, PROBLEMS, ClientState, ServiceState, check_request
from ray_sr.serving.catalogues import catalogue_of
from ray_sr.serving.job_client import JobClient
from ray_sr.serving.job_storage import JobStorage, jobs_location
from ray_sr.serving.options import Format, JobQuery, ServiceLimits, ServiceOptions, UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.responses import picture_document, picture_headers
from ray_sr.serving.schemas import Models, Status, UpscaledPicture
from ray_sr.serving.service import Service
from ray_sr.serving.telemetry import Observed


class ProblemKind(BaseModel):
    """Answer of /problems/{kind}: what a problem type means."""

    type: str
    title: str
    status: int


class Ingress:
    """The deployment that Serve makes of the HTTP face: the owner of the jobs, and a handle for each model."""

    def __init__(
        self, options: ServiceOptions, owner: DeploymentHandle[Any], *generators: DeploymentHandle[Any]
    ) -> None:
        """Raises InputError, RecipeError and ResourceError where storage of jobs or keys are unusable."""
        storage = JobStorage(jobs_location(options, serve.get_replica_context().app_name))
        client = JobClient(owner, storage, options.most_ingresses)
        self._service = Service(catalogue_of(options, generators), client, options)

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
    api.include_router(archives.router)
    api.include_router(page.router)
    problems.install(api, UpscaleQuery.model_fields)
    api.add_middleware(Observed, metrics=service.metrics, log=service.log)
    if service.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=service.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type", "Idempotency-Key", "Prefer"],
            expose_headers=_TOLD,
            max_age=600,
        )
    return api


_TOLD = [
    *("RaySR-Model", "RaySR-Scale", "RaySR-Warnings", "Server-Timing"),
    *("Content-Disposition", "Location", "Retry-After", "X-Request-Id"),
]
router = APIRouter()

_OUT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the upscaled picture",
        "content": {
            **{f"image/{name}": PICTURE for name in get_args(Format)},
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
        return await job_routes.begin(request, JobQuery(**query.model_dump(exclude_unset=True)), service, client)
    check_request(request)
    answer, accepted = await service.upscale(request, query, client)
    if accepted.as_json:
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
@router.head("/healthz", include_in_schema=False)
@router.get("/v2/health/live", include_in_schema=False)
async def healthz() -> Status:
    """The process is alive."""
    return Status(status="ok")


@router.get("/readyz")
@router.head("/readyz", include_in_schema=False)
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
