"""The application for `serve run serve.app:build model=NAME` and for `serve run serve/config.yaml`."""

from __future__ import annotations

from ray_sr.serving.app import build

__all__ = ["build"]
