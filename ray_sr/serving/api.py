"""What the addresses share: who asks, what is checked before a body is read, and how it is documented."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from ray_sr.serving import problems
from ray_sr.serving.keys import Client
from ray_sr.serving.problems import Problem
from ray_sr.serving.schemas import ProblemDocument
from ray_sr.serving.service import Service


async def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceState = Annotated[Service, Depends(_service_of)]


async def _client_of(request: Request, service: ServiceState) -> Client:
    headers = request.headers
    client = service.keys.client(headers.get("authorization", ""), headers.get("x-api-key", ""))
    request.scope["ray_sr.key"] = client.name
    return client


ClientState = Annotated[Client, Depends(_client_of)]

PICTURE = {"schema": {"type": "string", "format": "binary"}}
_JSON_BODY = {
    "schema": {"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}},
    "example": {"image": "<base64 of the file>", "scale": 2, "format": "webp"},
}
_FORM = {
    "schema": {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string", "format": "binary"}, "scale": {"type": "number"}},
    }
}
IN = {
    "requestBody": {
        "description": "The picture itself, or a form or JSON object with it and any of the options.",
        "required": True,
        "content": {
            "application/octet-stream": PICTURE,
            "multipart/form-data": _FORM,
            "application/json": _JSON_BODY,
        },
    }
}
_EXAMPLE = {
    "type": "/problems/image-too-large",
    "title": "The picture has too many pixels",
    "status": 422,
    "detail": "5000x4000 is over the limit of 4194304 pixels",
    "instance": "7d0a6f6e-6f3c-4f0e-9a53-0a5f1a3f2c11",
    "limit": 4194304,
    "actual": 20000000,
}
_PROBLEM = {
    "description": "problem details (RFC 9457)",
    "content": {problems.MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema(), "example": _EXAMPLE}},
}
PROBLEMS: dict[int | str, dict[str, Any]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}


def check_request(request: Request) -> None:
    """What can be refused on address and headers alone. Raises Problem."""
    names = [name for name, _ in request.query_params.multi_items()]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        errors = [{"parameter": name, "detail": "given more than once"} for name in repeated]
        raise Problem("invalid-parameter", f"{', '.join(repeated)}: given more than once", errors=errors)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise Problem("unsupported-media-type", "Content-Encoding is not accepted; send the picture as it is")
