"""A codec process: decodes and encodes what it is sent until its input ends.

    python -m ray_sr.serving.codec_process

Each picture has its own bounds on memory and processor time, beyond which the kernel refuses or ends the
process. It can neither write files nor gain rights, and knows nothing of the service but what it is sent.
"""

from __future__ import annotations

import os
import resource
from dataclasses import asdict
from typing import Any

from ray_sr.errors import ResourceError
from ray_sr.images import Limits, PhotoError
from ray_sr.serving import codec, codec_protocol

Reply = tuple[dict[str, Any], list[codec_protocol.Buffer]]


def decode_head(accepted: Limits, memory: int, cpu_s: float) -> dict[str, Any]:
    """Head of the message that asks for decoding; the picture's bytes are its buffer."""
    return {"task": "decode", "accepted": asdict(accepted), "memory": memory, "cpu_s": cpu_s}


def encode_head(photo_head: dict[str, Any], job: codec.EncodeSettings, memory: int, cpu_s: float) -> dict[str, Any]:
    """Head of the message that asks for encoding; the photo's buffers go with it."""
    return {"task": "encode", "photo": photo_head, "job": asdict(job), "memory": memory, "cpu_s": cpu_s}


def main() -> None:
    """Serves the pipes on stdin and stdout; whatever else is printed goes to stderr."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    while True:
        try:
            head, buffers = codec_protocol.receive(source)
        except EOFError:
            return
        _bound(head["memory"], head["cpu_s"])
        codec_protocol.send(target, *_answer(head, buffers))


def _bound(memory: int, cpu_s: float) -> None:
    """Soft limits for the next picture: address space in bytes, processor time from now on."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory, hard))
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + cpu_s) + 1, hard))


def _answer(head: dict[str, Any], buffers: list[bytearray]) -> Reply:
    try:
        return _decode(head, buffers) if head["task"] == "decode" else _encode(head, buffers)
    except PhotoError as error:
        return {"error": "photo", "detail": str(error), "reason": error.reason}, []
    except (MemoryError, ResourceError) as error:
        return {"error": "memory", "detail": str(error)}, []
    except Exception as error:  # whatever a picture can do to a decoder ends here
        return {"error": "unforeseen", "detail": f"{type(error).__name__}: {error}"}, []


def _decode(head: dict[str, Any], buffers: list[bytearray]) -> Reply:
    accepted = Limits(**{**head["accepted"], "formats": tuple(head["accepted"]["formats"])})
    return codec_protocol.pack_photo(codec.decode(bytes(buffers[0]), accepted))


def _encode(head: dict[str, Any], buffers: list[bytearray]) -> Reply:
    job = codec.EncodeSettings(**{**head["job"], "background": tuple(head["job"]["background"])})
    encoded = codec.encode(codec_protocol.unpack_photo(head["photo"], buffers), job)
    size = {"width": encoded.width, "height": encoded.height, "warnings": encoded.warnings}
    return size, [encoded.data]


if __name__ == "__main__":
    main()
