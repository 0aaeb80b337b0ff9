"""Results of tiles that were run before, found by what the network saw: for frames that change only in part."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

MOST_BYTES = 768 << 20  # two results of 8K are 200 MB


class TileResults:
    """The last results, as many as fit into `most_bytes`. One thread at a time."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._held = 0
        self._results: OrderedDict[bytes, np.ndarray] = OrderedDict()

    @staticmethod
    def key(source: np.ndarray, *settings: object) -> bytes:
        """Of a tile's source, H×W×C, and what else decides about its result."""
        digest = hashlib.blake2b(repr((source.shape, source.dtype.str, settings)).encode(), digest_size=20)
        digest.update(np.ascontiguousarray(source).data)
        return digest.digest()

    def get(self, key: bytes) -> np.ndarray | None:
        result = self._results.get(key)
        if result is not None:
            self._results.move_to_end(key)
        return result

    def put(self, key: bytes, result: np.ndarray) -> None:
        """Keeps a result, which must not be changed after that; the oldest ones make room."""
        if key in self._results or result.nbytes > self._most:
            return
        self._results[key] = result
        self._held += result.nbytes
        while self._held > self._most:
            _, oldest = self._results.popitem(last=False)
            self._held -= oldest.nbytes
