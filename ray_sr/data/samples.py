"""The photographs inside scikit-image's package, for the demo and for previews: no download, free to use."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ray_sr.errors import ResourceError

SAMPLES = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg")


def samples_folder() -> Path:
    """The folder of scikit-image's photographs, which is not imported. Raises ResourceError where it is absent."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ResourceError("these photographs come with scikit-image: pip install 'ray-sr[demo]', or give photos")
    return Path(spec.origin).parent / "data"
