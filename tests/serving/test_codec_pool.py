"""The codec processes: the same pictures as in this process, whatever happens to them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from ray_sr import images
from ray_sr.images import Photo, PhotoError, decode, encode, scan_header
from ray_sr.serving.codec import EncodeSettings, accepted_photos
from ray_sr.serving.codec import encode as encode_here
from ray_sr.serving.codec_pool import CodecPool
from ray_sr.serving.options import ServiceLimits
from ray_sr.serving.problems import Problem
from tests.serving.conftest import picture, png_of

LIMITS = ServiceLimits(decode_cpu_s=10)
PNG = EncodeSettings(1, 1, "png", 95, False, (255, 255, 255), "keep")


@asynccontextmanager
async def pool_of(size: int, pictures_each: int = 1000) -> AsyncIterator[CodecPool]:
    pool = CodecPool(size, pictures_each)
    try:
        yield pool
    finally:
        pool.close()


def run(scenario: Callable[[CodecPool], Awaitable[None]], size: int = 1, pictures_each: int = 1000) -> None:
    async def whole() -> None:
        async with asyncio.timeout(120), pool_of(size, pictures_each) as pool:
            await scenario(pool)

    asyncio.run(whole())


async def decoded(pool: CodecPool, data: bytes, limits: ServiceLimits = LIMITS) -> Photo:
    return await pool.decode(data, scan_header(data), limits)


async def arrival(pid: int) -> None:
    """Returns when something waits in the input of a process that does not read."""
    with open(f"/proc/{pid}/fd/0", "rb", buffering=0) as pipe:
        while not struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]:
            await asyncio.sleep(0.01)


def same(one: Photo, other: Photo) -> bool:
    pixels = np.array_equal(one.pixels, other.pixels) and one.pixels.dtype == other.pixels.dtype
    opacity = (one.alpha is None and other.alpha is None) or np.array_equal(one.alpha, other.alpha)  # type: ignore[arg-type]
    rest = ("icc", "exif", "xmp", "density", "warnings")
    return pixels and opacity and all(getattr(one, name) == getattr(other, name) for name in rest)


def test_pictures_are_those_of_this_process() -> None:
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>kept</x:xmpmeta>"
    photos = [
        picture(20, 30),
        picture(7, 5, channels=1, alpha=True, depth=16),
        replace(picture(9, 9), xmp=xmp, density=(72.0, 96.0)),
    ]

    async def scenario(pool: CodecPool) -> None:
        for photo in photos:
            encoded = await pool.encode(photo, PNG)
            assert encoded == encode_here(photo, PNG)
            found = await decoded(pool, encoded.data)
            assert same(found, decode(encoded.data, accepted_photos(LIMITS)))
        jpeg = await pool.encode(photos[1], replace(PNG, format="jpeg", background=(9, 9, 9)))
        assert jpeg.warnings == ("depth-reduced", "alpha-flattened")
        assert jpeg.data == encode(photos[1], "jpeg", background=(9, 9, 9))

    run(scenario)


def test_bad_pictures_are_named_and_leave_the_process_alone() -> None:
    async def scenario(pool: CodecPool) -> None:
        before = pool.pids
        with pytest.raises(PhotoError, match="cannot be decoded"):
            await decoded(pool, png_of(8, 8, b"garbage"))
        with pytest.raises(PhotoError, match="over the limit") as caught:
            await decoded(pool, encode(picture(40, 40), "png"), LIMITS.model_copy(update={"input_pixels": 99}))
        assert caught.value.reason == "image-too-large"
        assert pool.pids == before

    run(scenario)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGKILL, "overloaded"), (signal.SIGSEGV, "image-corrupt"), (signal.SIGXCPU, "unsupported-image")],
)
def test_death_at_work_is_an_answer_and_the_next_picture_is_fine(number: signal.Signals, kind: str) -> None:
    """The process is stopped, so that it surely holds the picture when it dies."""

    async def scenario(pool: CodecPool) -> None:
        small = encode(picture(8, 8), "png")
        await decoded(pool, small)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        work = asyncio.create_task(decoded(pool, small))
        await arrival(pid)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        with pytest.raises((Problem, PhotoError)) as caught:
            await work
        assert (getattr(caught.value, "kind", None) or getattr(caught.value, "reason", None)) == kind
        assert same(await decoded(pool, small), picture(8, 8))
        assert pool.pids != [pid]

    run(scenario)


def test_death_at_rest_is_not_noticed() -> None:
    async def scenario(pool: CodecPool) -> None:
        small = encode(picture(8, 8), "png")
        for _ in range(3):
            for pid in pool.pids:
                os.kill(pid, signal.SIGKILL)
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert same(await decoded(pool, small), picture(8, 8))

    run(scenario, size=2)


def test_slow_pictures_are_ended_by_their_processor_time() -> None:
    """48 megapixels of zeros take far longer than a second of processor time to fill and to compress again."""

    async def scenario(pool: CodecPool) -> None:
        side = 12_000
        slow = png_of(side, side, zlib.compress(bytes(side * (3 * side + 1)), 1))
        limits = ServiceLimits(input_pixels=side * side, decode_cpu_s=0.001)
        small = encode(picture(8, 8), "png")
        with pytest.raises(PhotoError, match="CPU time") as caught:
            await decoded(pool, slow, limits)
        assert caught.value.reason == "unsupported-image"
        assert same(await decoded(pool, small), picture(8, 8))

    run(scenario)


def test_memory_is_limited() -> None:
    async def scenario(pool: CodecPool) -> None:
        large = encode(Photo(np.zeros((3000, 3000, 3), np.uint8)), "png")
        honest = scan_header(large)
        with pytest.raises((Problem, PhotoError)):
            await pool.decode(large, replace(honest, width=1, height=-(1 << 26)), LIMITS)  # next to no memory
        assert same(await decoded(pool, encode(picture(8, 8), "png")), picture(8, 8))

    run(scenario)


def test_who_leaves_ends_the_process_and_frees_its_place() -> None:
    async def scenario(pool: CodecPool) -> None:
        small = encode(picture(8, 8), "png")
        await decoded(pool, small)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)  # it would never answer
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        work = asyncio.create_task(decoded(pool, small))
        await arrival(pid)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert same(await decoded(pool, small), picture(8, 8))

    run(scenario)


def test_processes_are_replaced_after_so_many_pictures() -> None:
    async def scenario(pool: CodecPool) -> None:
        seen = set()
        for _ in range(6):
            seen |= set(pool.pids)
            await decoded(pool, encode(picture(8, 8), "png"))
        assert len(seen) == 3

    run(scenario, pictures_each=2)


def test_more_pictures_than_processes_wait_their_turn() -> None:
    async def scenario(pool: CodecPool) -> None:
        sent = [picture(8 + n, 9) for n in range(12)]
        found = await asyncio.gather(*(decoded(pool, images.encode(photo, "png")) for photo in sent))
        assert all(same(one, other) for one, other in zip(found, sent, strict=True))

    run(scenario, size=2)
