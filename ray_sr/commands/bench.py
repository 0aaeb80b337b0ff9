"""`ray-sr bench`: this project's speed beside plain loops of the same networks, on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ray_sr.commands.common import FiniteRange, json_option, note, show


@click.group()
def bench() -> None:
    """Measure speed on this machine, side by side with plain loops."""


def _how(rounds: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of how to measure."""
    options = [
        click.option("--rounds", default=rounds, show_default=True, type=click.IntRange(1),
                     help="Rounds of each contender."),
        click.option("--threads", type=click.IntRange(1), help="Torch threads (default: one per CPU)."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
        click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True,
                     help="cpu: CPU time, for a busy machine; use it with --threads 1."),
    ]  # fmt: skip

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _begin(rounds: int, threads: int | None, device: str, clock: Any) -> Any:
    from ray_sr.bench.machine import Bench, bench_device, describe_machine, use_threads

    use_threads(threads)
    found = bench_device(device)
    if clock == "cpu" and found.type != "cpu":
        raise click.UsageError("--clock cpu measures processors: add --device cpu")
    note(describe_machine(found))
    return Bench(found, rounds, clock)


@bench.command()
@_how(rounds=10)
@click.option("--batch", default=4, show_default=True, type=click.IntRange(2), help="Crops in a step.")
@click.option(
    "--crop", default=128, show_default=True, type=click.IntRange(32), help="Side of an HR crop in pixels."
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--compile", is_flag=True, help="torch.compile our networks.")
@json_option
def step(batch: int, crop: int, precision: str, compile: bool, as_json: bool, **how: Any) -> None:
    """One training step: MSRResNet x4, VGG-style discriminator, VGG19 conv5_4.

    Beside it, a plain loop as in BasicSR: eager, float32, contiguous.
    """
    from ray_sr.bench.step import bench_steps

    result = bench_steps(_begin(**how), batch, crop, precision=precision, compile=compile)
    rows = [
        (f"{stage} step", result[f"{stage}_step_s"], result["plain"][f"{stage}_step_s"], result["speedup"][stage])
        for stage in ("pretrain", "gan")
    ]
    show(result, _table("seconds", rows), as_json)


@bench.command()
@_how(rounds=3)
@click.option("--size", nargs=2, type=click.IntRange(8), default=(320, 480), show_default=True,
              metavar="HEIGHT WIDTH", help="Size of the picture that is upscaled.")  # fmt: skip
@json_option
def upscale(size: tuple[int, int], as_json: bool, **how: Any) -> None:
    """Upscaling x4 by MSRResNet and Compact, from pixels to pixels.

    Beside it, a plain loop over tiles of 400 px as in Real-ESRGAN: eager, float32, contiguous.
    """
    from ray_sr.bench.upscale import bench_upscaling

    result = bench_upscaling(_begin(**how), size)
    rows = [
        (f"{name} x4", found["mpx_per_s"], found["plain_mpx_per_s"], found["speedup"])
        for name, found in result.items()
    ]
    show(result, _table("Mpx/s", rows), as_json)


@bench.command()
@click.argument("url", default="http://127.0.0.1:8000")
@click.option("--p99", "bound", default=1000.0, show_default=True, type=FiniteRange(1),
              help="Bound on the 99th percentile of latency, in ms.")  # fmt: skip
@click.option("--rate", type=FiniteRange(0.01), help="Offer only this rate, in requests/s.")
@click.option("--seconds", default=15.0, show_default=True, type=FiniteRange(1), help="Duration at each rate.")
@click.option("--size", "sizes", multiple=True, default=(128, 256), show_default=True, type=click.IntRange(8),
              help="Side of a picture in pixels; repeat it for a mix.")  # fmt: skip
@click.option("--key", help="API key, where the service asks for one.")
@click.option("--overload", is_flag=True, help="Then offer twice the capacity, six times as long.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Plot latency against rate into this .png or .svg.")
@json_option
def http(
    url: str,
    bound: float,
    rate: float | None,
    seconds: float,
    sizes: tuple[int, ...],
    key: str | None,
    overload: bool,
    plot: str | None,
    as_json: bool,
) -> None:
    """Load-test the endpoint at URL: the highest request rate within a bound on p99 latency.

    Requests arrive at random times, independent of earlier ones; latency counts from when a request was due.
    """
    import asyncio
    from pathlib import Path

    from ray_sr.bench import http as load

    target = load.Target(url.rstrip("/"), load.photos(sizes), key)
    result = asyncio.run(load.bench(target, bound, seconds, rate, overload, note))
    if plot:
        load.plot(Path(plot), result.course, bound)
    show(result.as_dict(), str(result), as_json)


def _table(unit: str, rows: list[tuple[str, float, float, dict[str, float]]]) -> str:
    lines = [f"{unit:16}{'ray-sr':>10}{'plain':>10}   faster (quartiles)"]
    for name, ours, plain, speedup in rows:
        spread = f"{speedup['lower']:.2f} to {speedup['upper']:.2f}"
        lines.append(f"{name:16}{ours:10.3f}{plain:10.3f}   {speedup['median']:.2f} times ({spread})")
    return "\n".join(lines)
