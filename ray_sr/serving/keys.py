"""API keys: a file of hashes, who holds a key, and how many pixels a minute that client may have.

A key is 256 random bits, so its plain SHA-256 cannot be turned back; no slow hash is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field, ValidationError

from ray_sr.errors import InputError, RecipeError, ResourceError
from ray_sr.serving.options import Section
from ray_sr.serving.problems import Problem
from ray_sr.storage.local import atomic_write

logger = logging.getLogger(__name__)

PREFIX = "rsr_"
_MINUTE = 60.0


class ApiKey(Section):
    """One line of the list of keys. The key itself is nowhere but with its holder."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="of the holder, as it appears in the log")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key")
    pixels_per_minute: int | None = Field(None, ge=1, description="of results; none: as the service can")
    created: str


class KeyFile(Section):
    """The content of the file."""

    keys: tuple[ApiKey, ...] = ()


def read_keys(path: str | os.PathLike[str]) -> tuple[ApiKey, ...]:
    """The keys in the file. Raises InputError where it cannot be read, RecipeError where it is none."""
    try:
        return KeyFile.model_validate_json(Path(path).read_bytes()).keys
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; `ray-sr keys add` makes it") from None
    except ValidationError as error:
        raise RecipeError(f"{path}: not a file of keys: {error.errors()[0]['msg']}") from None


def add_key(path: str | os.PathLike[str], name: str, pixels_per_minute: int | None = None) -> str:
    """Adds a holder, in a new file where there is none; returns the key. Raises RecipeError for a name in use."""
    known = read_keys(path) if Path(path).exists() else ()
    if any(key.name == name for key in known):
        raise RecipeError(f"{path}: {name} has a key already; remove it first or give another name")
    secret = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        new = ApiKey(name=name, sha256=_hash(secret), pixels_per_minute=pixels_per_minute, created=created)
    except ValidationError:
        raise RecipeError(f"{name!r} cannot name a key: use up to 64 letters, digits, dots, - and _") from None
    _write(path, (*known, new))
    return secret


def remove_key(path: str | os.PathLike[str], name: str) -> None:
    """Takes a holder's key away; a running service notices. Raises RecipeError for an unknown name."""
    known = read_keys(path)
    kept = tuple(key for key in known if key.name != name)
    if len(kept) == len(known):
        held = ", ".join(key.name for key in known) or "nobody"
        raise RecipeError(f"{path}: {name} has no key; {held} has")
    _write(path, kept)


def _write(path: str | os.PathLike[str], keys: tuple[ApiKey, ...]) -> None:
    text = KeyFile(keys=keys).model_dump_json(indent=2) + "\n"
    try:
        atomic_write(path, text.encode(), mode=0o600)
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror or error})") from None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Client:
    """Who sent a request. `name` is empty where no keys are asked for."""

    name: str = ""
    pixels_per_minute: int | None = None


class Bucket:
    """A quota of pixels: holds those of one minute, and is filled again at that rate."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._left: float = rate
        self._counted = time.monotonic()

    def take(self, pixels: int) -> None:
        """Takes pixels out. Raises Problem (rate-limited) where there are too few.

        A picture of more than a minute's pixels is let through when the bucket is full, and then paid off.
        """
        now = time.monotonic()
        self._left = min(self.rate, self._left + (now - self._counted) * self.rate / _MINUTE)
        self._counted = now
        missing = min(pixels, self.rate) - self._left
        if missing > 0:
            seconds = max(1, round(missing * _MINUTE / self.rate + 0.5))
            detail = f"the quota of {self.rate} pixels a minute is used up; try again in {seconds} s"
            raise Problem("rate-limited", detail, retry_after=seconds, limit=self.rate, actual=pixels)
        self._left -= pixels


class KeyRing:
    """The keys of a file, read again when it changes. Without a file everybody is welcome."""

    def __init__(self, path: str | None) -> None:
        """Raises InputError and RecipeError where the file cannot be used."""
        self._path = path
        self._changed = 0
        self._clients: dict[str, Client] = {}
        if path is not None:
            self._read(path)

    def client(self, authorization: str, api_key: str) -> Client:
        """Who holds the key of `Authorization: Bearer KEY` or `X-API-Key: KEY`. Raises Problem."""
        if self._path is None:
            return Client()
        self._read_again(self._path)
        scheme, _, token = authorization.partition(" ")
        secret = token.strip() if scheme.lower() == "bearer" else api_key
        digest = _hash(secret)
        found = None
        for known, client in self._clients.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = client
        if found is None:
            detail = "the key is not known" if secret else "send a key: Authorization: Bearer KEY"
            raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="ray-sr"'})
        return found

    def _read_again(self, path: str) -> None:
        try:
            if os.stat(path).st_mtime_ns != self._changed:
                self._read(path)
        except (OSError, InputError, RecipeError) as error:
            logger.error("the keys stay as they were: %s", error)

    def _read(self, path: str) -> None:
        changed = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
        found = {key.sha256: Client(key.name, key.pixels_per_minute) for key in read_keys(path)}
        self._clients, self._changed = found, changed
