"""PSNR on whole held-out photos with the averaged generator, shared among the workers."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import distributed

from ray_sr.data.crops import crop_generator
from ray_sr.data.pixels import HeldOut, validation_photos
from ray_sr.degradations import degrade
from ray_sr.images import to_8_bits
from ray_sr.images.resample import downscale_array, mod_crop, upscale_array
from ray_sr.metrics import MOST_DECIBELS, luma, psnr
from ray_sr.models import Generator
from ray_sr.recipes.recipe import Recipe
from ray_sr.training.compute import Compute
from ray_sr.upscaling.engine import Engine

SAMPLE_SIDE = 240


class Validator:
    """The held-out photos of this worker, degraded once as the recipe says; measured as 8 bits, as tables are."""

    def __init__(self, recipe: Recipe, compute: Compute, shards: str, rank: int, world: int) -> None:
        self.recipe, self.compute, self.world = recipe, compute, world
        photos = list(enumerate(validation_photos(shards, recipe.validation.photos)))
        measured = [(number, photo) for number, photo in photos if self._is_large_enough(photo)]
        self.photos_in_all, self.too_small = len(measured), len(photos) - len(measured)
        self.pairs = [self._pair(photo, number) for number, photo in measured[rank::world]]
        self.bicubic = [self._measure(to_8_bits(self._bicubic(lr)), hr) for lr, hr in self.pairs]

    def run(self, average: Generator) -> tuple[dict[str, float], bytes]:
        """Mean PSNR on Y and RGB of all photos, bicubic's beside it; and a PNG of LR, SR and HR side by side."""
        if self.world > 1:
            for buffer in average.buffers():
                distributed.broadcast(buffer, src=0)
        engine = Engine(average, average.capability, device=self.compute.device, precision="float32")
        outputs = [self._upscale(engine, lr) for lr, _ in self.pairs]
        measured = [self._measure(sr, hr) for sr, (_, hr) in zip(outputs, self.pairs, strict=True)]
        means = self._mean([[*ours, *theirs] for ours, theirs in zip(measured, self.bicubic, strict=True)])
        names = ("psnr_y", "psnr_rgb", "bicubic_psnr_y", "bicubic_psnr_rgb")
        sample = self._sample(outputs[0], *self.pairs[0]) if self.pairs else b""
        return dict(zip(names, means, strict=True)), sample

    def _is_large_enough(self, photo: HeldOut) -> bool:
        """Whether something is left of it without the border."""
        scale = self.recipe.scale
        height, width = (side - side % scale for side in photo.pixels.shape[:2])
        return min(height, width) > 2 * self._border

    @property
    def _border(self) -> int:
        return self.recipe.scale if self.recipe.scale > 1 else 0

    def _pair(self, photo: HeldOut, number: int) -> tuple[np.ndarray, np.ndarray]:
        lr, hr = self._degraded(photo, number)
        return lr, to_8_bits(hr)

    def _degraded(self, photo: HeldOut, number: int) -> tuple[np.ndarray, np.ndarray]:
        """LR and HR in the depth of the shards."""
        hr = np.ascontiguousarray(mod_crop(photo.pixels, self.recipe.scale))
        steps = self.recipe.degradation
        if steps[0].kind == "pairs" and photo.inputs is not None:
            return photo.inputs, hr
        if len(steps) == 1 and steps[0].kind == "downscale" and steps[0].method == "bicubic":
            return downscale_array(hr, self.recipe.scale), hr
        generator = crop_generator(self.recipe.seed, number, 0, 0)
        return degrade(hr[None], steps, self.recipe.scale, [generator])[0], hr

    def _bicubic(self, lr: np.ndarray) -> np.ndarray:
        return lr if self.recipe.scale == 1 else upscale_array(lr, self.recipe.scale)

    def _upscale(self, engine: Engine, lr: np.ndarray) -> np.ndarray:
        output = engine.run(lr.astype(np.float32) / np.iinfo(lr.dtype).max)
        return (output.clip(0, 1) * 255 + 0.5).astype(np.uint8)

    def _measure(self, sr: np.ndarray, hr: np.ndarray) -> tuple[float, float]:
        border = self._border
        inner = np.s_[border : sr.shape[0] - border, border : sr.shape[1] - border]
        found = psnr(luma(sr[inner]), luma(hr[inner])), psnr(sr[inner], hr[inner])
        return min(found[0], MOST_DECIBELS), min(found[1], MOST_DECIBELS)

    def _mean(self, rows: list[list[float]]) -> list[float]:
        totals = torch.tensor([[*row, 1.0] for row in rows] or [[0.0] * 5], dtype=torch.float64).sum(0)
        if self.world > 1:
            totals = totals.to(self.compute.device)
            distributed.all_reduce(totals)
        return (totals[:-1] / totals[-1]).tolist()

    def _sample(self, sr: np.ndarray, lr: np.ndarray, hr: np.ndarray) -> bytes:
        enlarged = to_8_bits(lr).repeat(self.recipe.scale, 0).repeat(self.recipe.scale, 1)
        side = min(SAMPLE_SIDE, *hr.shape[:2])
        top, left = (hr.shape[0] - side) // 2, (hr.shape[1] - side) // 2
        cut = [photo[top : top + side, left : left + side] for photo in (enlarged, sr, hr)]
        buffer = io.BytesIO()
        Image.fromarray(np.concatenate(cut, axis=1)).save(buffer, "PNG")
        return buffer.getvalue()
