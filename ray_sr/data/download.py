"""Fetches public photo sets: resumed after a break, checked, and unpacked without leaving the folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray_sr.errors import InputError, ResourceError
from ray_sr.storage import first_line

CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT_SECONDS = 60.0
MOST_BYTES_PER_FILE = 4 << 30
MOST_FILES = 1_000_000
OnBytes = Callable[[int, int], None]


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
    """Download to `path`, by way of `path`.part that a later call goes on with.

    Broken connections are taken up again, `ATTEMPTS` times without any new byte. Raises InputError where the
    server refuses or the bytes are not those expected.
    """
    if path.exists():
        return
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            total = _fetch_some(archive.url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise InputError(f"{archive.url}: the server says {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError) as error:
            reason = first_line(error)
        else:
            if _size(part) == total:
                break
            reason = f"the connection ended at {_size(part)} of {total} bytes"
        failures = 0 if _size(part) > before else failures + 1
        if failures >= ATTEMPTS:
            raise InputError(f"{archive.url}: {reason}: run the command again, it goes on from here")
        time.sleep(min(10.0, 0.1 * 2**failures))
    _verify(archive, part)
    part.replace(path)


def _fetch_some(url: str, part: Path, progress: OnBytes) -> int:
    """Append what one connection gives; returns the size of the whole file."""
    have = _size(part)
    headers = {"User-Agent": "ray-sr", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or another file: what is there decides
            return _whole_size(error.headers.get("Content-Range", ""), have, part)
        raise
    with answer:
        if answer.status != 206:
            have = 0
        total = have + int(answer.headers.get("Content-Length", 0))
        _check_room(part, total - have)
        with part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(have, max(total, have))
    return max(total, have) if answer.headers.get("Content-Length") else have


def _whole_size(content_range: str, have: int, part: Path) -> int:
    total = content_range.rpartition("/")[2]
    if total.isdigit() and int(total) == have:
        return have
    part.unlink()  # longer than the server's file: begin anew
    return int(total) if total.isdigit() else -1


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ResourceError(f"{path.parent}: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free")


def _verify(archive: Archive, part: Path) -> None:
    if archive.sha256:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != archive.sha256:
            part.unlink()
            raise InputError(f"{archive.url}: SHA-256 is {found}, not {archive.sha256}: the file was removed")
    if not zipfile.is_zipfile(part):
        part.unlink()
        raise InputError(f"{archive.url}: not a ZIP file: it was removed; the address may have moved")


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
            _check_room(folder / "x", sum(member.file_size for member in members))
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
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with opened.open(member) as source, aside.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
