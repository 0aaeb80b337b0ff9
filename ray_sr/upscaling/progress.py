"""How far a run over many photos is: a bar on a terminal, else one line for each photo."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from ray_sr.upscaling.results import FileResult

_BAR = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class ProgressReport:
    """Writes to `stream`, by default stderr; with `quiet` only failures."""

    def __init__(self, photos: int, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._photos = photos
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._begin = time.perf_counter()
        self._upscaled = self._finished = 0
        self._megapixels = 0.0
        shown = not quiet and self._stream.isatty()
        self._bar = tqdm(total=photos, file=self._stream, bar_format=_BAR, leave=False) if shown else None

    def advance(self, share: float) -> None:
        """The photo under way is done up to `share`, in [0, 1]."""
        if self._bar is not None:
            self._bar.n = self._upscaled + share
            self._bar.refresh()

    def next(self) -> None:
        """The network is through with one photo, or it has failed or been skipped before."""
        self._upscaled += 1
        self.advance(0)

    def finish(self, result: FileResult) -> None:
        """One photo has its result."""
        self._finished += 1
        self._megapixels += result.megapixels
        if self._bar is not None:
            rate = self._megapixels / max(1e-9, time.perf_counter() - self._begin)
            self._bar.set_postfix_str(f"{self._finished}/{self._photos} photos, {rate:.1f} Mpx/s")
        if result.status == "failed" or (self._bar is None and not self._quiet):
            self._write(str(result))

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)
