"""Weights by address: https://…#sha256=…, hf:OWNER/REPO/FILE, openmodeldb:NAME.

What is fetched lies in the user's cache folder until it is whole and its hash is right; nothing is read before.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from ray_sr.errors import InputError, ResourceError
from ray_sr.models.weights import is_weights_file
from ray_sr.storage import first_line
from ray_sr.storage.download import OnBytes, download

CATALOGUE = "https://openmodeldb.info/api/v1/models.json"
CATALOGUE_VARIABLE = "RAY_SR_OPENMODELDB"  # another catalogue of the same form
_TIMEOUT_S = 30.0
_MOST_CATALOGUE_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Remote:
    """A fetched file, where it is from, and its licence as its source names it; None where it names none."""

    path: Path
    source: str
    licence: str | None
    sha256: str


def is_address(text: str) -> bool:
    return text.startswith(("https://", "http://", "hf:", "openmodeldb:"))


def fetch_weights(address: str, progress: OnBytes = lambda done, total: None) -> Remote:
    """The weights file at this address, its hash checked against the one given or listed, where there is one.

    Raises InputError for an address that leads nowhere, a file of another hash or one that holds no weights,
    ResourceError where it cannot be stored or a library is missing.
    """
    scheme, _, rest = address.partition(":")
    if scheme == "openmodeldb":
        return _from_catalogue(address, rest, progress)
    if scheme == "hf":
        return _from_hub(address, rest)
    url, _, fragment = address.partition("#")
    sha256 = fragment.removeprefix("sha256=").lower() if fragment else None
    if sha256 is not None and not (fragment.startswith("sha256=") and _SHA256.fullmatch(sha256)):
        raise InputError(f"{address}: after # the 64 hexadecimal digits of the file's hash: #sha256=…")
    if scheme == "http" and sha256 is None:
        raise InputError(f"{address}: over http anyone on the way may change the file: add its hash, #sha256=…")
    return _fetched(url, sha256, url, None, progress)


def _fetched(url: str, sha256: str | None, source: str, licence: str | None, progress: OnBytes) -> Remote:
    name = unquote(PurePosixPath(urlsplit(url).path).name)
    if not is_weights_file(name):
        raise InputError(f"{url}: not the address of a weights file (.safetensors, .pth, .pt, .ckpt)")
    folder = _cache() / hashlib.sha256(f"{url}#{sha256}".encode()).hexdigest()[:16]
    path = folder / name
    download(url, path, sha256=sha256, progress=progress)
    found = _hash_of(path)
    if sha256 and found != sha256:  # changed since it was fetched
        path.unlink()
        raise InputError(f"{path}: its hash is {found}, not {sha256}: it was removed; run the command again")
    return Remote(path, source, licence, found)


def _cache() -> Path:
    """In $XDG_CACHE_HOME, by default ~/.cache (XDG Base Directory Specification: only where it is absolute)."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(named) if os.path.isabs(named) else Path("~/.cache").expanduser()) / "ray-sr" / "imports"


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------- OpenModelDB


def _from_catalogue(address: str, name: str, progress: OnBytes) -> Remote:
    place = os.environ.get(CATALOGUE_VARIABLE, CATALOGUE)
    models = _catalogue(place)
    model = models.get(name)
    if not isinstance(model, Mapping):
        close = difflib.get_close_matches(name, list(models), n=1, cutoff=0.5)
        hint = f", did you mean {close[0]!r}?" if close else f": {place} lists {len(models)} others"
        raise InputError(f"{address}: no such model in the catalogue{hint}")
    resources = [each for each in model.get("resources") or () if _is_usable(each)]
    if not resources:
        raise InputError(f"{address}: the catalogue has no file of it that has a hash and can be fetched as it is")
    licence = model.get("license")
    failures = []
    for resource in resources:
        for url in resource["urls"]:
            try:
                return _fetched(url, str(resource["sha256"]).lower(), address, licence, progress)
            except InputError as error:
                failures.append(str(error))
    raise InputError(f"{address}: {failures[0]}")


def _is_usable(resource: Any) -> bool:
    """Whether the address is a file's own (not a page of a file host), of a kind that is read here."""
    if not isinstance(resource, dict) or resource.get("platform") != "pytorch":
        return False
    urls = [url for url in resource.get("urls") or () if is_weights_file(urlsplit(str(url)).path)]
    resource["urls"] = urls
    return bool(urls) and bool(_SHA256.fullmatch(str(resource.get("sha256") or "").lower()))


def _catalogue(place: str) -> dict[str, Any]:
    try:
        request = urllib.request.Request(place, headers={"User-Agent": "ray-sr"})
        with urllib.request.build_opener().open(request, timeout=_TIMEOUT_S) as answer:
            content = json.loads(answer.read(_MOST_CATALOGUE_BYTES))
    except (OSError, HTTPException) as error:
        raise InputError(f"{place}: the catalogue cannot be fetched: {first_line(error)}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{place}: no catalogue of models: a mapping of names is expected")
    return content


# ---------------------------------------------------------------------------------------------- Hugging Face


def _from_hub(address: str, rest: str) -> Remote:
    """hf:OWNER/REPO/FILE, by Hugging Face's own client: resumed and checked by what the hub says of the file."""
    parts = rest.split("/", 2)
    if len(parts) != 3 or not all(parts) or not is_weights_file(parts[2]):
        raise InputError(f"{address}: write hf:OWNER/REPO/FILE, such as hf:someone/models/4x.safetensors")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ResourceError("addresses of Hugging Face need huggingface-hub: pip install 'ray-sr[hub]'")
    from huggingface_hub import HfApi, hf_hub_download

    repository, endpoint = "/".join(parts[:2]), os.environ.get("HF_ENDPOINT")
    try:
        path = Path(hf_hub_download(repository, parts[2], endpoint=endpoint))
        card = HfApi(endpoint=endpoint).model_info(repository).card_data
    except Exception as error:  # its client raises its own, its HTTP library's and Python's errors
        raise InputError(f"{address}: {first_line(error)}") from None
    licence = card.get("license") if card else None
    return Remote(path, address, str(licence) if licence else None, _hash_of(path))
