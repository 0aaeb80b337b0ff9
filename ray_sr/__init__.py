"""ray-sr: trains and serves image super-resolution and deblurring GANs on Ray.

The public Python API; each name is imported when it is used first, so that `import ray_sr` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_sr.api import evaluate, read_recipe, train, upscale
    from ray_sr.errors import RaySRError
    from ray_sr.images import Photo
    from ray_sr.recipes import Recipe
    from ray_sr.store import Model, load_model

__version__ = "0.1.0"

__all__ = ["Model", "Photo", "RaySRError", "Recipe", "evaluate", "load_model", "read_recipe", "train", "upscale"]

_HOMES = {
    "evaluate": "ray_sr.api",
    "read_recipe": "ray_sr.api",
    "train": "ray_sr.api",
    "upscale": "ray_sr.api",
    "RaySRError": "ray_sr.errors",
    "Photo": "ray_sr.images",
    "Recipe": "ray_sr.recipes",
    "Model": "ray_sr.store",
    "load_model": "ray_sr.store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ray_sr' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
