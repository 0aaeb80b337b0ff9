"""Models in a replica's memory: loaded when first asked for, one after another, and kept by use."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import nn

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class ModelCache(Generic[K, T]):
    """What `load` gives for a key, with its bytes; at most `most_bytes`, and one more while it is being loaded.

    The least recently used go first. One that is in use elsewhere leaves the memory when that has ended.
    For one event loop.
    """

    def __init__(self, most_bytes: int, load: Callable[[K], tuple[T, int]]) -> None:
        self._most = most_bytes
        self._load = load
        self._held: OrderedDict[K, tuple[T, int]] = OrderedDict()
        self._turn = asyncio.Lock()

    @property
    def bytes(self) -> int:
        """What all take together."""
        return sum(size for _, size in self._held.values())

    def __contains__(self, key: K) -> bool:
        return key in self._held

    async def get(self, key: K) -> tuple[T, float]:
        """The model, and the seconds that were waited for it: 0 where it was there. Raises what `load` raises."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key][0], 0.0
        begin = time.perf_counter()
        async with self._turn:
            if key not in self._held:
                self.put(key, *await asyncio.to_thread(self._load, key))
            return self._held[key][0], time.perf_counter() - begin

    def put(self, key: K, model: T, size: int) -> None:
        """Keeps this one, whatever it takes, and of the others as many as there is room for."""
        self._held[key] = (model, size)
        self._held.move_to_end(key)
        while self.bytes > self._most and len(self._held) > 1:
            self._held.popitem(last=False)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
