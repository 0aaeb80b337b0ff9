"""What became of each photo of a run, and of all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ray_sr.errors import printable, visible

_MOST_NAMES = 10


@dataclass(frozen=True)
class FileResult:
    """What became of one photo. width, height: of the result, in pixels; seconds: spent on this photo.

    warnings: what was changed or lost on the way, as the words of `Photo.warnings`. consistency_db: see
    `ray_sr.upscaling.consistency.consistency_db`; None where it was not asked for.
    """

    source: str
    target: str | None
    status: Literal["done", "skipped", "planned", "failed"]
    reason: str = ""
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    consistency_db: float | None = None

    @property
    def megapixels(self) -> float:
        return self.width * self.height / 1e6

    def __str__(self) -> str:
        return visible(self._line())

    def _line(self) -> str:
        if self.status == "failed":
            return f"{self.source}: {self.reason}"
        if self.status != "done":
            return f"{self.source}: {self.status}, {self.target}"
        words = [*self.warnings]
        if self.consistency_db is not None:
            words.append(f"consistency {self.consistency_db:.1f} dB")
        notes = f" ({', '.join(words)})" if words else ""
        return f"{self.source} -> {self.target} {self.width}x{self.height} in {self.seconds:.1f} s{notes}"


@dataclass(frozen=True)
class Summary:
    """What became of all photos, in order. seconds: from start to end. passed_over: files in folders, not read."""

    files: tuple[FileResult, ...]
    seconds: float
    passed_over: tuple[str, ...] = ()

    def and_then(self, results: Iterable[FileResult]) -> Summary:
        """The same with more results, which come one after the other."""
        more = tuple(results)
        seconds = self.seconds + sum(result.seconds for result in more)
        return replace(self, files=(*self.files, *more), seconds=seconds)

    def count(self, status: str) -> int:
        """How many photos have this status."""
        return sum(file.status == status for file in self.files)

    @property
    def megapixels(self) -> float:
        """Megapixels written."""
        return sum(file.megapixels for file in self.files)

    @property
    def exit_code(self) -> int:
        """0, or 3 where a photo failed."""
        return 3 if self.count("failed") else 0

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: counts, megapixels, seconds, and each file's result."""
        counts = {status: self.count(status) for status in ("done", "skipped", "planned", "failed")}
        totals = {"megapixels": self.megapixels, "seconds": self.seconds}
        return {
            **counts,
            **totals,
            "passed_over": list(self.passed_over),
            "files": [asdict(file) for file in self.files],
        }

    def __str__(self) -> str:
        rate = self.megapixels / max(1e-9, self.seconds)
        counts = [(self.count(s), s) for s in ("done", "planned", "skipped", "failed")]
        words = ", ".join(f"{number} {status}" for number, status in counts if number) or "nothing to do"
        line = f"{words}: {self.megapixels:.1f} Mpx in {self.seconds:.1f} s ({rate:.2f} Mpx/s)"
        return f"{line}\n{self._others()}" if self.passed_over else line

    def _others(self) -> str:
        """Which files were not read, as one line."""
        names = [printable(os.path.basename(path)) for path in self.passed_over[:_MOST_NAMES]]
        more = len(self.passed_over) - len(names)
        rest = f" and {more} more" if more else ""
        return f"{len(self.passed_over)} passed over, of no format that is read here: {', '.join(names)}{rest}"
