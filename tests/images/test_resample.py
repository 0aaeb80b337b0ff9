"""Resizing against the formula in float64, against torch, and against the low-resolution sets MATLAB made."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ray_sr.images.resample import (
    Border,
    downscale,
    downscale_array,
    downscale_crops,
    mod_crop,
    resize_array,
    resize_to,
    upscale,
    upscale_array,
)
from tests.shared_data import shared_folder

SCALES = (2, 3, 4, 8)
PAD_MODE: dict[Border, Literal["symmetric", "edge"]] = {"mirror": "symmetric", "replicate": "edge"}


def kernel(t: float, a: float = -0.5) -> float:
    t = abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    if t < 2:
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return 0.0


def reference_rows(values: np.ndarray, size: int, border: Border = "mirror") -> np.ndarray:
    """The formula, one output row after the other, on an image that was really padded."""
    old = len(values)
    stretch = max(1.0, old / size)
    pad = int(3 * stretch) + 3
    padded = np.pad(values.astype(np.float64), [(pad, pad)] + [(0, 0)] * (values.ndim - 1), mode=PAD_MODE[border])
    rows = []
    for i in range(size):
        centre = (i + 0.5) * old / size - 0.5
        weights = np.array([kernel((centre - p) / stretch) for p in range(-pad, old + pad)])
        rows.append(np.tensordot(weights / weights.sum(), padded, axes=1))
    return np.stack(rows)


def reference(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """H×W×C in float64, unrounded."""
    rows = reference_rows(image, height)
    return reference_rows(rows.swapaxes(0, 1), width).swapaxes(0, 1)


def reference_rounded(image: np.ndarray, height: int, width: int, border: Border = "mirror") -> np.ndarray:
    """H×W[×C] whole numbers: rows first, rounded half up and clipped after each pass."""
    peak = np.iinfo(image.dtype).max
    rows = np.clip(np.floor(reference_rows(image, height, border) + 0.5), 0, peak)
    columns = reference_rows(rows.swapaxes(0, 1), width, border).swapaxes(0, 1)
    return np.clip(np.floor(columns + 0.5), 0, peak).astype(image.dtype)


def random_image(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def random_batch(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def as_images(batch: torch.Tensor) -> np.ndarray:
    return batch.detach().double().permute(0, 2, 3, 1).numpy()


def assert_follows_formula(result: torch.Tensor, batch: torch.Tensor) -> None:
    height, width = result.shape[2:]
    expected = np.stack([reference(image, height, width) for image in as_images(batch)])
    assert result.dtype == batch.dtype
    assert result.is_contiguous()
    np.testing.assert_allclose(as_images(result), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
def test_downscale_follows_formula(scale: int) -> None:
    batch = random_batch(2, 3, 5 * scale, 7 * scale)
    assert_follows_formula(downscale(batch, scale), batch)


@pytest.mark.parametrize("scale", SCALES)
def test_upscale_follows_formula(scale: int) -> None:
    batch = random_batch(2, 3, 9, 6)
    assert_follows_formula(upscale(batch, scale), batch)


@pytest.mark.parametrize("size", [(30, 45), (17, 90), (61, 13), (1, 1), (40, 60), (41, 59)])
def test_resize_to_follows_formula_at_any_size(size: tuple[int, int]) -> None:
    batch = random_batch(1, 2, 40, 60)
    assert_follows_formula(resize_to(batch, *size), batch)


@pytest.mark.parametrize("sides", [(1, 1), (1, 5), (2, 1), (3, 2)])
def test_images_smaller_than_the_kernel_follow_formula(sides: tuple[int, int]) -> None:
    batch = random_batch(1, 3, *sides)
    assert_follows_formula(upscale(batch, 4), batch)
    small = random_batch(1, 3, sides[0] * 8, sides[1] * 8)
    assert_follows_formula(downscale(small, 8), small)
    assert_follows_formula(resize_to(batch, 2, 3), batch)


def test_one_pixel_becomes_a_flat_image() -> None:
    torch.testing.assert_close(upscale(torch.full((1, 1, 1, 1), 0.3), 4), torch.full((1, 1, 4, 4), 0.3))
    np.testing.assert_array_equal(upscale_array(np.array([[7]], np.uint8), 3), np.full((3, 3), 7, np.uint8))


@pytest.mark.parametrize("size", [(20, 24), (160, 192), (60, 72)])
def test_interior_equals_torch(size: tuple[int, int]) -> None:
    batch = random_batch(2, 3, 80, 96)
    theirs = F.interpolate(batch, size=size, mode="bicubic", antialias=True)
    edge = 2 * max(1, size[0] // 80 + 1)
    inside = (..., slice(edge, -edge), slice(edge, -edge))
    torch.testing.assert_close(resize_to(batch, *size)[inside], theirs[inside], rtol=0, atol=1e-5)


def test_wide_images_keep_their_precision() -> None:
    """Coordinates computed in float32 are off by 5e-4 here."""
    batch = random_batch(1, 1, 1, 6000)
    exact = upscale(batch.double(), 3)
    torch.testing.assert_close(upscale(batch, 3).double(), exact, rtol=0, atol=1e-6)


def test_batch_is_resized_image_by_image() -> None:
    batch = random_batch(3, 3, 16, 24)
    one_by_one = torch.cat([downscale(image[None], 4) for image in batch])
    torch.testing.assert_close(downscale(batch, 4), one_by_one)


def test_resizing_commutes_with_flips() -> None:
    batch = random_batch(1, 3, 24, 36)
    for scale in (2, 3, 4):
        torch.testing.assert_close(downscale(batch.flip(2, 3), scale), downscale(batch, scale).flip(2, 3))
        torch.testing.assert_close(upscale(batch.flip(2, 3), scale), upscale(batch, scale).flip(2, 3))


def test_overshoot_is_not_clamped() -> None:
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 1
    result = upscale(edge, 4)
    assert result.min() < -0.01
    assert result.max() > 1.01


def test_resizing_is_differentiable() -> None:
    batch = random_batch(1, 2, 6, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: downscale(x, 2), batch)
    assert torch.autograd.gradcheck(lambda x: upscale(x, 2), batch)


def test_gradients_after_the_same_size_in_inference_mode() -> None:
    batch = random_batch(1, 1, 22, 22)
    with torch.inference_mode():
        downscale(batch, 2)
    (gradient,) = torch.autograd.grad(downscale(batch.requires_grad_(), 2).sum(), batch)
    torch.testing.assert_close(gradient.sum(), torch.tensor(121.0))


def test_autocast_does_not_reduce_precision() -> None:
    batch = random_batch(1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = downscale(batch, 4)
    torch.testing.assert_close(result, downscale(batch, 4), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("border", ["mirror", "replicate"])
@pytest.mark.parametrize("scale", SCALES)
def test_arrays_are_rounded_after_each_pass(scale: int, border: Border, dtype: type) -> None:
    image = random_image(6 * scale, 5 * scale, 3, dtype=dtype)
    expected = reference_rounded(image, 6, 5, border)
    result = downscale_array(image, scale, border=border)
    np.testing.assert_array_equal(result, expected, strict=True)
    larger = reference_rounded(expected, 6 * scale, 5 * scale, border)
    np.testing.assert_array_equal(upscale_array(expected, scale, border=border), larger, strict=True)


def test_arrays_wider_than_a_block_and_not_contiguous() -> None:
    image = random_image(12, 1500, 3)[::-1, ::-1]
    np.testing.assert_array_equal(downscale_array(image, 4), reference_rounded(image, 3, 375))


def test_gray_arrays_equal_each_channel() -> None:
    image = random_image(40, 48, 4)
    result = downscale_array(image, 4)
    for channel in range(4):
        np.testing.assert_array_equal(downscale_array(image[..., channel], 4), result[..., channel])


def test_array_axis_that_shrinks_more_goes_first() -> None:
    image = random_image(24, 32, 3)
    columns_first = reference_rounded(image.swapaxes(0, 1), 8, 12).swapaxes(0, 1)
    assert (columns_first != reference_rounded(image, 12, 8)).any(), "this image does not tell the orders apart"
    np.testing.assert_array_equal(resize_array(image, 12, 8), columns_first)


def test_borders_differ_only_at_the_border() -> None:
    image = random_image(80, 96, 3)
    mirror, replicate = downscale_array(image, 4), downscale_array(image, 4, border="replicate")
    assert (mirror != replicate).any()
    np.testing.assert_array_equal(mirror[2:-2, 2:-2], replicate[2:-2, 2:-2])


def test_array_and_float_forms_agree_up_to_rounding() -> None:
    image = random_image(48, 64, 3)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    levels = as_images(downscale(batch, 4))[0].clip(0, 255)
    assert np.abs(downscale_array(image, 4) - levels).max() < 2


def test_same_size_changes_nothing() -> None:
    image = random_image(7, 9, 3, dtype=np.uint16)
    np.testing.assert_array_equal(resize_array(image, 7, 9), image, strict=True)
    batch = random_batch(1, 3, 7, 9)
    torch.testing.assert_close(resize_to(batch, 7, 9), batch, rtol=0, atol=0)


def test_inputs_are_left_alone() -> None:
    image, batch = random_image(8, 8, 3), random_batch(1, 3, 8, 8)
    image_before, batch_before = image.copy(), batch.clone()
    resize_array(image, 8, 8)[:] = 0
    downscale_array(image, 2)
    downscale(batch, 2)
    np.testing.assert_array_equal(image, image_before)
    torch.testing.assert_close(batch, batch_before, rtol=0, atol=0)


def test_mod_crop_keeps_the_top_left() -> None:
    image = random_image(11, 14, 3)
    np.testing.assert_array_equal(mod_crop(image, 4), image[:8, :12])
    np.testing.assert_array_equal(mod_crop(image[..., 0], 1), image[..., 0])
    with pytest.raises(ValueError, match="smaller"):
        mod_crop(image, 12)


def test_bad_arguments_say_what_is_wrong() -> None:
    batch, image = torch.zeros(1, 3, 10, 12), np.zeros((10, 12, 3), np.uint8)
    for wrong in (lambda: downscale(batch, 4), lambda: downscale_array(image, 4)):
        with pytest.raises(ValueError, match=r"10×12 .* does not divide by 4"):
            wrong()
    for scale in (0, -2, 1.5):
        with pytest.raises(ValueError, match="whole number"):
            upscale(batch, scale)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="N×C×H×W"):
        upscale(batch[0], 2)
    with pytest.raises(ValueError, match="not empty"):
        upscale(batch[:0], 2)
    with pytest.raises(ValueError, match="float batch"):
        downscale(batch.byte(), 2)
    with pytest.raises(ValueError, match="uint8 or uint16"):
        downscale_array(image.astype(np.float32), 2)
    with pytest.raises(ValueError, match="uint8 or uint16"):
        upscale_array(image[..., :0], 2)
    with pytest.raises(ValueError, match="at least one pixel"):
        resize_to(batch, 0, 4)
    with pytest.raises(ValueError, match="at least one pixel"):
        upscale_array(image[:0], 2)
    with pytest.raises(ValueError, match="'mirror' or 'replicate'"):
        downscale_array(image, 2, border="wrap")  # type: ignore[arg-type]


@pytest.mark.parametrize("border", ["mirror", "replicate"])
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_every_pixel_equals_matlab(name: str, scale: int, border: Border) -> None:
    folder = shared_folder("data/benchmarks")
    sums = json.loads((folder / "matlab_lr_pixel_sha256.json").read_text())
    prefix = f"{name}/x{scale}/{border}/"
    wanted = {key.removeprefix(prefix): sums[key]["sha256"] for key in sums if key.startswith(prefix)}
    assert len(wanted) == {"Set5": 5, "Set14": 14}[name]
    for photo, digest in wanted.items():
        hr = mod_crop(np.asarray(Image.open(folder / name / "HR" / f"{photo}.png")), scale)
        lr = downscale_array(hr, scale, border=border)
        assert hashlib.sha256(lr.tobytes()).hexdigest() == digest, photo


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (5, 24, 48, 3), (3, 96, 96, 1), (2, 4, 12, 3)])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_crops_equal_the_float_form_rounded(shape: tuple[int, ...], scale: int) -> None:
    crops = np.random.default_rng(5).integers(0, 256, shape, np.uint8)
    exact = downscale(torch.from_numpy(crops).permute(0, 3, 1, 2).double(), scale).permute(0, 2, 3, 1)
    got = downscale_crops(crops, scale)
    assert got.shape == (shape[0], shape[1] // scale, shape[2] // scale, shape[3])
    assert got.dtype == np.uint8
    assert np.abs(got - exact.clamp(0, 255).numpy()).max() <= 0.5 + 1e-3
    assert np.array_equal(downscale_crops(crops[:, ::-1], scale)[:, ::-1], got)
