"""The codec processes as the ingress uses them: a pool whose members can be killed and are replaced."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from ray_sr.images import Photo, PhotoError
from ray_sr.images.headers import Header
from ray_sr.serving import codec, codec_protocol
from ray_sr.serving.codec_process import decode_head, encode_head
from ray_sr.serving.codec_protocol import Buffer
from ray_sr.serving.options import ServiceLimits
from ray_sr.serving.problems import Problem

logger = logging.getLogger(__name__)

PICTURES_EACH = 1000  # before a process is replaced, so that no leak of a codec grows
_BASE_MEMORY = 2 << 30  # address space of Python, NumPy and libvips, and of small pictures
_MEMORY_PER_PIXEL = 32  # four copies of 16-bit RGBA
_ENCODE_CPU_S = 10.0
_PIECE = 1 << 22  # pixels for which the times above are meant; larger pictures have more
_PATIENCE = 4  # times its processor time that a picture may take, on a busy machine
_PIPE_BYTES = 1 << 20
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
_BLAMELESS = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)  # somebody ended it: the picture may be fine


class _Died(Exception):
    """The process ended while it worked; `status` as subprocess gives it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"codec process ended with {status}")
        self.status = status


class _Process:
    """One codec process. `call` blocks; `kill` may come from elsewhere meanwhile."""

    def __init__(self, pictures: int) -> None:
        self._most = pictures
        self._served = 0
        self._process = _start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, head: dict[str, Any], buffers: Sequence[Buffer]) -> tuple[dict[str, Any], list[bytearray]]:
        """The answer to one message. Raises _Died; the next call then finds a new process."""
        if self._process.poll() is not None:  # ended at rest
            self._replace()
        try:
            codec_protocol.send(cast(BinaryIO, self._process.stdin), head, buffers)
            answer = codec_protocol.receive(cast(BinaryIO, self._process.stdout))
        except (OSError, EOFError, ValueError):
            self.kill()
            status = self._process.wait()
            self._replace()
            raise _Died(status) from None
        self._served += 1
        if self._served >= self._most:
            self._replace()
        return answer

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Ends the process."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            try:
                cast(BinaryIO, stream).close()
            except BrokenPipeError:  # the rest of a message that nobody reads any more
                continue

    def _replace(self) -> None:
        self.close()
        self._process, self._served = _start(), 0


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ray_sr.serving.codec_process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    for stream in (process.stdin, process.stdout):
        fcntl.fcntl(cast(BinaryIO, stream), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


class CodecPool:
    """Decodes and encodes, `size` pictures at the same time. For one event loop.

    A call that is cancelled, or that takes too long, ends its process.
    """

    def __init__(self, size: int, pictures_each: int = PICTURES_EACH) -> None:
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="codec")
        self._all = [_Process(pictures_each) for _ in range(size)]
        self._free: asyncio.LifoQueue[_Process] = asyncio.LifoQueue()
        for process in self._all:
            self._free.put_nowait(process)

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return [process.pid for process in self._all]

    async def decode(self, data: bytes, header: Header, limits: ServiceLimits) -> Photo:
        """Photo of the bytes, whose header has been checked. Raises PhotoError and Problem."""
        pixels = header.width * header.height
        cpu_s = limits.decode_cpu_s * max(1, pixels / _PIECE)
        head = decode_head(codec.accepted_photos(limits), _memory(pixels), cpu_s)
        slow = PhotoError(f"takes over {cpu_s:.0f} s of CPU time to decode", "unsupported-image")
        failed = PhotoError("the decoder failed on this picture")
        return codec_protocol.unpack_photo(*await self._call(head, [data], slow, failed))

    async def encode(self, photo: Photo, job: codec.EncodeSettings) -> codec.Encoded:
        """The photo's bytes. Raises PhotoError and Problem."""
        pixels = photo.height * photo.width
        cpu_s = _ENCODE_CPU_S * max(1, pixels / _PIECE)
        photo_head, buffers = codec_protocol.pack_photo(photo)
        head = encode_head(photo_head, job, _memory(pixels), cpu_s)
        slow = Problem("timeout", f"{job.format} took over {cpu_s:.0f} s of CPU time; ask for another format")
        size, found = await self._call(head, buffers, slow, Problem("internal", "the encoder failed"))
        return codec.Encoded(bytes(found[0]), size["width"], size["height"], tuple(size["warnings"]))

    def close(self) -> None:
        """Ends all processes."""
        for process in self._all:
            process.close()
        self._threads.shutdown(wait=False)

    async def _call(
        self, head: dict[str, Any], buffers: Sequence[Buffer], slow: Exception, failed: Exception
    ) -> tuple[dict[str, Any], list[bytearray]]:
        try:
            answer, found = await self._exchange(head, buffers)
        except TimeoutError:
            raise slow from None
        except _Died as error:
            logger.warning("%s, while it was to %s", error, head["task"])
            if error.status in _BLAMELESS:
                raise Problem("overloaded", "the process that held the picture was ended; send it again") from None
            raise (slow if error.status == -signal.SIGXCPU else failed) from None
        if "error" not in answer:
            return answer, found
        raise _told(answer, failed)

    async def _exchange(
        self, head: dict[str, Any], buffers: Sequence[Buffer]
    ) -> tuple[dict[str, Any], list[bytearray]]:
        process = await self._free.get()
        work = asyncio.get_running_loop().run_in_executor(self._threads, process.call, head, buffers)
        work.add_done_callback(lambda done: self._give_back(process, done))
        try:
            async with asyncio.timeout(_PATIENCE * head["cpu_s"]):
                return await asyncio.shield(work)
        finally:
            if not work.done():
                process.kill()

    def _give_back(self, process: _Process, done: asyncio.Future[Any]) -> None:
        _ = done.cancelled() or done.exception()  # seen, even where its caller has left
        self._free.put_nowait(process)


def _memory(pixels: int) -> int:
    return _BASE_MEMORY + _MEMORY_PER_PIXEL * pixels


def _told(answer: dict[str, Any], failed: Exception) -> Exception:
    """The error that a codec process reported."""
    if answer["error"] == "photo":
        return PhotoError(answer["detail"], answer["reason"])
    logger.warning("codec: %s", answer["detail"])
    if answer["error"] == "memory":
        return Problem("overloaded", "not enough memory for this picture now; try again or send a smaller one")
    return failed
