"""Loads the generator that MODEL means: of the store, a folder, a weights file, a Python file, or bicubic."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ray_sr.errors import InputError
from ray_sr.models import Bicubic
from ray_sr.models.foreign import from_python_file
from ray_sr.models.weights import decode_generator, is_weights_file, read_weights
from ray_sr.storage import open_filesystem
from ray_sr.store.store import BUILT_IN, Model, Store, _load_published, _read_record

# ------------------------------------------------------------------------------------------- loading


def load_model(ref: str | Path, store: Store | str | Path | None = None, *, scale: int = 4) -> Model:
    """The generator that MODEL means on the command line and in recipes.

    `ref` is a name or channel in the store, a published folder (or its URI), a weights file of ours or of
    another program, `bicubic` (with `scale`), or FILE.py:NAME:SCALE, which runs that Python file's
    `load(NAME, SCALE)`. Raises ModelError, InputError (missing file) and ResourceError (store).
    """
    text = str(ref)
    if text == BUILT_IN:
        return _bicubic(scale)
    if found := re.fullmatch(r"(?P<file>.+\.py):(?P<name>[^:]+):(?P<scale>\d{1,2})", text):
        return _from_python(Path(found["file"]), found["name"], int(found["scale"]))
    if text.endswith(".py"):
        raise InputError(f"{text}: give a Python file as FILE.py:NAME:SCALE; its load(NAME, SCALE) is called")
    if is_weights_file(text) or (os.sep in text and (Path(text).is_file() or Path(text).is_fifo())):
        return _from_file(text)
    if "/" in text or os.sep in text or (Path(text) / "model.json").is_file():
        return _from_folder(text)
    return (store if isinstance(store, Store) else Store(store)).load(text)


def _bicubic(scale: int) -> Model:
    module = Bicubic(scale).eval()
    return Model(BUILT_IN, "built-in", None, module, module.capability)


def _from_python(file: Path, name: str, scale: int) -> Model:
    module = from_python_file(file, name, scale)
    version = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Model(name, version, None, module, module.capability)


def _from_file(path: str) -> Model:
    data = read_weights(path)
    module, network = decode_generator(data, path)
    version = hashlib.sha256(data).hexdigest()[:12]
    return Model(Path(path).stem, version, network, module, module.capability)


def _from_folder(path: str) -> Model:
    filesystem, inside = open_filesystem(path)
    folder = inside.rstrip("/")
    record = _read_record(filesystem, folder)
    if record is None:
        raise InputError(f"{path}: not a published model: no model.json in it")
    return _load_published(filesystem, folder, record)
