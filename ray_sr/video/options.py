"""How clips and animations are made, and what became of them. Needs no PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_sr.images import DEFAULT_LIMITS, Limits
from ray_sr.upscaling.results import FileResult


@dataclass(frozen=True)
class ClipOptions:
    """codec, crf: see `choose_encoding`. existing: what happens where the result is there. resume: go on with an
    unfinished run. keep_metadata: titles, dates and the like. limits: which frames are accepted; not strict: what
    cannot be decoded is left out. quality, lossless: of animated WebP.
    """

    codec: str | None = None
    crf: int | None = None
    existing: str = "refuse"
    resume: bool = False
    keep_metadata: bool = True
    limits: Limits = DEFAULT_LIMITS
    quality: int = 95
    lossless: bool = False


@dataclass(frozen=True)
class ClipResult(FileResult):
    """What became of a clip. frames: in the result; frames_reused, tiles_reused: shares in [0, 1] of those that
    were not computed because they were there already, of what this run did."""

    frames: int = 0
    frames_reused: float = 0.0
    tiles_reused: float = 0.0

    @property
    def megapixels(self) -> float:
        return self.width * self.height * self.frames / 1e6

    def __str__(self) -> str:
        text = super().__str__()
        if self.status != "done":
            return text
        rate = self.frames / max(1e-9, self.seconds)
        return f"{text}, {self.frames} frames, {rate:.2f} frames/s, {self.tiles_reused:.0%} of the tiles reused"


def what_stands(target: Path, options: ClipOptions) -> tuple[Any, str] | None:
    """Status and reason where nothing is to be done."""
    if target.is_dir():
        return "failed", f"{target} is a folder"
    if not target.exists() or options.existing == "overwrite":
        return None
    if options.existing == "skip" or options.resume:
        return "skipped", "the result is there already"
    return "failed", f"{target} exists already: use --overwrite or --skip-existing"
