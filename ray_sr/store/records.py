"""What the model store keeps: the record of a model, and the history of a channel."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import Field

from ray_sr.recipes.networks import NetworkSpec
from ray_sr.recipes.section import Section

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def installed_versions() -> dict[str, str]:
    """Versions of what made a model: Python and the packages that its numbers depend on."""
    found = {"python": platform.python_version()}
    for package in ("ray-sr", "ray", "torch", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a bare checkout
            continue
    return found


class Provenance(Section):
    """Where the weights come from."""

    versions: dict[str, str] = Field(default_factory=installed_versions, description="packages by name")
    data_manifest: str | None = Field(None, description="hash of the shards' manifest")
    parent: str | None = Field(None, description="model or checkpoint that the training started from")
    source: str | None = Field(None, description="run folder, or the file or address that was imported")
    licence: str | None = Field(None, description="of imported weights, as their source names it")
    steps: int | None = Field(None, ge=0, description="training steps taken")


class Metrics(Section):
    """Measured quality, with the protocol that makes it comparable."""

    protocol: str = Field(min_length=1, description="how it was measured: channel, border, test set")
    values: dict[str, float] = Field(description="for example psnr_y, ssim_y, lpips")


class ModelRecord(Section):
    """The content of model.json: a model is published as soon as this file lies beside its weights."""

    format: int = Field(1, ge=1, le=1, description="version of this record")
    name: str = Field(min_length=1, max_length=64, pattern=NAME_PATTERN)
    version: str = Field(pattern=r"^[0-9a-f]{12}$", description="first 12 hexadecimal digits of sha256")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of model.safetensors")
    date: str = Field(description="of publication, ISO 8601, UTC")
    network: NetworkSpec
    parameters: int = Field(ge=0, description="weights and BatchNorm statistics")
    recipe: dict[str, Any] | None = Field(None, description="the recipe's fields; none for imported weights")
    metrics: list[Metrics] = Field([], description="one entry for each protocol or test set")
    provenance: Provenance
    pictures: list[str] = Field([], description="files in pictures/")
    notes: str | None = Field(None, description="Markdown: data and their terms, hardware, where it fails")

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class ChannelEvent(Section):
    """One promotion or rollback: from `date` on the channel meant this model."""

    action: Literal["promote", "rollback"]
    name: str
    version: str
    date: str

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class Channel(Section):
    """A name that follows the best model; the last event is what it means now."""

    history: list[ChannelEvent]

    @property
    def current(self) -> ChannelEvent:
        return self.history[-1]

    def former(self) -> list[ChannelEvent]:
        """Promotions that a rollback can go back to, the latest first."""
        stack: list[ChannelEvent] = []
        for event in self.history:
            if event.action == "promote":
                stack.append(event)
            else:
                while stack and stack[-1].ref != event.ref:
                    stack.pop()
        return stack[-2::-1]
