"""API keys: who is let in, and how much they may have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ray_sr.errors import InputError, RecipeError
from ray_sr.serving import keys
from ray_sr.serving.keys import Bucket, Client, KeyRing, add_key, read_keys, remove_key
from ray_sr.serving.problems import Problem


def test_file_holds_no_key_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "ann")
    assert len(secret) > 40
    assert secret.removeprefix("rsr_") not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    assert [key.name for key in read_keys(path)] == ["ann"]
    assert sorted(os.listdir(tmp_path)) == ["keys.json"]


def test_names_are_unique_and_plain(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "ann")
    for name in ("ann", "a b", "", "x" * 65):
        with pytest.raises(RecipeError):
            add_key(path, name)
    with pytest.raises(RecipeError, match="bob has no key; ann has"):
        remove_key(path, "bob")
    remove_key(path, "ann")
    assert read_keys(path) == ()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ray-sr keys add"):
        KeyRing(str(tmp_path / "nowhere"))
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "x"}]}))
    with pytest.raises(RecipeError, match="not a file of keys"):
        KeyRing(str(path))


def test_key_is_taken_from_either_header(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, other = add_key(path, "ann", 1000), add_key(path, "bob")
    ring = KeyRing(str(path))
    assert ring.client(f"Bearer {secret}", "").name == "ann"
    assert ring.client(f"bearer  {secret} ", "").name == "ann"
    assert ring.client("", other).name == "bob"
    for authorization, api_key in [("", ""), (secret, ""), (f"Basic {secret}", ""), (f"Bearer {secret}x", secret),
                                   ("", "\udcff")]:  # fmt: skip
        with pytest.raises(Problem) as caught:
            ring.client(authorization, api_key)
        assert caught.value.status == 401
        assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_without_a_file_everybody_is_welcome() -> None:
    assert KeyRing(None).client("", "").pixels_per_minute is None


def test_changes_of_the_file_count_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "ann", 1000)
    ring = KeyRing(str(path))
    assert ring.client(f"Bearer {secret}", "") == Client("ann", 1000)
    new = add_key(path, "bob")
    assert ring.client("", new) == Client("bob", None)
    assert ring.client("", secret).name == "ann"
    remove_key(path, "ann")
    with pytest.raises(Problem):
        ring.client("", secret)
    path.write_text("damaged")
    assert ring.client("", new).name == "bob", "a damaged file locks nobody out"


def test_quota_is_a_bucket_that_fills_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(keys.time, "monotonic", lambda: now)
    bucket = Bucket(600)
    bucket.take(400)
    bucket.take(200)
    with pytest.raises(Problem) as caught:
        bucket.take(100)
    assert caught.value.status == 429
    after = int(caught.value.headers["Retry-After"])
    assert 10 <= after <= 11
    now += after
    bucket.take(100)
    now += 1000
    bucket.take(1500)  # more than a minute's: let through once, paid off after
    now += 60
    with pytest.raises(Problem):
        bucket.take(1)
    now += 120
    bucket.take(1)
