"""The engine: tiled equals untiled, failures end in the right result or a clear error, precision is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ray_sr.errors import ModelError, RecipeError, ResourceError
from ray_sr.images.resample import upscale_array
from ray_sr.metrics import luma, psnr
from ray_sr.models import Bicubic, Capability, Generator, build_generator
from ray_sr.recipes.networks import (
    CompactSpec,
    DeblurGANSpec,
    GeneratorSpec,
    MSRResNetSpec,
    NetworkSpec,
    RRDBNetSpec,
    SRResNetSpec,
    UpResNetSpec,
)
from ray_sr.upscaling import Engine
from tests.shared_data import shared_folder

LEVEL = 1 / 255


def _generator(spec: GeneratorSpec, scale: int = 2, value_range: str = "unit") -> Generator:
    """A generator whose BatchNorms have statistics of their own, as after training."""
    torch.manual_seed(7)
    generator = build_generator(NetworkSpec(scale=scale, value_range=value_range, generator=spec)).eval()
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return generator


def _picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _plain(module: nn.Module, picture: np.ndarray) -> np.ndarray:
    """The module's own result, untiled, in float32."""
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        return module(batch)[0].permute(1, 2, 0).numpy()


class _Sharpen(Generator):
    """A fixed 3x3 filter at x1, with a hook for trouble: `trouble(batch)` may raise or return NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        weight = torch.zeros(3, 3, 3, 3)
        for channel in range(3):
            weight[channel, channel] = torch.tensor([[0, -0.1, 0], [-0.1, 1.4, -0.1], [0, -0.1, 0]])
        self.filter.weight.data = weight
        self.capability = Capability(1, 3, 1, 1, True, False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.filter(batch)


class _MemoryHog(_Sharpen):
    """Fails, as the allocator does, on more than `limit` pixels."""

    limit = 40 * 40
    kind: type[BaseException] = torch.OutOfMemoryError
    words = "CUDA out of memory"

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if batch.shape[0] * batch.shape[2] * batch.shape[3] > self.limit:
            raise self.kind(self.words)
        return super().forward(batch)


class _OverflowsInBfloat16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        features = self.middle(self.entry(batch))
        if features.dtype == torch.bfloat16 and bool((batch > 0.99).any()):
            features = features / 0
        return self.last(features)


class _AlwaysNaN(_Sharpen):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return super().forward(batch) * float("nan")


class _GlobalMean(_Sharpen):
    """Every pixel depends on the whole picture, as with InstanceNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.capability = Capability(1, 3, 1, 1, True, True)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return super().forward(batch) - batch.mean((2, 3), keepdim=True) + 0.5


GENERATORS = [
    (SRResNetSpec(blocks=2, channels=16), 4, "unit"),
    (SRResNetSpec(blocks=2, channels=16), 2, "signed"),
    (MSRResNetSpec(blocks=2, channels=16), 3, "unit"),
    (MSRResNetSpec(blocks=2, channels=16, upsampling="direct"), 4, "unit"),
    (RRDBNetSpec(blocks=1, channels=16, growth=8), 2, "unit"),
    (RRDBNetSpec(blocks=1, channels=16, growth=8), 1, "unit"),
    (CompactSpec(convs=3, channels=16), 4, "unit"),
    (UpResNetSpec(blocks=2, channels=16), 2, "unit"),
    (DeblurGANSpec(blocks=1, channels=8, norm="batch"), 1, "signed"),
]


@pytest.mark.parametrize(("spec", "scale", "value_range"), GENERATORS)
def test_tiled_equals_untiled_and_the_module_itself(spec: GeneratorSpec, scale: int, value_range: str) -> None:
    generator = _generator(spec, scale, value_range)
    overlap = generator.capability.receptive_field
    tile = max(96, 2 * overlap + 40)
    tiled = Engine(generator, generator.capability, precision="float32", tile=tile, overlap=overlap)
    whole = Engine(generator, generator.capability, precision="float32")
    for height, width in [(1, 1), (1, 64), (7, 5), (230, 197), (41, 801)]:
        picture = _picture(height, width)
        result = tiled.run(picture)
        assert result.shape == (height * scale, width * scale, 3)
        assert np.abs(result - whole.run(picture)).max() < 1e-4
        assert np.abs(result - _plain(generator, picture)).max() < LEVEL / 10
    assert tiled.stats.tiles > whole.stats.tiles


def test_tiles_in_bfloat16_equal_the_whole_within_a_level() -> None:
    generator = _generator(SRResNetSpec(blocks=2, channels=16))
    picture = _picture(150, 130)
    options = {"precision": "bf16", "overlap": generator.capability.receptive_field}
    tiled = Engine(generator, generator.capability, tile=72, **options).run(picture, np.uint8)
    whole = Engine(generator, generator.capability, **options).run(picture, np.uint8)
    assert np.abs(tiled.astype(int) - whole).max() <= 1


@pytest.mark.parametrize("batch", [2, 3])
def test_batches_of_tiles_give_the_same(batch: int) -> None:
    generator = _generator(CompactSpec(convs=2, channels=8))
    picture = _picture(150, 170)
    options = {"precision": "float32", "tile": 48}
    one = Engine(generator, generator.capability, **options).run(picture)
    several = Engine(generator, generator.capability, batch=batch, **options).run(picture)
    assert np.abs(one - several).max() < 1e-5


def test_bicubic_runs_like_a_network() -> None:
    picture = _picture(90, 70) // 3 + 80  # no overshoot out of range, where MATLAB would clip between passes
    model = Bicubic(4)
    result = Engine(model, model.capability, tile=32).run(picture, np.uint8)
    assert np.abs(result.astype(int) - upscale_array(picture, 4)).max() <= 1  # it rounds between them, too


def test_default_overlap_of_a_very_deep_network_is_limited() -> None:
    generator = _generator(RRDBNetSpec(blocks=6, channels=8, growth=4))
    assert generator.capability.receptive_field > 64
    engine = Engine(generator, generator.capability, precision="float32", tile=96)
    picture = _picture(150, 150)
    assert np.abs(engine.run(picture) - _plain(generator, picture)).max() < LEVEL


def test_bands_arrive_from_the_top_and_make_the_whole() -> None:
    generator = _generator(CompactSpec(convs=2, channels=8))
    engine = Engine(generator, generator.capability, tile=48)
    picture = _picture(200, 60)
    bands = list(engine.bands(picture, np.uint8))
    assert len(bands) > 2
    assert [top for top, _ in bands] == list(np.cumsum([0, *(len(band) for _, band in bands[:-1])]))
    assert np.array_equal(np.concatenate([band for _, band in bands]), engine.run(picture, np.uint8))


def test_the_same_input_gives_the_same_bytes_and_the_module_is_left_alone() -> None:
    generator = _generator(SRResNetSpec(blocks=1, channels=8)).train()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    picture = _picture(60, 60)
    first = Engine(generator, generator.capability, tile=48).run(picture, np.uint8)
    second = Engine(generator, generator.capability, tile=48).run(picture, np.uint8)
    assert np.array_equal(first, second)
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())


def test_whole_numbers_are_rounded_and_clamped() -> None:
    model = _Sharpen()
    picture = _picture(20, 30)
    exact = _plain(model, picture)
    engine = Engine(model, model.capability, precision="float32")
    assert np.abs(engine.run(picture) - exact).max() < 1e-6
    assert np.array_equal(engine.run(picture, np.uint8), np.rint(engine.run(picture).clip(0, 1) * 255))
    wide = engine.run(picture, np.uint16)
    assert wide.dtype == np.uint16
    assert np.abs(wide / 65535 - exact.clip(0, 1)).max() < 1 / 65535


def test_gray_is_the_mean_of_the_three_channels() -> None:
    generator = _generator(CompactSpec(convs=2, channels=8))
    gray = _picture(40, 50, channels=1)
    engine = Engine(generator, generator.capability, precision="float32")
    result = engine.run(gray)
    assert result.shape == (80, 100, 1)
    expected = _plain(generator, gray.repeat(3, axis=2)).mean(axis=2, keepdims=True)
    assert np.abs(result - expected).max() < 1e-5


# Memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes"),
        (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
        (MemoryError, ""),
    ],
)
def test_out_of_memory_halves_the_tile_and_goes_on(kind: type[BaseException], words: str) -> None:
    model = _MemoryHog()
    model.kind, model.words = kind, words
    engine = Engine(model, model.capability, precision="float32", tile=100)
    picture = _picture(230, 170)
    shares: list[float] = []
    result = engine.run(picture, progress=shares.append)
    assert np.abs(result - _plain(_Sharpen(), picture)).max() < 1e-6
    assert engine.stats.halvings >= 1
    assert engine.tile <= 40
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    halvings = engine.stats.halvings
    engine.run(picture)
    assert engine.stats.halvings == halvings, "the smaller tile is kept"


def test_out_of_memory_in_the_middle_keeps_what_is_done() -> None:
    model = _MemoryHog()
    model.limit = 10**6
    engine = Engine(model, model.capability, precision="float32", tile=64)
    picture = _picture(300, 50)
    bands = engine.bands(picture)
    parts = [next(bands)[1]]
    hog = engine._exact
    assert isinstance(hog, _MemoryHog)
    hog.limit = 30 * 30
    parts += [band for _, band in bands]
    assert engine.stats.halvings >= 1
    assert np.abs(np.concatenate(parts) - _plain(_Sharpen(), picture)).max() < 1e-6


def test_out_of_memory_makes_batches_smaller_first() -> None:
    model = _MemoryHog()
    engine = Engine(model, model.capability, precision="float32", tile=40, batch=4)
    picture = _picture(100, 200)
    assert np.abs(engine.run(picture) - _plain(_Sharpen(), picture)).max() < 1e-6
    assert engine.batch == 1
    assert engine.tile == 40


def test_memory_that_suffices_for_no_tile_is_an_error() -> None:
    model = _MemoryHog()
    model.limit = 16 * 16  # what building the engine takes
    engine = Engine(model, model.capability, precision="float32", overlap=20, tile=64)
    with pytest.raises(ResourceError, match="out of memory on cpu"):
        engine.run(_picture(100, 100))


def test_other_errors_of_the_network_are_not_taken_for_memory() -> None:
    model = _MemoryHog()
    engine = Engine(model, model.capability, precision="float32")
    model = engine._exact
    model.kind, model.words = RuntimeError, "shapes do not match"
    with pytest.raises(RuntimeError, match="shapes do not match"):
        engine.run(_picture(100, 100))


def test_errors_of_the_progress_callback_end_the_run() -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    model = _Sharpen()
    with pytest.raises(KeyboardInterrupt):
        Engine(model, model.capability, tile=16).run(_picture(60, 60), progress=stop)


# Precision ------------------------------------------------------------------------------------------------


def test_tiles_that_are_not_finite_are_run_again_in_float32() -> None:
    torch.manual_seed(3)
    module = _OverflowsInBfloat16()
    capability = Capability(1, 3, 1, 2, True, False)
    engine = Engine(module, capability, precision="bf16", tile=32, batch=2)
    picture = _picture(100, 100).clip(0, 250)
    picture[60, 60] = 255
    result = engine.run(picture)
    assert np.abs(result - _plain(module, picture)).max() < 3 * LEVEL
    assert 1 <= engine.stats.reruns < engine.stats.tiles


def test_a_network_that_is_never_finite_is_an_error() -> None:
    model = _AlwaysNaN()
    engine = Engine(model, model.capability)
    with pytest.raises(ModelError, match="not finite"):
        engine.run(_picture(20, 20))


def test_sixteen_bits_are_run_in_float32_whatever_the_precision() -> None:
    generator = _generator(SRResNetSpec(blocks=2, channels=16))
    picture = np.random.default_rng(1).integers(0, 65536, (60, 50, 3), dtype=np.uint16)
    exact = Engine(generator, generator.capability, precision="float32").run(picture, np.uint16)
    fast = Engine(generator, generator.capability, precision="bf16")
    assert fast.precision == "bf16"
    assert np.array_equal(fast.run(picture, np.uint16), exact)
    assert not np.array_equal(fast.run(picture, np.uint16, exact=False), exact)


def test_auto_keeps_float32_where_bfloat16_changes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_sr.upscaling.engine.has_fast_bfloat16", lambda device: True)
    torch.manual_seed(0)
    rough = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1))
    kind = Capability(1, 3, 1, 0, True, False)
    assert Engine(rough, kind).precision == "bf16"
    with torch.no_grad():
        rough[0].bias.fill_(1000)  # swallows the picture's values in bfloat16
        rough[1].bias.copy_(-rough[1].weight.sum((1, 2, 3)) * 1000)
    assert Engine(rough, kind).precision == "float32"
    assert Engine(rough, kind, precision="bf16").precision == "bf16"


def test_whole_picture_networks_are_run_untiled_and_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    model = _GlobalMean()
    picture = _picture(1200, 1100)
    engine = Engine(model, model.capability)
    assert engine.precision == "float32"
    assert np.abs(engine.run(picture) - _plain(model, picture)).max() < 1e-4
    assert engine.stats.tiles == 1
    assert not caplog.records
    Engine(model, model.capability, tile=64).run(picture[:100, :100])
    assert "tiles will differ" in caplog.text


@pytest.mark.slow
def test_bf16_costs_less_than_a_hundredth_of_a_decibel_on_set5() -> None:
    set5 = shared_folder("data/benchmarks/Set5")
    peers = shared_folder("data/peers")
    import importlib.util

    from ray_sr.images import read_photo, rgb8

    found = importlib.util.spec_from_file_location("peer_networks", peers / "networks.py")
    assert found is not None
    assert found.loader is not None
    networks = importlib.util.module_from_spec(found)
    found.loader.exec_module(networks)
    for name, scale, radius in [("carn-m", 2, 32), ("pan", 4, 40)]:
        capability = Capability(scale, 3, 1, radius, True, False)
        losses = []
        engines = [Engine(networks.load(name, scale), capability, precision=p) for p in ("float32", "bf16")]
        for file in sorted((set5 / f"LRbicx{scale}").glob("*.png")):
            low, high = rgb8(read_photo(file)), rgb8(read_photo(set5 / "HR" / file.name))
            high = high[: low.shape[0] * scale, : low.shape[1] * scale]
            inner = np.s_[scale:-scale, scale:-scale]
            results = [engine.run(low, np.uint8) for engine in engines]
            exact, fast = (psnr(luma(result[inner]), luma(high[inner])) for result in results)
            losses.append(exact - fast)
        assert np.mean(losses) < 0.01, name


# Wrong use ------------------------------------------------------------------------------------------------


def test_wrong_options_and_pictures_are_refused() -> None:
    model = _Sharpen()
    with pytest.raises(RecipeError, match="use at least 48"):
        Engine(model, model.capability, tile=40, overlap=20)
    with pytest.raises(RecipeError, match="float16"):
        Engine(model, model.capability, precision="float16")  # type: ignore[arg-type]
    with pytest.raises(ResourceError, match="nonsense"):
        Engine(model, model.capability, device="nonsense")
    engine = Engine(model, model.capability)
    for picture in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float64)):
        with pytest.raises(ValueError):
            engine.run(picture)
