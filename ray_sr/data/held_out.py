"""Which photos are held out for validation: drawn by their names among those that can be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import ray

from ray_sr.data.manifest import Cutting
from ray_sr.data.sources import PhotoFile
from ray_sr.data.sub_images import probe
from ray_sr.errors import InputError

MOST = 100
AT_ONCE = 16


@dataclass(frozen=True)
class HeldOutPhotos:
    """Their URIs, and their pixels: `cutting.pixel_digest` -> name."""

    uris: frozenset[str] = frozenset()
    pixels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, chosen: dict[str, PhotoFile]) -> HeldOutPhotos:
        uris = frozenset(photo.uri for photo in chosen.values())
        return cls(uris, {digest: photo.name for digest, photo in chosen.items()})


def choose_held_out(
    photos: Sequence[PhotoFile], share: float, named: Sequence[str], cutting: Cutting
) -> HeldOutPhotos:
    """A `share` of the photos, at most 100, at least 1 of 2; or the `named` ones. Ray must be running.

    One photo with other pixels is always left to train on. Raises InputError for a name that is not among the
    photos or whose photo cannot be used.
    """
    if named:
        return _of_names(photos, named, cutting)
    wanted = min(MOST, max(round(share * len(photos)), 1)) if share > 0 and len(photos) > 1 else 0
    drawn: dict[str, PhotoFile] = {}
    if wanted:
        order = sorted(photos, key=lambda photo: hashlib.sha256(photo.name.encode()).digest())
        for photo, digest, _ in _probed(order, cutting):
            if digest:
                drawn.setdefault(digest, photo)
            if len(drawn) > wanted:
                break
    kept = list(drawn.items())[: min(wanted, max(0, len(drawn) - 1))]
    return HeldOutPhotos.of(dict(kept))


def _of_names(photos: Sequence[PhotoFile], named: Sequence[str], cutting: Cutting) -> HeldOutPhotos:
    for name in named:
        if not any(name in (photo.name, photo.uri) for photo in photos):
            raise InputError(f"--hold-out {name}: no such photo among the {len(photos)} given")
    chosen = [photo for photo in photos if photo.name in named or photo.uri in named]
    found: dict[str, PhotoFile] = {}
    for photo, digest, reason in _probed(chosen, cutting):
        if not digest:
            raise InputError(f"--hold-out {photo.name}: cannot be held out: {reason}")
        found[digest] = photo
    uris = frozenset(photo.uri for photo in chosen)
    return HeldOutPhotos(uris, HeldOutPhotos.of(found).pixels)


def _probed(photos: Sequence[PhotoFile], cutting: Cutting) -> Iterator[tuple[PhotoFile, str, str]]:
    """Each photo with its digest, or with why it cannot be used; read a few at a time, as far as they are asked."""
    task = ray.remote(num_cpus=1)(probe)
    for start in range(0, len(photos), AT_ONCE):
        some = photos[start : start + AT_ONCE]
        for photo, (digest, reason) in zip(some, ray.get([task.remote(p, cutting) for p in some]), strict=True):
            yield photo, digest, reason
