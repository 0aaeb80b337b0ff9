"""The addresses of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from ray_sr.serving.api import IN, PICTURE, PROBLEMS, ClientState, ServiceState, check_request
from ray_sr.serving.job_records import JobRecord
from ray_sr.serving.job_storage import pieces_of
from ray_sr.serving.keys import Client
from ray_sr.serving.options import JobQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.schemas import JobStatus
from ray_sr.serving.service import Service

SILENCE_S = 15.0  # after which a comment shows that the connection lives

router = APIRouter(prefix="/v1/jobs", responses=PROBLEMS)


async def _job_of(id: str, service: ServiceState, client: ClientState) -> JobRecord:
    return await service.jobs.find(id, client.name)


JobOfPath = Annotated[JobRecord, Depends(_job_of)]


@router.post("", status_code=202, response_model=JobStatus, openapi_extra=IN)
async def begin(
    request: Request, query: Annotated[JobQuery, Query()], service: ServiceState, client: ClientState
) -> Response:
    """A job that upscales the picture in the body. The same Idempotency-Key gives the same job."""
    check_request(request)
    job = await service.begin_job(request, query, client)
    root = request.scope.get("root_path", "")
    return JSONResponse(job.status(root).model_dump(mode="json"), 202, {"Location": f"{root}/v1/jobs/{job.id}"})


@router.get("/{id}")
async def status(request: Request, job: JobOfPath) -> JobStatus:
    """How far the job is."""
    return job.status(request.scope.get("root_path", ""))


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "server-sent events", "content": {"text/event-stream": {}}}
}


@router.get("/{id}/events", response_class=Response, responses=_EVENTS)
async def events(request: Request, job: JobOfPath, service: ServiceState, client: ClientState) -> Response:
    """An event `progress` now and after each tile, and `end` as the last one; the data is the job's status."""
    stream = _events(service, job.id, client, request.scope.get("root_path", ""))
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _events(service: Service, id: str, client: Client, root: str) -> AsyncIterator[str]:
    async for record in service.jobs.watch(id, client.name, SILENCE_S):
        if record is not None:
            name = "end" if record.ended else "progress"
            yield f"event: {name}\ndata: {record.status(root).model_dump_json()}\n\n"
        else:
            yield ": still here\n\n"


_RESULT: dict[int | str, dict[str, Any]] = {
    200: {"description": "the upscaled picture", "content": {"image/png": PICTURE, "image/jpeg": PICTURE}}
}


@router.get("/{id}/result", response_class=Response, responses=_RESULT)
@router.head("/{id}/result", include_in_schema=False)
async def result(request: Request, job: JobOfPath, service: ServiceState) -> Response:
    """The picture: 409 before there is one, and where the job failed, what went wrong."""
    if job.problem is not None:
        raise job.problem.restored()
    if job.state == "canceled":
        raise Problem("gone", "the job was canceled")
    if job.state != "succeeded":
        percent = int(100 * job.progress)
        raise Problem("job-not-ready", f"the job is {job.state}, {percent} % done; see its events", retry_after=2)
    headers = {**job.headers, "Content-Length": str(job.result_bytes)}
    if request.method == "HEAD":
        return Response(headers=headers)
    stream = await service.jobs.result(job.id)
    return StreamingResponse(pieces_of(stream), headers=headers)


@router.delete("/{id}")
async def cancel(id: str, request: Request, service: ServiceState, client: ClientState) -> JobStatus:
    """Ends the work on the job; of one that has ended, the result is deleted."""
    record = await service.jobs.cancel(id, client.name)
    return record.status(request.scope.get("root_path", ""))
