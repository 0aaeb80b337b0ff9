"""What `upscale` says about the choice of model: photos stored as poor JPEG want one that was trained on such."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_sr.store import Model
    from ray_sr.upscaling.naming import UpscaleJob

GOOD_QUALITY = 90
_HEAD = 1 << 18  # bytes; a JPEG's tables come after its metadata
_CLEANING = ("second_order", "jpeg")  # the better first


class ModelAdvice:
    """Called with each photo before it is read: says once, in one line, that another model would do better."""

    def __init__(self, model: Model, store: str | None, say: Callable[[str], None]) -> None:
        self.model, self.store, self.say = model, store, say
        self._lock = threading.Lock()
        self._silent = not _is_for_clean_photos(model.card)

    def __call__(self, job: UpscaleJob) -> None:
        with self._lock:
            if self._silent or job.skip or job.problem:
                return
            quality = _quality_of(Path(job.source))
            if quality is None or quality >= GOOD_QUALITY:
                return
            self._silent = True
        if better := _cleaning_model(self.store, self.model.capability.scale):
            self.say(
                f"{job.source}: a JPEG of quality {quality}, and {self.model.name} is for undamaged photos: "
                f"-n {better} cleans them"
            )


def _quality_of(path: Path) -> int | None:
    from ray_sr.images.jpeg_quality import jpeg_quality

    try:
        with path.open("rb") as file:
            return jpeg_quality(file.read(_HEAD))
    except OSError:  # the photo's own reading will say so
        return None


def _steps(card: dict[str, Any]) -> list[str]:
    return [step["kind"] for step in (card.get("recipe") or {}).get("degradation", [])]


def _is_for_clean_photos(card: dict[str, Any]) -> bool:
    return _steps(card) == ["downscale"]


def _cleaning_model(store: str | None, scale: int) -> str | None:
    """Name of the model in the store, or that comes with ray-sr, that was trained on what JPEG leaves.

    One of a larger scale does too: its results are made smaller.
    """
    from ray_sr.store import Store
    from ray_sr.store.store import SHIPPED

    found = [
        (record.network.scale, kind, place, record.name)
        for place, records in enumerate((Store(store).list(), Store(SHIPPED).list()))
        for record in records
        for kind, step in enumerate(_CLEANING)
        if record.network.scale >= scale and step in _steps({"recipe": record.recipe})
    ]
    return min(found)[-1] if found else None
