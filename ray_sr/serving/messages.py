"""What travels between ingress, generator replicas and clients. Importing it costs neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from ray_sr.images import Photo


class ModelInfo(BaseModel):
    """The model that a replica holds. `version` is the start of the SHA-256 of its weights."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    scale: int

    @property
    def tag(self) -> str:
        """`name@version`, as in the header RaySR-Model."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, eq=False)
class Upscaled:
    """An upscaled photo, the model that made it and the seconds that took on the device."""

    photo: Photo
    model: ModelInfo
    seconds: float
