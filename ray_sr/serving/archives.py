"""Results of many jobs as one ZIP, which is made while it is sent: nothing of it lies anywhere.

What is to be in it is said first, by who owns the jobs; the address that is given then needs no key, so that a
browser can download it as it downloads anything. It cannot be guessed, and is forgotten after an hour.
"""

from __future__ import annotations

import json
import secrets
import zipfile
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from ray_sr.serving.api import PROBLEMS, ClientState, ServiceState
from ray_sr.serving.job_client import JobClient
from ray_sr.serving.job_storage import pieces_of
from ray_sr.serving.options import Section
from ray_sr.serving.problems import Problem

MOST = 2000
_FORCE_ZIP64 = 1 << 31

router = APIRouter(prefix="/v1/archives", responses=PROBLEMS)


class ArchiveEntry(Section):
    """A result, and its name in the ZIP: a relative path."""

    id: str = Field(min_length=10, max_length=64)
    name: str = Field(min_length=1, max_length=300)


class ArchiveRequest(Section):
    """Body of POST /v1/archives."""

    jobs: tuple[ArchiveEntry, ...] = Field(min_length=1, max_length=MOST)


class Archive(BaseModel):
    """Answer of POST /v1/archives."""

    url: str = Field(description="where the ZIP can be downloaded for an hour, without a key")
    bytes: int = Field(description="of all results")


@router.post("", status_code=201, response_model=Archive)
async def describe(
    request: Request, wanted: Annotated[ArchiveRequest, Body()], service: ServiceState, client: ClientState
) -> Response:
    """An address for the results of these jobs as one ZIP. All of them must have succeeded."""
    sizes = []
    for entry in wanted.jobs:
        record = await service.jobs.find(entry.id, client.name)
        if record.state != "succeeded":
            raise Problem("job-not-ready", f"the job {entry.id} is {record.state}: it has no result")
        sizes.append(record.result_bytes or 0)
    names = unique_names([entry.name for entry in wanted.jobs])
    content = [[entry.id, name, size] for entry, name, size in zip(wanted.jobs, names, sizes, strict=True)]
    token = secrets.token_urlsafe(24)
    await service.jobs.write_archive(token, json.dumps(content).encode())
    url = f"{request.scope.get('root_path', '')}/v1/archives/{token}"
    return JSONResponse({"url": url, "bytes": sum(sizes)}, 201, {"Location": url})


@router.get("/{token}", response_class=Response, responses={200: {"content": {"application/zip": {}}}})
async def download(token: str, service: ServiceState) -> Response:
    """The ZIP."""
    content = await service.jobs.read_archive(token)
    if content is None:
        raise Problem("not-found", "there is no such archive, or its hour is over; ask for it again")
    entries = [(str(id), str(name), int(size)) for id, name, size in json.loads(content)]
    headers = {"Content-Disposition": 'attachment; filename="upscaled.zip"'}
    return StreamingResponse(zip_of(service.jobs, entries), media_type="application/zip", headers=headers)


def unique_names(names: list[str]) -> list[str]:
    """Relative paths that lead out of no folder; a name that comes again gets a number."""
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        parts = [part.strip() for part in name.replace("\\", "/").split("/")]
        clean = "/".join(_printable(part) for part in parts if part not in ("", ".", "..")) or "picture"
        stem, dot, suffix = clean.rpartition(".")
        chosen, number = clean, 2
        while chosen.lower() in taken:  # on many filesystems capitals are the same
            chosen = f"{stem} ({number}).{suffix}" if dot else f"{clean} ({number})"
            number += 1
        taken.add(chosen.lower())
        found.append(chosen)
    return found


def _printable(part: str) -> str:
    return "".join(letter if letter.isprintable() and letter not in '<>:"|?*' else "_" for letter in part)


class _Sink:
    """What a ZipFile writes into and a response is sent from."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def flush(self) -> None:
        return

    def take(self) -> bytes:
        taken = bytes(self._written)
        self._written.clear()
        return taken


async def zip_of(jobs: JobClient, entries: list[tuple[str, str, int]]) -> AsyncIterator[bytes]:
    """The bytes of a ZIP with these (job, name, bytes). Pictures are packed already: no second time."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for id, name, size in entries:
            stream = await jobs.result(id)
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=size >= _FORCE_ZIP64) as member:
                async for piece in pieces_of(stream):
                    member.write(piece)
                    yield sink.take()
    yield sink.take()
