"""Fetches public photo sets: resumed after a break, checked, and unpacked without leaving the folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray_sr.errors import InputError, ResourceError
from ray_sr.storage import first_line
from ray_sr.storage.download import CHUNK, OnBytes, check_room, download
from ray_sr.storage.local import written_aside

MOST_BYTES_PER_FILE = 4 << 30
MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Archive:
    """A ZIP file of a set; `sha256` where it is known."""

    url: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name


@dataclass(frozen=True)
class PhotoSet:
    """A public set: its archives, and where its terms of use are."""

    archives: tuple[Archive, ...]
    terms: str


_DIV2K = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
SETS = {
    "div2k": PhotoSet(
        (Archive(f"{_DIV2K}/DIV2K_train_HR.zip"), Archive(f"{_DIV2K}/DIV2K_valid_HR.zip")),
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/ (academic research only)",
    ),
    "flickr2k": PhotoSet(
        (Archive("https://huggingface.co/datasets/goodfellowliu/Flickr2K/resolve/main/Flickr2K.zip"),),
        "https://github.com/LimBee/NTIRE2017 (photos of Flickr, research only)",
    ),
    "gopro": PhotoSet(
        (Archive("https://huggingface.co/datasets/snah/GOPRO_Large/resolve/main/GOPRO_Large.zip"),),
        "https://seungjunnah.github.io/Datasets/gopro (CC BY 4.0)",
    ),
}


def download_set(
    archives: Sequence[Archive], folder: Path, *, keep: bool = False, progress: OnBytes = lambda done, total: None
) -> int:
    """Fetch archives and unpack them into `folder`; returns the number of files. `keep` keeps the archives.

    Run again after a break, it goes on: with the missing bytes of an archive, and not at all with archives
    that were unpacked. `progress` hears bytes done and bytes in all of the archive at hand.
    Raises InputError for what the server or the archive has wrong and ResourceError for the disk.
    """
    files = 0
    for archive in archives:
        done = folder / f".{archive.name}.done"
        if done.exists():
            files += int(done.read_text())
            continue
        path = folder / archive.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fetch(archive, path, progress)
            count = unpack(path, folder)
            done.write_text(str(count))
            if not keep:
                path.unlink()
        except OSError as error:
            raise ResourceError(f"{folder}: cannot write here: {first_line(error)}") from None
        files += count
    return files


# ------------------------------------------------------------------------------------------------- fetching


def fetch(archive: Archive, path: Path, progress: OnBytes = lambda done, total: None) -> None:
    """Download a ZIP file to `path`; a later call goes on with what is there. Raises what `download` raises."""
    download(archive.url, path, sha256=archive.sha256, check=_wrong_with_zip, progress=progress)


def _wrong_with_zip(path: Path) -> str | None:
    return None if zipfile.is_zipfile(path) else "not a ZIP file: it was removed; the address may have moved"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ------------------------------------------------------------------------------------------------ unpacking


def unpack(archive: Path, folder: Path) -> int:
    """Unpack a ZIP file into `folder`; returns the number of files. Files of the right size are left alone.

    Each file's CRC is checked. Refused, before anything is written: paths that lead out of the folder, links,
    absolute paths, more or larger files than any photo set has. Raises InputError.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            targets = [_target(member, archive, folder) for member in members]
            if len(members) > MOST_FILES:
                raise InputError(f"{archive}: {len(members)} files: not a photo set")
            folder.mkdir(parents=True, exist_ok=True)
            check_room(folder, sum(member.file_size for member in members))
            for member, target in zip(members, targets, strict=True):
                if _size(target) != member.file_size or not target.exists():
                    _extract(opened, member, target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise InputError(f"{archive}: damaged archive: {first_line(error)}: remove it and download again") from None
    return len(members)


def _target(member: zipfile.ZipInfo, archive: Path, folder: Path) -> Path:
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or ":" in member.filename or "\\" in member.filename:
        raise InputError(f"{archive}: refuses to unpack {member.filename!r}: it leads out of the folder")
    mode = member.external_attr >> 16
    if stat.S_ISLNK(mode) or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
        raise InputError(f"{archive}: refuses to unpack {member.filename!r}: a link or special file")
    if member.file_size > MOST_BYTES_PER_FILE:
        raise InputError(f"{archive}: refuses to unpack {member.filename!r}: {member.file_size} bytes")
    target = folder / path
    if not target.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{archive}: refuses to unpack {member.filename!r}: a link on its way leads out")
    return target


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Never more bytes than announced, whatever the compressed data holds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as source, written_aside(target, flush=False) as aside, aside.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK)
