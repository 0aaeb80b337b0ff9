"""The public Python API: light to import, what it offers, and the examples of docs/python.md."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

import ray_sr
from ray_sr.data.manifest import Cutting
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.errors import InputError, ModelError
from ray_sr.images import Photo, read_photo, write_photo
from ray_sr.training.runs import Run
from tests.photos import real_photos, write_real_photos

ROOT = Path(__file__).parents[1]


def example(number: int) -> str:
    """The Python code of the page's example with this number."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.DOTALL)[number]


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "ray", "numpy", "pydantic", "pyvips", "ray_sr.api")
    code = f"import sys, ray_sr; dir(ray_sr); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_travels_between_clients_and_service_costs_neither_torch_nor_ray() -> None:
    told = "import sys, ray_sr.serving.schemas; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_that_is_offered_is_there_and_typed() -> None:
    for name in ray_sr.__all__:
        assert callable(getattr(ray_sr, name)), name
    assert set(ray_sr.__all__) <= set(dir(ray_sr))
    assert (resources.files("ray_sr") / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'upscail'"):
        _ = ray_sr.upscail


def test_a_photo_and_its_file_give_the_same(tmp_path: Path) -> None:
    photo = Photo(np.ascontiguousarray(real_photos()["chelsea"][100:132, 100:140]))
    write_photo(tmp_path / "small.png", photo)
    one = ray_sr.upscale(photo, "bicubic")
    other = ray_sr.upscale(tmp_path / "small.png", ray_sr.load_model("bicubic"))
    assert one.pixels.shape == (128, 160, 3)
    assert np.array_equal(one.pixels, other.pixels)


def test_what_is_wrong_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png"):
        ray_sr.upscale(tmp_path / "none.png", "bicubic")
    with pytest.raises((ModelError, InputError), match="no-such"):
        ray_sr.upscale(Photo(np.zeros((8, 8, 3), np.uint8)), "no-such", store=tmp_path / "store")
    (tmp_path / "wrong.yaml").write_text("name: x\nscael: 2\n")
    with pytest.raises(ray_sr.RaySRError, match="did you mean 'scale'"):
        ray_sr.read_recipe(tmp_path / "wrong.yaml")


def test_the_example_that_upscales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_photo("photo.jpg", Photo(np.ascontiguousarray(real_photos()["chelsea"][100:148, 100:164])))
    exec(compile(example(0), "docs/python.md", "exec"), {})
    assert read_photo(tmp_path / "large.png").pixels.shape == (96, 128, 3)


@pytest.mark.usefixtures("ray_local")
def test_the_example_that_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos = find_photos([str(write_real_photos(tmp_path / "photos", 96))])
    prepare(
        photos,
        str(tmp_path / "shards"),
        cutting=Cutting(sub_image=64, step=64, minimum=64),
        hold_out=["chelsea.png"],
    )
    exec(compile(example(1), "docs/python.md", "exec"), {})
    assert Run.existing("runs/first").records("train")[-1]["step"] == 24
    assert "chelsea" in capsys.readouterr().out
