"""What one writes without Ray: FastAPI and uvicorn around the same decoder, engine and encoder.

    python -m benchmarks.plain_endpoint MODEL STORE PORT THREADS

One process; requests run in threads, and the engine takes one picture at a time.
"""

from __future__ import annotations

import sys
import threading

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

from ray_sr.images import decode, encode
from ray_sr.store import load_model
from ray_sr.upscaling import Engine, upscale_photo


def make_api(model: str, store: str) -> FastAPI:
    loaded = load_model(model, store)
    engine = Engine(loaded.module, loaded.capability, device="cpu")
    turn = threading.Lock()
    api = FastAPI()

    def work(data: bytes) -> bytes:
        photo = decode(data)
        with turn:
            result = upscale_photo(photo, engine)
        return encode(result, "png")

    @api.post("/v1/upscale", response_class=Response)
    async def upscale(request: Request) -> Response:
        return Response(await run_in_threadpool(work, await request.body()), media_type="image/png")

    return api


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    uvicorn.run(make_api(sys.argv[1], sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
