"""Generators of kind spandrel: trained, resumed, tiled, written, and read back by spandrel itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from ray_sr.errors import ModelError, RecipeError
from ray_sr.images import Photo, decode, encode, read_photo, write_photo
from ray_sr.models import build_generator
from ray_sr.models.spandrel_network import SpandrelGenerator
from ray_sr.models.weights import load_generator, save_weights
from ray_sr.recipes import architectures
from ray_sr.recipes.networks import NetworkSpec, SpandrelSpec
from ray_sr.recipes.reader import parse_recipe
from ray_sr.recipes.recipe import Recipe
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.run import running_service
from ray_sr.store import Store, load_model
from ray_sr.training.compute import Compute
from ray_sr.training.state import TrainState
from ray_sr.training.steps import MicroBatch, build_step
from ray_sr.upscaling.engine import Engine
from tests.photos import real_photos
from tests.test_cli import run

spandrel = pytest.importorskip("spandrel", reason="needs the optional spandrel: pip install ray-sr[foreign]")

# One of each kind, as small as they go: convolutions, large kernels, windows, attention over channels and over all.
SMALL: dict[str, dict[str, Any]] = {
    "SPAN": {"feature_channels": 16},
    "RealPLKSR": {"dim": 16, "n_blocks": 1, "kernel_size": 7},
    "SwinIR": {"embed_dim": 12, "depths": [2], "num_heads": [2], "img_size": 16},
    "HAT": {
        "embed_dim": 24,
        "depths": [1],
        "num_heads": [2],
        "window_size": 8,
        "img_size": 16,
        "squeeze_factor": 8,
    },
    "DAT": {"embed_dim": 32, "depth": [1], "num_heads": [2], "split_size": [8, 8], "img_size": 16},
    "OmniSR": {"num_feat": 16},
    "RCAN": {"n_resgroups": 1, "n_resblocks": 1, "n_feats": 16, "reduction": 4},
    "SAFMN": {"dim": 12, "n_blocks": 1},
    "MoSR": {"n_block": 1, "dim": 16},
    "Compact": {"num_feat": 16, "num_conv": 2},
    "ESRGAN": {"num_filters": 16, "num_blocks": 1},  # the nearest to EDSR: residual blocks without normalisation
}
OURS = {"Compact": "compact", "SPAN": "span"}
"""Those that ray-sr has too, by their names of weights."""
RECIPE = """
name: small
scale: 2
data: {crop: 32, batch: 2, crops_per_image: 2}
discriminator: {kind: tiny, channels: 4}
pretrain: {steps: 30, losses: [{kind: l1}], optimizer: {lr: 2e-3}}
gan: {steps: 10, losses: [{kind: l1}], generator_optimizer: {lr: 1e-3}}
training: {precision: fp32}
"""


def recipe_of(name: str) -> Recipe:
    generator = json.dumps({"kind": "spandrel", "architecture": name, "options": SMALL[name]})
    return parse_recipe(RECIPE, [f"generator={generator}"])


def small(name: str) -> NetworkSpec:
    return recipe_of(name).network


def micro_batch() -> MicroBatch:
    """Two crops of real photographs, and what they are at half size."""
    photos = real_photos()
    crops = np.stack([photos["astronaut"][60:92, 200:232], photos["coffee"][100:132, 300:332]])
    hr = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    return MicroBatch(torch.nn.functional.avg_pool2d(hr, 2), hr)


def train(state: TrainState, steps: int) -> list[float]:
    """The generator's losses of the next steps."""
    found, step = [], build_step(state)
    for _ in range(steps):
        found.append(float(step.run([micro_batch()], state.step_of_stage)["g_l1"]))
        if state.advance():
            step = build_step(state)
    return found


class Trained(dict[str, tuple[TrainState, list[float], Path]]):
    """Each architecture after all of its steps, its losses, and its checkpoint three steps before the end."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        super().__init__()
        self.folders = folders

    def __missing__(self, name: str) -> tuple[TrainState, list[float], Path]:
        recipe = recipe_of(name)
        state = TrainState(recipe, Compute.of(recipe.training, torch.device("cpu")))
        losses = train(state, recipe.total_steps - 3)
        folder = self.folders.mktemp(name)
        state.snapshot().write(folder)
        self[name] = state, losses + train(state, 3), folder
        return self[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory)


@pytest.mark.parametrize("name", SMALL)
def test_both_stages_lower_the_loss(name: str, trained: Trained) -> None:
    state, losses, _ = trained[name]
    pretrain, gan = losses[:30], losses[30:]
    assert np.mean(pretrain[-5:]) < 0.8 * np.mean(pretrain[:3])
    assert np.mean(gan[-3:]) < np.mean(pretrain[:3])
    assert all(bool(torch.isfinite(value).all()) for value in state.generator.state_dict().values())


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_training_is_the_same_bit_for_bit(name: str, trained: Trained) -> None:
    state, losses, folder = trained[name]
    resumed = TrainState(recipe_of(name), state.compute)
    resumed.load(folder)
    assert train(resumed, 3) == losses[-3:]
    for key, value in resumed.ema.state_dict().items():
        assert torch.equal(value, state.ema.state_dict()[key]), key


@pytest.mark.parametrize("name", SMALL)
def test_spandrel_loads_the_file_and_gives_the_same_picture(name: str, trained: Trained, tmp_path: Path) -> None:
    generator = trained[name][0].ema
    save_weights(tmp_path / "net.safetensors", generator, small(name))
    theirs = spandrel.ModelLoader(device="cpu").load_from_file(tmp_path / "net.safetensors")
    assert architectures.name_of(theirs.model) == name
    picture = torch.rand(1, 3, 21, 26, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        assert torch.allclose(generator(picture).clamp(0, 1), theirs(picture.clone()), atol=1e-4)
    torch.save({"params": theirs.model.state_dict()}, tmp_path / "theirs.pth")  # without our header
    loaded, network = load_generator(tmp_path / "theirs.pth")
    assert network
    if name in OURS:
        assert network.generator.kind == OURS[name]
    else:
        assert network.generator.kind == "spandrel"
        assert network.generator.architecture == name
    with torch.inference_mode():
        assert torch.allclose(loaded(picture), generator(picture), atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_a_published_one_upscales_by_tiles_as_a_whole(
    name: str, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within 1 of 255 where the network is tiled at all: what looks at the whole is run whole."""
    generator = trained[name][0].ema
    store = Store(tmp_path / "store")
    store.publish("mine", generator, small(name))
    assert load_model("mine", store).network == small(name)
    photo = real_photos()["chelsea"][100:248, 100:280]
    write_photo(tmp_path / "photo.png", Photo(photo))
    capability = generator.capability
    least = max(128, 2 * min(capability.receptive_field, 32) + 8 * capability.multiple)
    pictures = []
    for tile in (("-t", "512"), () if capability.whole_image_norm else ("-t", str(least))):
        out = tmp_path / f"{len(pictures)}.png"
        options = ("-n", "mine", "--store", str(store.root), *tile, "-o", str(out), "-d", "cpu")
        code, _, err = run("upscale", str(tmp_path / "photo.png"), *options, capsys=capsys)
        assert code == 0, err
        pictures.append(read_photo(out).pixels.astype(int))
    whole, tiled = pictures
    expected = Engine(generator, capability, device="cpu", tile=512).run(photo, np.uint8)
    np.testing.assert_array_equal(whole, expected)
    assert least < min(photo.shape[:2])
    assert np.abs(tiled - whole).max() <= (0 if capability.whole_image_norm else 1)


@pytest.mark.ray
def test_the_endpoint_answers_with_each_of_them(ray_local: None, tmp_path: Path) -> None:
    """With fresh weights, so that nothing has to be trained for it."""
    store, networks = Store(tmp_path), {name: small(name) for name in SMALL}
    torch.manual_seed(5)
    for name, network in networks.items():
        store.publish(name, build_generator(network), network)
    options = ServiceOptions(
        model="SPAN", all_models=True, store=store.root, device="cpu", precision="float32", cpus=0.5,
        codec_processes=1, jobs=str(tmp_path / "jobs"),
    )  # fmt: skip
    photo = Photo(real_photos()["coffee"][100:148, 200:256])
    with running_service(options) as url:
        for name in SMALL:
            answer = httpx.post(f"{url}/v1/upscale?model={name}", content=encode(photo, "png"), timeout=120)
            assert answer.status_code == 200, (name, answer.text)
            assert answer.headers["raysr-model"].startswith(f"{name}@")
            model = load_model(name, store)
            expected = Engine(model.module, model.capability, device="cpu").run(photo.pixels, np.uint8)
            found = decode(answer.content).pixels
            assert found.shape == expected.shape
            assert np.abs(found.astype(int) - expected).max() <= 1, name


def test_a_published_one_loads_without_code_and_only_with_spandrel(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = trained["OmniSR"][0].ema
    store = Store(tmp_path)
    store.publish("omni", generator, small("OmniSR"))
    found = load_model("omni", store)
    network = small("OmniSR")
    assert found.network == network
    picture = torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        assert torch.allclose(found.module(picture), generator(picture), atol=1e-5)
    monkeypatch.setattr(architectures, "is_installed", lambda: False)
    architectures.architectures.cache_clear()
    assert store.show("omni").network == network  # what it is can be read
    with pytest.raises(Exception, match=r"pip install 'ray-sr\[foreign\]'"):
        load_model("omni", store)
    with pytest.raises(RecipeError, match=r"generator.architecture: .*pip install 'ray-sr\[foreign\]'"):
        parse_recipe(RECIPE, ["generator={kind: spandrel, architecture: SPAN}"])
    architectures.architectures.cache_clear()


# --------------------------------------------------------------------------------- the checks of a recipe


def test_every_wrong_option_is_named_at_once_with_its_line() -> None:
    text = RECIPE + (
        "generator:\n  kind: spandrel\n  architecture: SPAN\n  options:\n"
        "    feature_chanels: 48\n    norm: 3\n    rgb_mean: [1, a]\n"
    )
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, source="mine.yaml")
    wrong = str(caught.value).splitlines()
    unknown = "generator.options.feature_chanels: SPAN has no such option, did you mean 'feature_channels'?"
    assert wrong[0] == f"{unknown} [mine.yaml:13]"
    assert wrong[1] == "generator.options.norm: should be true or false (got 3) [mine.yaml:14]"
    assert wrong[2].startswith("generator.options.rgb_mean: holds 'a', each should be a number")
    assert len(wrong) == 3


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ("{kind: spandrel, architecture: span}", "no architecture 'span', did you mean 'SPAN'?"),
        ("{kind: spandrel, architecture: LaMa}", "LaMa cannot be trained here: it needs a mask"),
        ("{kind: spandrel, architecture: NAFNet}", "NAFNet has no x2: it offers x1"),
        ("{kind: spandrel, architecture: PLKSR, options: {ccm_type: CCMM}}", "did you mean 'CCM'?"),
        ("{kind: spandrel, architecture: SwinIR, options: {embed_dim: 30, num_heads: [7, 7, 7, 7]}}", "SwinIR"),
    ],
)
def test_what_cannot_be_built_is_refused_when_it_is_read(generator: str, message: str) -> None:
    with pytest.raises(RecipeError, match="generator") as caught:
        parse_recipe(RECIPE, [f"generator={generator}"])
    assert message in str(caught.value)


def test_options_that_weights_do_not_tell_must_be_what_others_assume() -> None:
    spec = SpandrelSpec(architecture="SPAN", options={"feature_channels": 16, "img_range": 1.0})
    with pytest.raises(ModelError, match=r"other programs assume img_range 255"):
        build_generator(NetworkSpec(scale=2, generator=spec))


def test_presets_are_written_into_the_recipe() -> None:
    options = small("SwinIR").generator.model_dump()["options"]
    assert (options["upsampler"], options["window_size"], options["embed_dim"]) == ("pixelshuffle", 8, 12)


# ---------------------------------------------------------------------------------------------- the trial


class Whole(torch.nn.Module):
    """Adds to each pixel what the whole picture's mean is; counts nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(dim=(1, 2, 3), keepdim=True)


class Near(torch.nn.Module):
    """A 7×7 mean: three pixels to each side; as `viewed`, only for the contiguous layout."""

    def __init__(self, viewed: bool = False) -> None:
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.full((3, 1, 7, 7), 1 / 49))
        self.viewed = viewed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.conv2d(x, self.kernel, padding=3, groups=3)
        return x.view(-1).view(x.shape) if self.viewed else x


class Windows(torch.nn.Module):
    """Each pixel becomes the mean of its 8×8 window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(x, 8)
        return torch.nn.functional.interpolate(pooled, scale_factor=8)


class Large(torch.nn.Module):
    """Values that bfloat16 has no digits for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = torch.ones(3, 1, 1, 1)
        return torch.nn.functional.conv2d(x + 1000, kernel, groups=3) - 1000


def tried(network: torch.nn.Module, multiple: int = 1) -> Any:
    from ray_sr.models.spandrel_network import facts_by_trial

    class Sizes:
        minimum, multiple_of, square = 0, multiple, False

    class Descriptor:
        scale, size_requirements, supports_bfloat16 = 1, Sizes(), True
        tiling = spandrel.ModelTiling.SUPPORTED
        _call_fn = staticmethod(lambda model, image: model(image))

    return facts_by_trial(network, Descriptor(), {})


def test_the_trial_finds_what_a_network_is() -> None:
    assert tried(Whole()).whole_image
    near = tried(Near())
    assert (near.receptive_field, near.grid, near.whole_image, near.channels_last) == (3, 1, False, True)
    assert not tried(Near(viewed=True)).channels_last
    windows = tried(Windows(), multiple=8)
    assert (windows.grid, windows.whole_image) == (8, False)
    assert windows.receptive_field >= 7
    assert near.bf16
    assert not tried(Large()).bf16


def test_a_network_that_cannot_bear_bfloat16_computes_in_float32_under_autocast() -> None:
    facts = tried(Large())
    network = SpandrelGenerator.of(Large(), facts, 1)
    picture = torch.rand(1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(picture)
    assert result.dtype == torch.float32
    assert torch.allclose(result, picture, atol=1e-3)
    assert network.limits() == ["generator in float32: bfloat16 does not suit it"]


def test_the_input_is_left_as_it_was() -> None:
    """RCAN multiplies its input in place."""
    generator = build_generator(small("RCAN")).eval()
    picture = torch.rand(1, 3, 16, 16)
    before = picture.clone()
    with torch.inference_mode():
        generator(picture)
    assert torch.equal(picture, before)


def test_the_list_has_names_options_scales_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("recipes", "architectures", "--json", capsys=capsys)
    found = {each["name"]: each for each in json.loads(out)}
    assert code == 0
    assert SMALL.keys() <= found.keys()
    assert found["SPAN"]["options"]["feature_channels"] == 48
    assert found["SPAN"]["scales"] == [1, 2, 3, 4, 8]
    assert found["ESRGAN"]["scales"] == [1, 2, 4, 8]
    assert all(each["licence"] for each in found.values())
    code, out, _ = run("recipes", "architectures", capsys=capsys)
    assert "RealPLKSR" in out
    assert "n_blocks=28" in out
