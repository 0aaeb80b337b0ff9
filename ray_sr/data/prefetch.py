"""Work done ahead of its use, by threads that do not disturb the training beside them."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from ray.exceptions import RayError

from ray_sr import errors
from ray_sr.errors import RaySRError

AHEAD = 4  # results that wait for their use, at most

Item = TypeVar("Item")
Result = TypeVar("Result")

_RAISED = re.compile(r"^ray_sr\.errors\.(\w+): (.+)$", re.MULTILINE)


def single_threaded(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses no further ones: on small tensors those cost up to six times what they save.

    torch keeps the number for each thread; the calling thread's stays as it is.
    """
    return ThreadPoolExecutor(threads, "batches", initializer=torch.set_num_threads, initargs=(1,))


def prefetch_map(
    make: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int = AHEAD
) -> Generator[Result, None, None]:
    """`map(make, items)` in order, up to `ahead` results ahead, by threads that end with the iterator.

    What a Ray task raised as a RaySRError is raised as that again.
    """
    pool = single_threaded(threads)
    source, waiting = iter(items), deque[Future[Result]]()
    try:
        waiting.extend(pool.submit(make, item) for item in itertools.islice(source, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(make, item) for item in itertools.islice(source, 1))
            yield result
    except RayError as error:
        raise own_error(error) or error from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def own_error(error: RayError) -> RaySRError | None:
    """The RaySRError that a Ray task raised: Ray Data hands on no more of it than its traceback."""
    found = _RAISED.findall(str(error))
    if not found:
        return None
    kind, message = found[0]
    return getattr(errors, kind)(message)
