"""Files on any filesystem: opened by URI or path, written whole or not at all.

What names a filesystem of pyarrow is imported when it is used first: `storage.local` and its users do without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_sr.storage.filesystem import (
        DEFAULT_STORE,
        STORAGE,
        access_error,
        exists,
        first_line,
        make_folder,
        open_filesystem,
        read_file,
        remove_quietly,
        require_place,
        resolve_location,
        store_root,
        temporary_name,
        write_file,
    )
    from ray_sr.storage.lock import locked

__all__ = [
    "DEFAULT_STORE",
    "STORAGE",
    "access_error",
    "exists",
    "first_line",
    "locked",
    "make_folder",
    "open_filesystem",
    "read_file",
    "remove_quietly",
    "require_place",
    "resolve_location",
    "store_root",
    "temporary_name",
    "write_file",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ray_sr.storage' has no attribute {name!r}")
    home = import_module(f"ray_sr.storage.{'lock' if name == 'locked' else 'filesystem'}")
    value = globals()[name] = getattr(home, name)
    return value
