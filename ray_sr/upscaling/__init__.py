"""Upscaling of pictures of any size with a generator: on one device, or file by file."""

from ray_sr.upscaling.engine import Engine, EngineStats
from ray_sr.upscaling.photos import upscale_photo

__all__ = ["Engine", "EngineStats", "upscale_photo"]
