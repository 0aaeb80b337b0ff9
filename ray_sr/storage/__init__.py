"""Files on any filesystem: opened by URI or path, written whole or not at all."""

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
    "resolve_location",
    "store_root",
    "temporary_name",
    "write_file",
]
