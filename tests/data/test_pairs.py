"""Input photos beside sharp ones: the same cuts, the same turns, and validation on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_sr.data.manifest import Cutting, read_photos
from ray_sr.data.pixels import read_index, validation_photos
from ray_sr.data.shards import prepare
from ray_sr.data.sources import find_photos
from ray_sr.data.stream import open_stream
from ray_sr.errors import InputError, RecipeError
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from tests.photos import noise

SCALE = 2


def recipe(scale: int = SCALE, place: str = "tasks") -> Recipe:
    return parse_recipe(
        f"{{name: t, scale: {scale}, degradation: [{{kind: pairs}}], pretrain: {{steps: 1}}, generator: {{kind: "
        f"msrresnet}}, data: {{crop: 32, batch: 8, crops_per_image: 4, degrade_in: {place}}}}}"
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> str:
    """Sharp photos are their input photos with every pixel doubled, 255 minus the value."""
    folder = tmp_path_factory.mktemp("pairs")
    for name in ("sharp", "input"):
        (folder / name).mkdir()
    for number in range(3):
        small = noise(90, 100, number)
        Image.fromarray(small).save(folder / "input" / f"{number}.png")
        Image.fromarray(255 - small.repeat(2, 0).repeat(2, 1)).save(folder / "sharp" / f"{number}.png")
    Image.fromarray(noise(100, 100)).save(folder / "sharp" / "alone.png")
    cutting = Cutting(sub_image=96, step=64, minimum=64, input_scale=SCALE)
    made = prepare(
        find_photos([str(folder / "sharp")]),
        str(folder / "shards"),
        cutting=cutting,
        hold_out=["2.png"],
        inputs=str(folder / "input"),
    )
    assert [(photo["name"], photo["reason"]) for photo in made.left_out] == [
        ("alone.png", "no input photo of this name")
    ]
    return str(folder / "shards")


@pytest.mark.parametrize("place", ["tasks", "worker"])
def test_crops_of_both_photos_match(shards: str, place: str) -> None:
    stream = open_stream(recipe(place=place), shards)
    lr, hr = stream.batches(range(2 * len(stream.index)))
    assert lr.shape[2:] == (16, 16, 3)
    assert hr.shape[2:] == (32, 32, 3)
    np.testing.assert_array_equal(255 - lr.repeat(2, 2).repeat(2, 3), hr)
    assert len(np.unique(hr.reshape(-1, 32 * 32 * 3), axis=0)) > len(stream.index)


def test_validation_has_both_photos(shards: str) -> None:
    (photo,) = validation_photos(shards, 3)
    assert photo.inputs is not None
    np.testing.assert_array_equal(255 - photo.inputs.repeat(2, 0).repeat(2, 1), photo.pixels)


def test_another_scale_is_refused(shards: str) -> None:
    with pytest.raises(RecipeError, match=r"the input photos in .* are for x2"):
        open_stream(recipe(scale=4), shards)


@pytest.mark.usefixtures("ray_local")
def test_inputs_of_a_wrong_size_are_named(tmp_path: Path) -> None:
    for name, side in (("sharp", 100), ("input", 50)):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(noise(side, side, number)).save(tmp_path / name / f"{number}.png")
    Image.fromarray(noise(60, 60)).save(tmp_path / "input" / "0.png")
    photos, output = find_photos([str(tmp_path / "sharp")]), str(tmp_path / "shards")
    cutting = Cutting(sub_image=96, step=64, minimum=64, input_scale=2)
    made = prepare(photos, output, cutting=cutting, validation=0, inputs=str(tmp_path / "input"))
    assert [photo["name"] for photo in made.left_out] == ["0.png"]
    assert "needs 50x50 at x2" in read_photos(output)[0]["reason"]
    assert read_index(output, "train").input_scale == 2


@pytest.mark.usefixtures("ray_local")
def test_pairs_without_input_photos_are_refused(tmp_path: Path) -> None:
    Image.fromarray(noise(100, 100)).save(tmp_path / "a.png")
    prepare(find_photos([str(tmp_path)]), str(tmp_path / "shards"), cutting=Cutting(sub_image=96), validation=0)
    with pytest.raises(InputError, match="data prepare --inputs"):
        open_stream(recipe(), str(tmp_path / "shards"))


def test_cuts_must_lie_on_input_pixels() -> None:
    with pytest.raises(ValueError, match="step 50 is no multiple of the scale 4"):
        Cutting(sub_image=96, step=50, input_scale=4)
