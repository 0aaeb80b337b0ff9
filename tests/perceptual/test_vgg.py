"""VGG feature networks against torchvision's own VGG; weights files good, bad and absent."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from ray_sr.errors import InputError, ModelError, RecipeError, WeightsAbsentError
from ray_sr.perceptual import vgg as features
from ray_sr.perceptual.vgg import load_feature_network, resolve_feature_weights
from ray_sr.recipes.losses import FeaturesSpec, LossSpec, PerceptualLossSpec, PixelLossSpec
from tests.shared_data import shared_folder

VGG19_CACHE = "hub/checkpoints/vgg19-dcbb9e9d.pth"


def synthetic_vgg(name: str) -> nn.Sequential:
    """torchvision's own convolutions with seeded weights that keep the variance from layer to layer."""
    with torch.device("meta"):
        stack = getattr(torchvision.models, name)(weights=None, init_weights=False).features
    stack = stack.to_empty(device="cpu").eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stack.parameters():
            spread = 0.1 if parameter.ndim == 1 else (2 / parameter[0].numel()) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * spread)
    return stack.requires_grad_(False)


@pytest.fixture(scope="module")
def vgg19() -> nn.Sequential:
    return synthetic_vgg("vgg19")


@pytest.fixture(scope="module")
def vgg19_file(vgg19: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .pth with the names that torchvision's whole VGG19 has."""
    path = tmp_path_factory.mktemp("weights") / "vgg19.pth"
    torch.save(vgg19.state_dict(prefix="features.") | {"classifier.6.bias": torch.zeros(1000)}, path)
    return path


@pytest.fixture(scope="module")
def caffe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up .npz of the VGG19 layers conv1_1 to conv3_4."""
    path = tmp_path_factory.mktemp("weights") / "caffe.npz"
    state = synthetic_vgg("vgg19")[:17].state_dict(prefix="features.")
    np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    return path


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch cache, and a proxy that refuses every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    return tmp_path


def photos(seed: int, side: int = 32, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def run_until(stack: nn.Sequential, last: int, values: Tensor) -> Tensor:
    for module in stack[: last + 1]:
        values = torch.relu(values) if isinstance(module, nn.ReLU) else module(values)
    return values


# ---------------------------------------------------------------------------------------- the network


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_layer_names_count_convolutions_of_torchvisions_blocks(name: features.VGGName) -> None:
    with torch.device("meta"):
        stack = getattr(torchvision.models, name)(weights=None, init_weights=False).features
    expected, block, layer = {}, 1, 0
    for position, module in enumerate(stack):
        if isinstance(module, nn.Conv2d):
            layer += 1
            expected[f"conv{block}_{layer}"] = position
        elif isinstance(module, nn.MaxPool2d):
            block, layer = block + 1, 0
    assert features.layer_positions(name) == expected


@pytest.mark.parametrize(("activation", "behind"), [("before", 0), ("after", 1)])
def test_maps_equal_torchvisions(
    vgg19: nn.Sequential, vgg19_file: Path, activation: features.Activation, behind: int
) -> None:
    layers = {"conv1_2": 2, "conv3_4": 16, "conv5_4": 34}
    network = load_feature_network("vgg19", layers, weights=str(vgg19_file), activation=activation)
    values = photos(1)
    seen = normalize(values, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    maps = network(values)
    assert maps.keys() == layers.keys()
    for name, position in layers.items():
        torch.testing.assert_close(maps[name], run_until(vgg19, position + behind, seen))
    assert bool((maps["conv5_4"] < 0).any()) is (activation == "before")


def test_vgg16_conv3_3_equals_torchvisions(tmp_path: Path) -> None:
    stack = synthetic_vgg("vgg16")[:16]
    torch.save(stack.state_dict(prefix="features."), tmp_path / "vgg16.pth")
    network = load_feature_network("vgg16", ["conv3_3"], weights=str(tmp_path / "vgg16.pth"))
    seen = normalize(photos(2), mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.testing.assert_close(network(photos(2))["conv3_3"], run_until(stack, 15, seen))


def test_raw_input_when_not_normalised(vgg19: nn.Sequential, vgg19_file: Path) -> None:
    network = load_feature_network("vgg19", ["conv2_1"], weights=str(vgg19_file), normalise=False)
    torch.testing.assert_close(network(photos(3))["conv2_1"], run_until(vgg19, 6, photos(3)))


def test_signed_input_is_centred_at_middle_gray(vgg19: nn.Sequential, vgg19_file: Path, caffe_file: Path) -> None:
    network = load_feature_network("vgg19", ["conv2_1"], weights=str(vgg19_file), normalise=False, signed=True)
    torch.testing.assert_close(network(photos(3))["conv2_1"], run_until(vgg19, 6, photos(3) * 2 - 1))
    caffe = load_feature_network("vgg19", ["conv1_1"], weights=str(caffe_file), normalise=False, signed=True)
    expected = run_until(synthetic_vgg("vgg19"), 1, photos(3).flip(1) * 255 - 127.5)
    torch.testing.assert_close(caffe(photos(3))["conv1_1"], expected, rtol=1e-4, atol=1e-3)


def test_network_ends_at_the_deepest_layer_with_torchvisions_names(vgg19_file: Path) -> None:
    network = load_feature_network("vgg19", ["conv1_1", "conv2_1"], weights=str(vgg19_file))
    names = [f"features.{position}.{part}" for position in (0, 2, 5) for part in ("weight", "bias")]
    assert list(network.state_dict()) == names


def test_network_is_frozen_but_lets_gradients_through() -> None:
    network = load_feature_network("random", ["conv5_4"])
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    values = photos(4).requires_grad_()
    network(values)["conv5_4"].sum().backward()
    assert values.grad is not None
    assert values.grad.abs().amax(dim=(1, 2, 3)).gt(0).all()


def test_old_file_format_is_read(vgg19: nn.Sequential, tmp_path: Path) -> None:
    state = vgg19[:5].state_dict(prefix="features.")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network = load_feature_network("vgg19", ["conv1_2"], weights=str(tmp_path / "old.pth"))
    torch.testing.assert_close(network.state_dict(), dict(state))


# ----------------------------------------------------------------------------------- Caffe's weights


@pytest.mark.parametrize("normalise", [True, False])
def test_caffe_weights_see_bgr_of_255_minus_the_mean(caffe_file: Path, normalise: bool) -> None:
    network = load_feature_network(
        "vgg19", ["conv1_1", "conv3_4"], weights=str(caffe_file), activation="before", normalise=normalise
    )
    stack = synthetic_vgg("vgg19")
    seen = np.asarray(photos(5))[:, ::-1] * 255
    if normalise:
        seen = seen - np.array([103.939, 116.779, 123.68], np.float32).reshape(1, 3, 1, 1)
    maps = network(photos(5))
    for name, position in {"conv1_1": 0, "conv3_4": 16}.items():
        expected = run_until(stack, position, torch.from_numpy(seen.astype(np.float32)))
        rounding = 3e-6 * float(expected.abs().max())  # of sums of products of values up to 255
        torch.testing.assert_close(maps[name], expected, rtol=1e-4, atol=rounding)


def test_layer_beyond_the_caffe_file_is_one_clear_line(caffe_file: Path) -> None:
    spec = PerceptualLossSpec(layers={"conv3_4": 1.0, "conv5_4": 1.0})
    with pytest.raises(RecipeError) as caught:
        resolve_feature_weights([spec], FeaturesSpec(weights=str(caffe_file)))
    message = str(caught.value)
    assert "ends at conv3_4" in message
    assert "asks for conv5_4" in message
    assert "\n" not in message


def test_real_caffe_weights_agree_with_people() -> None:
    """LPIPS' example: people find p1 nearer to the reference, pixel distances p0."""
    weights = shared_folder("data/weights/vgg19_keras_bgr_conv1_1-conv3_4.npz")
    examples = shared_folder("data/weights/lpips_v0.1/examples")
    ref, p0, p1 = (_png(examples / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    network = features.distance_network(str(weights))
    distances = features.vgg19_feature_distance(torch.cat([p0, p1]), torch.cat([ref, ref]), network)
    torch.testing.assert_close(distances, torch.tensor([0.569, 0.314]), atol=5e-4, rtol=0)


def _png(path: Path) -> Tensor:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


# ---------------------------------------------------------------------------------- untrained network


def test_random_network_ignores_and_keeps_the_global_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_feature_network("random", ["conv5_4"])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    shallow = load_feature_network("random", ["conv2_1"]).state_dict()
    assert shallow
    for name, tensor in shallow.items():
        assert torch.equal(tensor, first.state_dict()[name])


def test_random_network_keeps_the_signal_alive() -> None:
    layers = list(features.layer_positions("random"))
    maps = load_feature_network("random", layers, activation="before")(photos(6, side=64))
    spreads = [float(maps[name].std()) for name in layers]
    assert len(spreads) == 16
    assert all(0.2 < spread < 5 for spread in spreads)


# --------------------------------------------------------------------------------- finding the weights


def test_missing_weights_fail_at_once_and_name_both_remedies(offline: Path) -> None:
    started = time.monotonic()
    for attempt in (
        lambda: resolve_feature_weights([PixelLossSpec(), PerceptualLossSpec()], FeaturesSpec()),
        lambda: load_feature_network("vgg19", ["conv5_4"]),
    ):
        with pytest.raises(InputError) as caught:
            attempt()
        message = str(caught.value)
        assert "features.weights=PATH" in message
        assert "connected machine" in message
        assert str(offline / VGG19_CACHE) in message
        assert "refused" in message
        assert "\n" not in message
    assert time.monotonic() - started < 10
    assert not [path for path in offline.rglob("*") if path.is_file()]


def test_nothing_is_looked_up_when_no_loss_needs_vgg(offline: Path) -> None:
    losses: list[LossSpec] = [PixelLossSpec(), PerceptualLossSpec(network="random")]
    assert resolve_feature_weights(losses, FeaturesSpec(weights="absent.pth")) == {}


def test_cached_weights_are_found_offline(offline: Path, vgg19_file: Path) -> None:
    assert features.cached_weights("vgg19") is None
    cached = offline / VGG19_CACHE
    cached.parent.mkdir(parents=True)
    cached.symlink_to(vgg19_file)
    assert features.cached_weights("vgg19") == cached
    assert resolve_feature_weights([PerceptualLossSpec()], FeaturesSpec()) == {"vgg19": cached}
    assert load_feature_network("vgg19", ["conv1_1"]).taps == {1: "conv1_1"}


def test_given_file_is_checked_and_returned(vgg19_file: Path) -> None:
    losses = [PerceptualLossSpec(), PerceptualLossSpec(layers={"conv2_2": 1.0})]
    found = resolve_feature_weights(losses, FeaturesSpec(weights=str(vgg19_file)))
    assert found == {"vgg19": vgg19_file}


class _Executes:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def _bad_files(folder: Path) -> list[Path]:
    for name in ("garbage.pth", "garbage.npz"):
        (folder / name).write_bytes(b"no weights at all")
    torch.save([1, 2], folder / "list.pth")
    (folder / "code.pth").write_bytes(pickle.dumps(_Executes(folder / "executed"), protocol=2))
    torch.save(synthetic_vgg("vgg16")[:20].state_dict(prefix="features."), folder / "vgg16.pth")
    narrow = {"features.0.weight": torch.zeros(8, 3, 3, 3), "features.0.bias": torch.zeros(8)}
    torch.save(narrow, folder / "narrow.pth")
    return sorted(folder.iterdir())


def test_files_that_do_not_fit_are_named_in_one_line(tmp_path: Path) -> None:
    spec = PerceptualLossSpec(layers={"conv1_1": 1.0})
    paths = _bad_files(tmp_path)
    assert len(paths) == 6
    for path in paths:
        with pytest.raises(ModelError) as caught:
            resolve_feature_weights([spec], FeaturesSpec(weights=str(path)))
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.pth: no such file"):
        resolve_feature_weights([PerceptualLossSpec()], FeaturesSpec(weights=str(tmp_path / "absent.pth")))


# -------------------------------------------------------------------------------------------- download


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def web_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(_QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_download_checks_the_hash_in_the_name(
    web_folder: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = web_folder
    content = np.random.default_rng(0).bytes(3 << 20)
    name = f"vgg-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (folder / name).write_bytes(content)
    (folder / "vgg-01234567.pth").write_bytes(content)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    cache = tmp_path / "checkpoints"
    assert features.published_file(f"{url}/{name}") == cache / name
    assert (cache / name).read_bytes() == content
    with pytest.raises(WeightsAbsentError, match="SHA-256 is"):
        features.published_file(f"{url}/vgg-01234567.pth")
    assert [path.name for path in cache.iterdir()] == [name]


def test_download_gives_up_on_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(features, "_DOWNLOAD_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/vgg.pth"
        started = time.monotonic()
        with pytest.raises(WeightsAbsentError, match="timed out"):
            features.published_file(url)
    assert time.monotonic() - started < 5
    assert list((tmp_path / "checkpoints").iterdir()) == []


# -------------------------------------------------------------------------------------------- distance


def test_feature_distance_of_each_photo(caffe_file: Path) -> None:
    network = features.distance_network(str(caffe_file))
    sr, hr = photos(7), photos(8)
    sr[1] = hr[1]
    result = features.vgg19_feature_distance(sr, hr, network)
    first, second = (np.asarray(network(x)["conv3_4"][0], np.float64) for x in (sr, hr))
    cosine = (first * second).sum(0) / (np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0))
    assert result.shape == (2,)
    assert float(result[0]) == pytest.approx((2 - 2 * cosine).mean(), rel=1e-4)
    assert float(result[1]) == 0
