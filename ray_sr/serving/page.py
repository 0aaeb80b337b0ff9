"""The page for people at `/`: static files as they are, under a policy that lets in nothing from elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    **dict.fromkeys(("page.js", "queue.js", "service.js", "viewer.js"), "text/javascript; charset=utf-8"),
    "icon.svg": "image/svg+xml",
}
# blob: is the visitor's own photo and its result. Scripts cannot write markup, so no text becomes code.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class StaticFile:
    """A file of the page and the tag of its content."""

    content: bytes
    etag: str


@cache
def static_file(name: str) -> StaticFile:
    """A file of the page, read once."""
    content = (FOLDER / name).read_bytes()
    return StaticFile(content, f'"{hashlib.sha256(content).hexdigest()[:20]}"')


async def page(request: Request) -> Response:
    """A file of the page, or 304 where the browser has it. Browsers ask each time: an update shows at once."""
    name = request.url.path.rsplit("/", 1)[-1] or "index.html"
    file = static_file(name)
    headers = {
        "Cache-Control": "no-cache",
        "ETag": file.etag,
        "Content-Security-Policy": POLICY,
        "Referrer-Policy": "no-referrer",
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=MEDIA_TYPES[name], headers=headers)


for address in ("/", *(f"/{name}" for name in MEDIA_TYPES)):
    router.add_api_route(address, page, methods=["GET", "HEAD"])
