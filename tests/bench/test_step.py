"""The plain loop and the library's step do the same to the same networks; the command's JSON."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from ray_sr.bench.plain import PlainGanLoop, PlainPretrainLoop
from ray_sr.bench.step import OurLoop, bench_recipe, plain_loop, synthetic_photos, synthetic_vgg19
from ray_sr.cli import cli
from ray_sr.training.optimizer import EmaUpdate, ema_decay

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(synthetic_vgg19(), path)
    return path


def both(
    stage: str, vgg: Path, **training: object
) -> tuple[OurLoop, PlainPretrainLoop | PlainGanLoop, Tensor, Tensor]:
    recipe = bench_recipe(stage, vgg, batch=2, crop=32, **training)
    ours = OurLoop(recipe, CPU)
    return ours, plain_loop(recipe, ours), *synthetic_photos(recipe)


def assert_same_gradients(ours: nn.Module, plain: nn.Module, factor: float = 1.0) -> None:
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        expected = theirs[name].grad
        assert expected is not None, name
        size = float(expected.abs().max())
        torch.testing.assert_close(parameter.grad, factor * expected, atol=1e-3 * size, rtol=1e-3, msg=name)


def assert_same_weights(ours: nn.Module, plain: nn.Module, atol: float) -> None:
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)


def test_pretraining_is_the_plain_loops(vgg: Path) -> None:
    ours, plain, lr, hr = both("pretrain", vgg, precision="fp32", channels_last="false")
    average = copy.deepcopy(ours.state.ema)
    for number in range(3):
        mine, theirs = ours.run(lr, hr), plain.run(lr, hr)
        assert float(mine["g_l1"]) == pytest.approx(theirs["g_l1"], rel=1e-4)
        if number == 0:
            assert_same_gradients(ours.state.generator, plain.generator)
        EmaUpdate(average, ours.state.generator).run(ema_decay(0.999, number))
    # Adam turns the last bit of a gradient near zero into a step of up to the learning rate.
    assert_same_weights(ours.state.generator, plain.generator, atol=3 * 2 * 2e-4)
    assert_same_weights(ours.state.ema, average, atol=0)


def test_the_gan_step_is_the_plain_loops(vgg: Path) -> None:
    ours, plain, lr, hr = both("gan", vgg, precision="fp32", channels_last="false")
    assert isinstance(plain, PlainGanLoop)
    assert ours.state.discriminator is not None
    # Adam and BatchNorm over two photos amplify the last bit tenfold in each further step.
    for number in range(2):
        mine, theirs = ours.run(lr, hr), plain.run(lr, hr)
        for name in ("g_l1", "g_perceptual_vgg19", "g_adversarial"):
            assert float(mine[name]) == pytest.approx(theirs[name], rel=2e-3), (name, number)
        # Half of BasicSR's: the average of the two sides.
        assert float(mine["d_loss"]) == pytest.approx((theirs["d_real"] + theirs["d_fake"]) / 2, rel=2e-3)
        if number == 0:
            assert_same_gradients(ours.state.generator, plain.generator)
            assert_same_gradients(ours.state.discriminator, plain.discriminator, factor=0.5)
    assert_same_weights(ours.state.generator, plain.generator, atol=2 * 2 * 1e-4)


def test_bf16_and_channels_last_stay_near_the_plain_loop(vgg: Path) -> None:
    ours, plain, lr, hr = both("gan", vgg, precision="bf16")
    mine, theirs = ours.run(lr, hr), plain.run(lr, hr)
    for name in ("g_l1", "g_perceptual_vgg19", "g_adversarial"):
        assert float(mine[name]) == pytest.approx(theirs[name], rel=0.02), name


def test_the_command_prints_the_times_of_both() -> None:
    threads = torch.get_num_threads()
    arguments = ["bench", "step", "--rounds", "1", "--threads", "1", "--batch", "2", "--crop", "32", "--json"]
    try:
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["batch"], result["crop"]) == (2, 32)
    for stage in ("pretrain", "gan"):
        ours, plain = result[f"{stage}_step_s"], result["plain"][f"{stage}_step_s"]
        assert ours > 0
        assert result["speedup"][stage]["median"] == pytest.approx(plain / ours, abs=1e-3)
    assert "torch" in done.stderr
