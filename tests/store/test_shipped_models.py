"""Models that come with ray-sr: found where the user's store has none, never written, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ray_sr.cli import cli, main
from ray_sr.commands.common import chosen_model
from ray_sr.errors import ModelError
from ray_sr.store import Store, load_model
from ray_sr.store import store as model_store
from tests.small_models import NETWORK, files, generator, output


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store in the place of the shipped one, with one model that is its best."""
    monkeypatch.setattr(model_store, "SHIPPED", tmp_path / "shipped")
    place = Store(tmp_path / "shipped")
    place.publish("light", generator(1), NETWORK, promote="best")
    return place


@pytest.fixture
def store(tmp_path: Path, shipped: Store) -> Store:
    return Store(tmp_path / "store")


def test_an_empty_store_serves_the_shipped_models(store: Store, shipped: Store) -> None:
    version = shipped.show("light").version
    for ref in ("light", f"light@{version}", "best", chosen_model(None, store.root)):
        model = load_model(ref, store)
        assert (model.name, model.version) == ("light", version)
        torch.testing.assert_close(output(model.module), output(generator(1)))
    assert store.list() == []


def test_scales_up_to_2_get_the_shipped_model_for_x2(store: Store, shipped: Store) -> None:
    assert chosen_model(None, store.root, 2) == "best"
    shipped.publish("light-x2", generator(4), NETWORK, promote="best-x2")
    assert [chosen_model(None, store.root, scale) for scale in (1.5, 2, 2.5, None)] == [
        "best-x2", "best-x2", "best", "best"
    ]  # fmt: skip
    assert chosen_model("light", store.root, 2) == "light"
    ref = "mine@" + store.publish("mine", generator(3), NETWORK)
    assert chosen_model(None, store.root, 2) == ref


def test_own_models_come_first(store: Store) -> None:
    version = store.publish("light", generator(2), NETWORK)
    assert store.load("light").version == version
    assert chosen_model(None, store.root) == f"light@{version}"
    store.publish("mine", generator(3), NETWORK, promote="best")
    assert store.load("best").name == "mine"


def test_channels_may_mean_shipped_models(store: Store) -> None:
    store.publish("mine", generator(3), NETWORK, promote="stable")
    store.promote("light", "stable")
    assert store.load("stable").name == "light"
    assert store.rollback("stable").name == "mine"
    store.promote("mine", "fast")
    store.promote("light", "fast")
    store.promote("mine", "fast")
    assert store.rollback("fast").name == "light"


def test_shipped_models_are_never_written(store: Store, shipped: Store) -> None:
    before = files(Path(shipped.root))
    store.publish("light", generator(2), NETWORK, promote="best")
    ref = shipped.show("light").ref
    with pytest.raises(ModelError, match="comes with ray-sr"):
        store.delete(ref)
    assert files(Path(shipped.root)) == before


def test_what_nobody_has_is_an_error_that_names_the_shipped(store: Store) -> None:
    with pytest.raises(ModelError, match="did you mean 'light'"):
        store.show("ligt")


def test_the_list_names_them(store: Store, shipped: Store) -> None:
    done = CliRunner().invoke(cli, ["models", "list", "--store", store.root], catch_exceptions=False)
    none, listed = done.stdout.splitlines()
    assert none.startswith("no models in")
    assert listed.startswith(shipped.show("light").ref)
    assert listed.endswith("comes with ray-sr")


def test_where_nothing_is_shipped_an_empty_store_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_store, "SHIPPED", tmp_path / "nothing")
    with pytest.raises(SystemExit) as ended:
        main(["upscale", "photo.png", "--store", str(tmp_path / "store")])
    assert ended.value.code == 5
    error = capsys.readouterr().err
    assert error.startswith("error: no model in ")
    assert "ray-sr models publish" in error
    assert "bicubic" in error
