"""Finds the optional folder of photographs, benchmark sets and odd files beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("RAY_SR_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_folder(name: str) -> Path:
    """Path of `name` in the shared folder; skips the calling test where it is absent."""
    folder = ROOT / name
    if not folder.exists():
        pytest.skip(f"needs {name} in the shared folder beside the checkout (or RAY_SR_SHARED=FOLDER)")
    return folder
