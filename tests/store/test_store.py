"""The model store: publishing, channels, damage, loading."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ray_sr.errors import InputError, ModelError, ResourceError
from ray_sr.models.weights import save_weights
from ray_sr.recipes.recipe import Recipe
from ray_sr.store import Metrics, Provenance, Store, load_model
from tests.shared_data import shared_folder
from tests.small_models import LARGE, NETWORK, RECIPE, files, generator, output


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(params=["folder", "memory", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A local folder, a filesystem of fsspec's, and an object store over HTTP."""
    if request.param == "folder":
        yield Store(tmp_path / "store")
        return
    if request.param == "s3":
        yield Store(f"{request.getfixturevalue('s3')}/{tmp_path.name}/store")
        return
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec for a store in memory")
    yield Store(f"fsspec+memory://{tmp_path}/store")
    memory = fsspec.filesystem("memory")
    if memory.exists(str(tmp_path)):
        memory.rm(str(tmp_path), recursive=True)


# ----------------------------------------------------------------------------------------- publishing


def test_what_is_published_is_what_is_loaded(any_store: Store) -> None:
    version = any_store.publish(
        "small",
        generator(1),
        NETWORK,
        recipe=RECIPE,
        metrics=[Metrics(protocol="Set5, Y, border 2", values={"psnr_y": 31.25, "ssim_y": 0.9})],
        provenance=Provenance(data_manifest="ab" * 32, parent="other@123", source="runs/1", steps=500),
        pictures={"butterfly.png": b"\x89PNG"},
        promote="best",
    )
    for ref in ("small", f"small@{version}", f"small@{version[:6]}", "best"):
        model = any_store.load(ref)
        assert (model.name, model.version, model.network) == ("small", version, NETWORK)
        assert torch.equal(output(model.module), output(generator(1)))
        assert model.capability.scale == 2
        assert not model.module.training
    assert Recipe.model_validate(model.card["recipe"]) == RECIPE
    assert model.card["metrics"][0]["values"]["psnr_y"] == 31.25
    assert model.card["provenance"]["data_manifest"] == "ab" * 32
    assert model.card["provenance"]["versions"]["torch"] == importlib.metadata.version("torch")


def test_layout_and_card(store: Store, tmp_path: Path) -> None:
    metrics = [Metrics(protocol="Set5, Y", values={"psnr_y": 31.25})]
    version = store.publish(
        "small", generator(1), NETWORK, recipe=RECIPE, metrics=metrics, pictures={"a.png": b"x"}, promote="best"
    )
    folder = f"models/small/{version}"
    expected = {"model.safetensors", "model.json", "recipe.yaml", "card.md", "pictures/a.png"}
    found = files(tmp_path / "store")
    assert set(found) == {f"{folder}/{name}" for name in expected} | {"channels/best.json"}
    card = found[f"{folder}/card.md"].decode()
    for text in ("# small", version, "A \\| test", "| psnr_y | 31.2500 |", "Set5, Y", "![a.png](pictures/a.png)"):
        assert text in card
    assert f"ray-sr upscale photo.jpg -o larger.png -n small@{version}" in card


def test_publishing_again_changes_nothing(any_store: Store) -> None:
    first = any_store.publish("small", generator(1), NETWORK)
    record = any_store.show("small")
    assert any_store.publish("small", generator(1), NETWORK) == first
    assert any_store.show("small") == record
    assert len(any_store.list()) == 1


def test_versions_differ_by_weights_and_network(store: Store) -> None:
    signed = NETWORK.model_copy(update={"value_range": "signed"})
    versions = {
        store.publish("small", generator(1), NETWORK),
        store.publish("small", generator(2), NETWORK),
        store.publish("small", generator(1).state_dict(), signed),
    }
    assert len(versions) == 3
    assert {record.version for record in store.list()} == versions


def test_a_name_means_its_newest_version(any_store: Store) -> None:
    versions = [any_store.publish("small", generator(seed), NETWORK) for seed in range(4)]
    any_store.publish("other", generator(9), NETWORK)
    assert any_store.show("small").version == versions[-1]
    listed = [record.version for record in any_store.list() if record.name == "small"]
    assert listed == versions[::-1]


def test_half_precision_is_published_as_float32(store: Store) -> None:
    module = generator(1).half()
    version = store.publish("small", module, NETWORK)
    assert store.publish("small", module.float(), NETWORK) == version


def test_stray_files_do_not_disturb(store: Store, tmp_path: Path) -> None:
    version = store.publish("small", generator(1), NETWORK)
    for folder in ("", "models", "models/small", "channels"):
        (tmp_path / "store" / folder).mkdir(exist_ok=True)
        (tmp_path / "store" / folder / "README").write_text("hello")
    assert [record.version for record in store.list()] == [version]
    assert store.channels() == {}


def test_weights_of_another_network_are_not_published(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"another network.*body\.0\.weight"):
        store.publish("small", generator(1, LARGE), NETWORK)
    broken = generator(1).state_dict()
    broken["body.0.bias"][0] = torch.nan
    with pytest.raises(ModelError, match=r"body\.0\.bias"):
        store.publish("small", broken, NETWORK)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a b", ".hidden", "bicubic", "x.pth", "net.py", "é", "a" * 65, "x@y"]
)
def test_names_that_cannot_be(store: Store, name: str) -> None:
    with pytest.raises(ModelError, match="cannot name a model"):
        store.publish(name, generator(1), NETWORK)


def test_a_picture_stays_in_its_folder(store: Store) -> None:
    with pytest.raises(ModelError, match="picture"):
        store.publish("small", generator(1), NETWORK, pictures={"../../x.png": b""})
    assert not store.list()


def test_a_word_means_a_model_or_a_channel(store: Store) -> None:
    store.publish("small", generator(1), NETWORK, promote="best")
    with pytest.raises(ModelError, match="is a channel"):
        store.publish("best", generator(2), NETWORK)
    with pytest.raises(ModelError, match="is a model"):
        store.promote("small", "small")
    with pytest.raises(ModelError, match="is a model"):
        store.publish("other", generator(2), NETWORK, promote="small")
    assert [record.name for record in store.list()] == ["small"]


# ------------------------------------------------------------------------------------------- channels


def test_promote_and_roll_back(any_store: Store) -> None:
    a, b, c = (any_store.publish("small", generator(seed), NETWORK) for seed in range(3))
    for version in (a, b, c):
        any_store.promote(f"small@{version}", "best")
    any_store.promote(f"small@{c}", "best")  # again: nothing happens
    assert any_store.rollback("best").version == b
    assert torch.equal(output(any_store.load("best").module), output(generator(1)))
    assert any_store.rollback("best").version == a
    with pytest.raises(ModelError, match="nothing to roll back to"):
        any_store.rollback("best")
    any_store.promote(f"small@{c}", "best")
    assert any_store.rollback("best").version == a
    history = any_store.channels()["best"].history
    assert [event.action for event in history] == ["promote"] * 3 + ["rollback"] * 2 + ["promote", "rollback"]


def test_roll_back_passes_over_deleted_models(store: Store) -> None:
    a, b, c = (store.publish("small", generator(seed), NETWORK, promote="best") for seed in range(3))
    store.delete(f"small@{b}")
    assert store.rollback("best").version == a
    assert store.show("best").version == a
    assert c in {record.version for record in store.list()}


def test_promoted_models_are_protected(any_store: Store) -> None:
    old = any_store.publish("small", generator(1), NETWORK, promote="stable")
    new = any_store.publish("small", generator(2), NETWORK, promote="best")
    for ref in (f"small@{old}", f"small@{new}"):
        with pytest.raises(ModelError, match="promoted to"):
            any_store.delete(ref)
    with pytest.raises(ModelError, match=f"say which version.*small@{new}"):
        any_store.delete("small")
    any_store.promote(f"small@{new}", "stable")
    any_store.delete(f"small@{old}")
    assert [record.version for record in any_store.list()] == [new]
    with pytest.raises(ModelError, match="no model"):
        any_store.load(f"small@{old}")


def test_unknown_references_say_what_there_is(store: Store) -> None:
    with pytest.raises(ModelError, match=r"is empty; ray-sr models publish fills it; ray-sr comes with .*light-x4"):
        store.load("small")
    version = store.publish("small", generator(1), NETWORK, promote="best")
    with pytest.raises(ModelError, match=r"did you mean 'small'.*it holds small, best"):
        store.load("smal")
    with pytest.raises(ModelError, match=f"did you mean 'small@{version}'"):
        store.load(f"small@{version[:-1]}0" if version[-1] != "0" else f"small@{version[:-1]}1")
    with pytest.raises(ModelError, match=r"did you mean 'light-x4'.*it holds small, best; ray-sr comes with"):
        store.load("light-x5")
    for ref in ("small@", "@", "", "nonsense"):
        with pytest.raises(ModelError, match="no model"):
            store.load(ref)
    with pytest.raises(ModelError, match=r"no channel 'stable'.*best"):
        store.rollback("stable")
    with pytest.raises(ModelError, match="no model"):
        store.promote("nobody", "stable")
    assert list(store.channels()) == ["best"]


# --------------------------------------------------------------------------------------------- damage


def test_damaged_weights_are_never_loaded_and_publishing_repairs(store: Store, tmp_path: Path) -> None:
    version = store.publish("small", generator(1), NETWORK)
    weights = tmp_path / "store/models/small" / version / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:-4], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        weights.write_bytes(broken)
        with pytest.raises(ModelError, match="damaged: its sha256"):
            store.load("small")
    weights.unlink()
    with pytest.raises(ModelError, match="weights are gone"):
        store.load("small")
    assert store.publish("small", generator(1), NETWORK) == version
    assert torch.equal(output(store.load("small").module), output(generator(1)))


def test_a_damaged_record_is_named_and_the_others_stay(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = store.publish("small", generator(1), NETWORK)
    new = store.publish("small", generator(2), NETWORK)
    (tmp_path / "store/models/small" / new / "model.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert [record.version for record in store.list()] == [old]
    assert new in caplog.text
    assert store.load("small").version == old


def test_a_damaged_channel_is_named(store: Store, tmp_path: Path) -> None:
    store.publish("small", generator(1), NETWORK, promote="best")
    (tmp_path / "store/channels/best.json").write_text("{}")
    with pytest.raises(ModelError, match=r"best\.json: damaged channel"):
        store.load("best")


def test_a_folder_without_record_is_no_model_and_goes_at_the_next_publication(store: Store, tmp_path: Path) -> None:
    version = store.publish("small", generator(1), NETWORK)
    half = tmp_path / "store/models/small/0123456789ab"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert [record.version for record in store.list()] == [version]
    store.publish("small", generator(2), NETWORK)
    assert not half.exists()


# --------------------------------------------------------------------------- storage that is not there


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    for attempt in (store.check_writable, lambda: store.publish("small", generator(1), NETWORK)):
        with pytest.raises(ResourceError, match="file/store") as refusal:
            attempt()
        assert "\n" not in str(refusal.value)


def test_check_writable_leaves_nothing(any_store: Store) -> None:
    any_store.check_writable()
    assert not any_store.list()
    assert not any_store.channels()


def test_unknown_storage(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere://x"):
        Store("nowhere://x")


# ----------------------------------------------------------------------------------------- load_model


def test_load_model_takes_every_reference(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = store.publish("small", generator(1), NETWORK, promote="best")
    save_weights(tmp_path / "one.safetensors", generator(1), NETWORK)
    torch.save({"params": generator(1).state_dict()}, tmp_path / "two.pth")
    folder = Path(store.root) / "models" / "small" / version
    expected = output(generator(1))
    for ref in (
        "small",
        "best",
        folder,
        f"file://{folder}",
        tmp_path / "one.safetensors",
        str(tmp_path / "two.pth"),
    ):
        model = load_model(ref, store)
        assert torch.equal(output(model.module), expected)
        assert len(model.version) == 12
        assert model.network == NETWORK
    assert load_model("best", store.root).version == version
    monkeypatch.setenv("RAY_SR_STORE", store.root)
    assert load_model("best").version == version
    monkeypatch.chdir(folder.parent)
    assert load_model(version).version == version


def test_a_folder_called_like_a_model_does_not_hide_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.publish("small", generator(1), NETWORK)
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("small", store).version == version


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_needs_no_store(tmp_path: Path, scale: int) -> None:
    model = load_model("bicubic", tmp_path / "none", scale=scale)
    assert (model.name, model.network, model.capability.scale) == ("bicubic", None, scale)
    assert output(model.module).shape == (1, 3, 5 * scale, 4 * scale)


def test_python_file(tmp_path: Path) -> None:
    code = "def load(name, scale): return lambda x: x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)"
    (tmp_path / "nets.py").write_text(code)
    model = load_model(f"{tmp_path}/nets.py:any:3")
    assert (model.name, model.capability.scale, model.network) == ("any", 3, None)
    assert output(model.module).shape == (1, 3, 15, 12)
    with pytest.raises(InputError, match=r"FILE\.py:NAME:SCALE"):
        load_model(tmp_path / "nets.py")
    with pytest.raises(InputError, match="no such Python file"):
        load_model(f"{tmp_path}/none.py:any:3")


@pytest.mark.parametrize("name", ["imdn", "pan", "carn-m"])
def test_public_peers_run_through_the_same_door(name: str) -> None:
    model = load_model(f"{shared_folder('data/peers') / 'networks.py'}:{name}:4")
    with torch.inference_mode():
        found = model.module(torch.full((1, 3, 16, 20), 0.5))
    assert found.shape == (1, 3, 64, 80)
    assert abs(found.mean().item() - 0.5) < 0.05


@pytest.mark.parametrize("ref", ["none.pth", "folder/none.safetensors", "folder/none", "./none"])
def test_missing_files_are_input_errors(tmp_path: Path, ref: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"none"):
        load_model(ref)


def test_a_copied_folder_is_checked_too(store: Store, tmp_path: Path) -> None:
    version = store.publish("small", generator(1), NETWORK)
    folder = Path(store.root) / "models" / "small" / version
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(record | {"sha256": "0" * 64}))
    with pytest.raises(ModelError, match="sha256"):
        load_model(folder)
