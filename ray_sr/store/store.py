"""The model store: publish, promote, roll back and load generators, on any filesystem that pyarrow opens.

    models/NAME/VERSION/    model.safetensors, recipe.yaml, card.md, pictures/, and last of all model.json
    channels/CHANNEL.json   what was promoted to the channel, with its history

VERSION is the sha256 of the weights file (12 digits), so publishing the same weights again changes nothing.
Every file is written aside and renamed, and model.json comes last: a folder without it is not a model,
whatever happened to its publisher. In a local folder (NFS included) publishers take turns by a lock on
`.lock`; on object stores they need none to publish, and of two promotions at one moment the last one stays.

ray-sr ships such a store, which is never written: what another store does not hold is looked for there.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

import pyarrow as pa
import yaml
from pyarrow import fs as pafs
from pydantic import ValidationError
from torch import Tensor, nn

from ray_sr.errors import ModelError, ResourceError
from ray_sr.models import Capability, Generator, count_parameters
from ray_sr.models.weights import (
    decode_weights,
    encode_weights,
    generator_from_state,
    halved,
    is_weights_file,
)
from ray_sr.recipes.networks import NetworkSpec
from ray_sr.recipes.recipe import Recipe
from ray_sr.storage import exists, first_line, make_folder, open_filesystem, read_file, store_root, write_file
from ray_sr.storage.lock import locked
from ray_sr.store.card import picture_name, write_card
from ray_sr.store.records import NAME_PATTERN, Channel, ChannelEvent, Metrics, ModelRecord, Provenance

logger = logging.getLogger(__name__)

BUILT_IN = "bicubic"
SHIPPED = Path(__file__).parents[1] / "weights"

_STORAGE_ERRORS = (OSError, pa.ArrowException)


@dataclass
class Model:
    """A generator ready to run: `module` is in evaluation mode, float32, on the CPU.

    `version` is the first 12 digits of the weights file's sha256, or `built-in` (bicubic). `card` holds what
    is known of its making: the fields of ModelRecord, empty for bare weights files.
    """

    name: str
    version: str
    network: NetworkSpec | None
    module: Generator
    capability: Capability
    card: dict[str, Any] = field(default_factory=dict)


class Store:
    """A model store at a folder or URI; by default $RAY_SR_STORE, $RAY_SR_STORAGE/models or ~/.ray-sr/models.

    Every method raises ResourceError where the store cannot be read or written.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = str(root or store_root())
        self._filesystem, path = open_filesystem(self.root)
        self._path = path.rstrip("/")
        # Where models are looked for that are not here.
        self._fallback = None if self.root == str(SHIPPED) else Store(SHIPPED)

    # ------------------------------------------------------------------------------------- publishing

    def check_writable(self) -> None:
        """Write and remove a small file: says before long work whether its result can be published."""
        probe = f"{self._path}/.writable-{os.getpid()}-{time.time_ns()}"
        make_folder(self._filesystem, self._path)
        write_file(self._filesystem, probe, b"ray-sr")
        with self._storage("write"):
            self._filesystem.delete_file(probe)

    def publish(
        self,
        name: str,
        weights: nn.Module | Mapping[str, Tensor],
        network: NetworkSpec,
        *,
        recipe: Recipe | None = None,
        metrics: Sequence[Metrics] = (),
        provenance: Provenance | None = None,
        pictures: Mapping[str, bytes] | None = None,
        notes: str | None = None,
        half: bool = False,
        promote: str | None = None,
    ) -> str:
        """Publish a generator and return its version; optionally promote it to a channel at once.

        `pictures` are PNG or JPEG files by name, shown in the card, `notes` a part of it. Weights are stored as
        float32, whatever precision they come in, or with `half` as `halved` has them. Raises ModelError for
        weights that do not fit `network` or are not finite and for a bad name, before anything is written.
        """
        self._check_name(name)
        state = weights.state_dict() if isinstance(weights, nn.Module) else weights
        module = generator_from_state(network, state, name)
        stored = halved(module.state_dict()) if half else module.state_dict()
        data = encode_weights(stored, network)
        digest = hashlib.sha256(data).hexdigest()
        record = ModelRecord(
            name=name,
            version=digest[:12],
            sha256=digest,
            date=_now(),
            network=network,
            parameters=count_parameters(module)["parameters"],
            recipe=recipe.dump() if recipe else None,
            metrics=list(metrics),
            provenance=provenance or Provenance(),
            pictures=list(pictures or ()),
            notes=notes,
        )
        with self._lock():
            self._check_free(name, promote)
            self._sweep(name)
            if not self._intact(record):
                self._write_model(record, data, pictures or {})
            if promote:
                self._promote(record, promote)
        return record.version

    def _write_model(self, record: ModelRecord, data: bytes, pictures: Mapping[str, bytes]) -> None:
        files = {"model.safetensors": data, "card.md": write_card(record).encode()}
        if record.recipe:
            text = yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True)
            files["recipe.yaml"] = text.encode()
        files |= {f"pictures/{picture_name(name)}": picture for name, picture in pictures.items()}
        files["model.json"] = (record.model_dump_json(indent=2) + "\n").encode()  # last: it makes the model
        folder = self._folder(record.name, record.version)
        try:
            for name, content in files.items():
                make_folder(self._filesystem, f"{folder}/{name}".rpartition("/")[0])
                write_file(self._filesystem, f"{folder}/{name}", content)
        except ResourceError:
            self._sweep(record.name)
            raise

    def _intact(self, record: ModelRecord) -> bool:
        """Whether the same weights are published already and still undamaged."""
        folder = self._folder(record.name, record.version)
        try:
            found = _read_record(self._filesystem, folder)
            return found is not None and bool(_read_weights(self._filesystem, folder, found))
        except ModelError:
            return False

    def _sweep(self, name: str) -> None:
        """Remove what a killed or failed publisher of `name` left. The lock is held: nobody is writing it."""
        if not self._local:
            return
        with self._storage("write"):
            for info in self._children(f"{self._path}/models/{name}"):
                whole = exists(self._filesystem, f"{info.path}/model.json")
                if info.type == pafs.FileType.Directory and not whole:
                    self._filesystem.delete_dir(info.path)
            for folder in (f"models/{name}", "channels"):
                for info in self._children(f"{self._path}/{folder}", recursive=True):
                    if info.base_name.endswith(".tmp"):
                        self._filesystem.delete_file(info.path)

    # ---------------------------------------------------------------------------------------- reading

    def list(self) -> Sequence[ModelRecord]:
        """All published models, the newest first; damaged records are named in the log and left out."""
        folders = self._children(f"{self._path}/models")
        names = [info.base_name for info in folders if info.type == pafs.FileType.Directory]
        return _newest_first([record for name in names for record in self._versions(name)])

    def show(self, ref: str) -> ModelRecord:
        """The record of NAME (its newest version), NAME@VERSION or a channel; ModelError if there is none.

        What this store does not hold may be one of the shipped models.
        """
        found = self._show(ref)
        if found is None and self._fallback:
            found = self._fallback._show(ref)
        return found or self._unknown(ref)

    def _show(self, ref: str) -> ModelRecord | None:
        name, at, version = ref.partition("@")
        if at:
            found = [record for record in self._versions(name) if record.version.startswith(version)]
            return found[0] if version and len(found) == 1 else None
        if channel := self._channel(ref):
            return self._record(channel.current)
        return next(iter(_newest_first(self._versions(name))), None)

    def load(self, ref: str) -> Model:
        """The generator that `ref` means (see show), with its sha256 checked. Raises ModelError."""
        record = self.show(ref)
        store = self if self._fallback is None or self._holds(record) else self._fallback
        return _load_published(store._filesystem, store._folder(record.name, record.version), record)

    def channels(self) -> dict[str, Channel]:
        """Every channel with its history."""
        files = self._children(f"{self._path}/channels")
        names = [info.base_name.removesuffix(".json") for info in files if info.base_name.endswith(".json")]
        found = {name: self._channel(name) for name in sorted(names)}
        return {name: channel for name, channel in found.items() if channel}

    def _versions(self, name: str) -> Sequence[ModelRecord]:
        if not re.fullmatch(NAME_PATTERN, name):
            return []
        records = []
        for info in self._children(f"{self._path}/models/{name}"):
            try:
                record = _read_record(self._filesystem, info.path)
            except ModelError as error:
                logger.warning("%s", error)
                continue
            if record:
                records.append(record)
        return records

    def _record(self, event: ChannelEvent) -> ModelRecord:
        return self._published(event.name, event.version) or self._unknown(event.ref)

    def _published(self, name: str, version: str) -> ModelRecord | None:
        found = _read_record(self._filesystem, self._folder(name, version))
        return self._fallback._published(name, version) if found is None and self._fallback else found

    def _holds(self, record: ModelRecord) -> bool:
        return _read_record(self._filesystem, self._folder(record.name, record.version)) is not None

    def _unknown(self, ref: str) -> NoReturn:
        """Raise ModelError with what there is instead."""
        own, shipped = self._names(), self._fallback._names() if self._fallback else []
        close = difflib.get_close_matches(ref, [*own, *shipped, BUILT_IN], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        said = f"it holds {_some(own)}" if own else "it is empty; ray-sr models publish fills it"
        said += f"; ray-sr comes with {_some(shipped)}" if shipped else ""
        raise ModelError(f"no model {ref!r} in the store {self.root}: {hint}{said}")

    def _names(self) -> Sequence[str]:
        """All that `show` knows here: names, channels, and names with their versions."""
        found = self.list()
        return [*dict.fromkeys(each.name for each in found), *self.channels(), *(each.ref for each in found)]

    # --------------------------------------------------------------------------------------- channels

    def promote(self, ref: str, channel: str) -> ModelRecord:
        """Make `channel` mean this model from now on; returns its record. Raises ModelError."""
        with self._lock():
            record = self.show(ref)
            self._check_free(record.name, channel)
            self._promote(record, channel)
        return record

    def rollback(self, channel: str) -> ModelRecord:
        """Make `channel` mean the model before the present one; returns its record.

        Deleted models are passed over. Raises ModelError where there is nothing to go back to.
        """
        with self._lock():
            present = self._channel(channel) or self._no_channel(channel)
            for event in present.former():
                record = self._published(event.name, event.version)
                if record and record.ref != present.current.ref:
                    self._append(channel, present, "rollback", record)
                    return record
        raise ModelError(f"channel {channel!r}: nothing to roll back to before {present.current.ref}")

    def delete(self, ref: str) -> None:
        """Delete NAME@VERSION. Raises ModelError for a promoted model and where no version is named."""
        with self._lock():
            record = self.show(ref)
            if not self._holds(record):
                raise ModelError(f"{record.ref} comes with ray-sr and cannot be deleted")
            if "@" not in ref:
                raise ModelError(f"say which version of {ref!r} to delete: {record.ref} is the newest")
            holding = [name for name, channel in self.channels().items() if channel.current.ref == record.ref]
            if holding:
                raise ModelError(f"{record.ref} is promoted to {', '.join(holding)}: promote another one first")
            folder = self._folder(record.name, record.version)
            with self._storage("write"):
                self._filesystem.delete_file(f"{folder}/model.json")  # first: from here on it is no model
                self._filesystem.delete_dir(folder)

    def _promote(self, record: ModelRecord, channel: str) -> None:
        present = self._channel(channel)
        if present is None or present.current.ref != record.ref:
            self._append(channel, present, "promote", record)

    def _append(
        self,
        name: str,
        channel: Channel | None,
        action: Literal["promote", "rollback"],
        record: ModelRecord,
    ) -> None:
        event = ChannelEvent(action=action, name=record.name, version=record.version, date=_now())
        changed = Channel(history=[*(channel.history if channel else []), event])
        make_folder(self._filesystem, f"{self._path}/channels")
        data = (changed.model_dump_json(indent=2) + "\n").encode()
        write_file(self._filesystem, self._channel_file(name), data)

    def _channel(self, name: str) -> Channel | None:
        if not re.fullmatch(NAME_PATTERN, name):
            return None
        path = self._channel_file(name)
        try:
            with self._storage("read"):
                text = read_file(self._filesystem, path)
        except FileNotFoundError:
            return None
        try:
            return Channel.model_validate_json(text)
        except ValidationError as error:
            raise ModelError(f"{path}: damaged channel file: {error.errors()[0]['msg']}") from None

    def _channel_file(self, name: str) -> str:
        return f"{self._path}/channels/{name}.json"

    def _no_channel(self, name: str) -> NoReturn:
        known = ", ".join(self.channels()) or "none yet"
        raise ModelError(f"no channel {name!r} in the store {self.root}: its channels are {known}")

    # ---------------------------------------------------------------------------------------- helpers

    def _check_name(self, name: str) -> None:
        if not re.fullmatch(NAME_PATTERN, name) or len(name) > 64:
            raise ModelError(f"{name!r} cannot name a model: use up to 64 letters, digits, dots, - and _")
        if has_another_meaning(name):
            raise ModelError(f"{name!r} cannot name a model: it means something else already")

    def _check_free(self, name: str, channel: str | None) -> None:
        """A word means a model or a channel, never both."""
        if exists(self._filesystem, self._channel_file(name)):
            raise ModelError(f"{name!r} is a channel of the store {self.root}: give the model another name")
        if channel is None:
            return
        self._check_name(channel)
        if channel == name or self._versions(channel):
            raise ModelError(f"{channel!r} is a model of the store {self.root}: name the channel otherwise")

    @property
    def _local(self) -> bool:
        return isinstance(self._filesystem, pafs.LocalFileSystem)

    def _folder(self, name: str, version: str) -> str:
        return f"{self._path}/models/{name}/{version}"

    def _children(self, folder: str, recursive: bool = False) -> Sequence[pafs.FileInfo]:
        selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
        with self._storage("read"):
            if self._local and os.path.exists(self._path) and not os.path.isdir(self._path):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            infos = self._filesystem.get_file_info(selector)
        return sorted(infos, key=lambda info: info.path)

    @contextlib.contextmanager
    def _storage(self, verb: str) -> Iterator[None]:
        """Storage failures as ResourceError; a missing file stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except _STORAGE_ERRORS as error:
            other = "; --store or RAY_SR_STORE names another" if isinstance(error, PermissionError) else ""
            raise ResourceError(f"cannot {verb} the model store {self.root}: {first_line(error)}{other}") from None

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        if not self._local:
            yield
            return
        make_folder(self._filesystem, self._path)
        with locked(f"{self._path}/.lock", f"the model store {self.root}"):
            yield


def has_another_meaning(name: str) -> bool:
    """Whether MODEL means something else by this word: a weights file, a Python file, or what is built in."""
    return name == BUILT_IN or is_weights_file(name) or name.endswith(".py")


def _load_published(filesystem: pafs.FileSystem, folder: str, record: ModelRecord) -> Model:
    source = f"{folder}/model.safetensors"
    content = decode_weights(_read_weights(filesystem, folder, record), source)
    module = generator_from_state(record.network, content.state, source)
    card = record.model_dump(mode="json")
    return Model(record.name, record.version, record.network, module, module.capability, card)


def _read_record(filesystem: pafs.FileSystem, folder: str) -> ModelRecord | None:
    """The record in a published folder; None where there is none. Raises ModelError for a damaged one."""
    path = f"{folder}/model.json"
    try:
        return ModelRecord.model_validate_json(read_file(filesystem, path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise ModelError(f"{path}: damaged record: {reason}; publish the model again") from None
    except _STORAGE_ERRORS as error:
        raise ResourceError(f"{path}: cannot read: {first_line(error)}") from None


def _read_weights(filesystem: pafs.FileSystem, folder: str, record: ModelRecord) -> bytes:
    path = f"{folder}/model.safetensors"
    try:
        data = read_file(filesystem, path)
    except FileNotFoundError:
        raise ModelError(f"{path}: the weights are gone: publish the model again") from None
    except _STORAGE_ERRORS as error:
        raise ResourceError(f"{path}: cannot read: {first_line(error)}") from None
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise ModelError(f"{path}: damaged: its sha256 is not the published one; publish the model again")
    return data


def _some(names: Sequence[str]) -> str:
    plain = [name for name in names if "@" not in name]
    return ", ".join(plain[:8]) + (", …" if len(plain) > 8 else "")


def _newest_first(records: Sequence[ModelRecord]) -> list[ModelRecord]:
    return sorted(records, key=lambda record: (record.date, record.version), reverse=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
