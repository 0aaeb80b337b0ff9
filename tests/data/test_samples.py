"""The photographs of scikit-image: found without importing it, and one line where it is not installed."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from skimage import data

from ray_sr.data import samples
from ray_sr.demo import PHOTOS
from ray_sr.errors import ResourceError
from ray_sr.images import read_photo


def test_they_are_those_of_scikit_image() -> None:
    folder = samples.samples_folder()
    assert all((folder / name).is_file() for name in (*samples.SAMPLES, *PHOTOS))
    for name, photo in zip(samples.SAMPLES, (data.astronaut(), data.coffee(), data.chelsea()), strict=False):
        assert np.array_equal(read_photo(folder / name).pixels, photo)


def test_without_scikit_image_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    assert importlib.util.find_spec("skimage")
    with pytest.raises(ResourceError, match=r"pip install 'ray-sr\[demo\]'"):
        samples.samples_folder()
