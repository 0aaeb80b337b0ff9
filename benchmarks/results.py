"""The tables of RESULTS.md: bicubic, the models that come with ray-sr, and public peers, on the same pixels.

    python -m benchmarks.results BENCHMARKS [--peers FILE.py] [--features VGG19] [--deblur FOLDER] [-o FILE.md]
                                            [--json FILE.json]

BENCHMARKS holds folders of photographs, SET/HR. FILE.py has the peers' networks: a dict PEERS with the key
(NAME, SCALE), and load(NAME, SCALE). FOLDER holds pairs, sharp/NAME.png and blurred/NAME_*.png. A row of the sets
without degradation is what `ray-sr evaluate MODEL --hr BENCHMARKS/SET/HR` prints.
Speed is that of `ray_sr.upscaling.Engine` with its defaults, of one 320x240 picture, all models by turns; beside
it the processor time on one thread, which other work on the machine changes less.

It takes hours. FILE.json has each row as soon as it is measured, and what is in it already, of the same weights and
feature network, is not measured again: a run that was broken off, or that has one model more to measure, goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import runpy
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.photo_sets import PhotoSet, compressed_sets, found_sets, shaken_sets, unknown_sets
from ray_sr.bench.machine import Bench, describe_machine
from ray_sr.evaluation import evaluate
from ray_sr.evaluation.table import COLUMNS, Figures
from ray_sr.models import count_parameters
from ray_sr.perceptual.vgg import FeatureMaps, distance_network
from ray_sr.storage.local import atomic_write
from ray_sr.store import Model, Store, load_model
from ray_sr.store.store import SHIPPED
from ray_sr.upscaling import Engine

SCALES = (2, 4)
COMPRESSED_SCALE = 4
FIGURES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "vgg19_conv3_4", "sharpness_ratio")
LR_SIDES = (240, 320)
ROUNDS = 3
REMEMBERED = 120  # feature maps: those of a set of 24 photos, 3 for each, with room to spare; some 3 GB


@dataclass(frozen=True)
class Contender:
    """A model of a table."""

    name: str
    model: Model
    of_peers: bool = False

    @property
    def parameters(self) -> int:
        return count_parameters(self.model.module)["trainable"]

    @cached_property
    def weights(self) -> str:
        """What tells these weights from others of the same name."""
        digest = hashlib.sha256()
        for name, value in self.model.module.state_dict().items():
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def contenders(scale: int, peers: Path | None) -> list[Contender]:
    """Bicubic (x1: none), what comes with ray-sr at this scale, and the peers."""
    found = [Contender("bicubic", load_model("bicubic", scale=scale))] if scale > 1 else []
    shipped = Store(SHIPPED)
    for name in sorted({record.name for record in shipped.list() if record.network.scale == scale}):
        found.append(Contender(name, shipped.load(name)))
    if peers:
        names = sorted(name for name, of in runpy.run_path(str(peers))["PEERS"] if of == scale)
        found += [Contender(name, load_model(f"{peers}:{name}:{scale}"), of_peers=True) for name in names]
    return found


@dataclass(frozen=True)
class Speed:
    """Megapixels of output a second, and seconds of one processor for each of them."""

    mpx_per_s: float
    cpu_s_per_mpx: float


def rates(models: Sequence[Contender]) -> dict[str, Speed]:
    """All models by turns, first by the clock, then on one thread by processor time."""
    pixels = np.random.default_rng(0).integers(0, 256, (*LR_SIDES, 3), np.uint8)

    def run(engine: Engine) -> None:
        engine.run(pixels, np.uint8)

    works = {one.name: partial(run, Engine(one.model.module, one.model.capability)) for one in models}
    times = Bench(torch.device("cpu"), ROUNDS).take_turns(works)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spent = Bench(torch.device("cpu"), ROUNDS, clock="cpu").take_turns(works)
    torch.set_num_threads(threads)
    made = pixels.shape[0] * pixels.shape[1] * models[0].model.capability.scale ** 2 / 1e6
    return {name: Speed(round(made / times.median(name), 2), round(spent.median(name) / made, 3)) for name in works}


class RememberedFeatures:
    """A feature network that computes the maps of a picture once: all models meet the same HR photos."""

    def __init__(self, network: FeatureMaps) -> None:
        self.network = network
        self._maps: OrderedDict[bytes, Mapping[str, torch.Tensor]] = OrderedDict()  # the longest unused first

    def __call__(self, rgb: torch.Tensor) -> Mapping[str, torch.Tensor]:
        key = hashlib.sha256(rgb.contiguous().numpy().tobytes()).digest()
        found = self._maps.pop(key, None)
        self._maps[key] = self.network(rgb) if found is None else found
        if len(self._maps) > REMEMBERED:
            self._maps.popitem(last=False)
        return self._maps[key]


class Measurement:
    """Rows of all tables; kept in a file as they come, where one is given."""

    def __init__(self, features: FeatureMaps | None, told: str | None = None, kept: Path | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._features, self._told, self._kept = features, told, kept
        before = json.loads(kept.read_text()) if kept and kept.exists() else []
        self._before = {self._key(row): row for row in before}

    @property
    def protocols(self) -> list[str]:
        return list(dict.fromkeys(row["protocol"] for row in self.rows))

    def add(self, photos: PhotoSet, one: Contender, speed: Speed) -> None:
        """The row of this model, and before the first of a set at x1 that of the photos as they are."""
        asked = {"set": photos.title, "model": one.name, "weights": one.weights, "features": self._told}
        if row := self._before.get(self._key(asked)):
            first = {**asked, "model": "input", "weights": None}
            self._take(self._before.get(self._key(first)))
            self._take({**row, **asdict(speed)})
            return
        print(f"{photos.title}: {one.name}", file=sys.stderr, flush=True)
        found = evaluate(one.model, photos.hr, photos.lr, features=self._features)
        for photo in found.left_out:
            raise SystemExit(f"error: {photos.title}: {photo.name}: {photo.reason}")
        common = {"set": photos.title, "scale": photos.scale, "protocol": found.protocol, "features": self._told}
        if photos.scale == 1:
            facts = {"model": found.baseline_name, "weights": None, "peer": False, "parameters": 0}
            self._take({**common, **facts, **_rounded(found.bicubic)})
        facts = {"model": one.name, "weights": one.weights, "peer": one.of_peers, "parameters": one.parameters}
        self._take({**common, **facts, **asdict(speed), **_rounded(found.mean)})

    def _take(self, row: dict[str, Any] | None) -> None:
        if row is None or any(self._key(row) == self._key(other) for other in self.rows):
            return
        self.rows.append(row)
        if self._kept:
            measured = {(each["set"], each["model"]) for each in self.rows}
            others = [each for each in self._before.values() if (each["set"], each["model"]) not in measured]
            atomic_write(self._kept, json.dumps([*self.rows, *others], indent=1).encode())

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("set", "model", "weights", "features"))


def _rounded(mean: Figures) -> dict[str, float]:
    return {name: round(mean[name], 5) for name in FIGURES if name in mean}


def measure(sets: Sequence[PhotoSet], peers: Path | None, found: Measurement) -> None:
    """All models on all sets of their scale."""
    models = {photos.scale: contenders(photos.scale, peers) for photos in sets}
    speeds = {scale: rates(ones) for scale, ones in models.items() if ones}  # first, while the machine is at rest
    for photos in sets:
        for one in models[photos.scale]:
            found.add(photos, one, speeds[photos.scale][one.name])


def tables(found: Measurement, machine: str) -> str:
    """RESULTS.md."""
    parts = [
        "# Results",
        "Made by `make results BENCHMARKS=… PEERS=… FEATURES=… DEBLUR=…`, from the weights in `ray_sr/weights`. "
        "Peers are networks with weights that others have published, run on the same pixels; in italics.",
        "Speed: megapixels of output a second, and processor seconds of one thread for each megapixel; float32 or "
        f"bfloat16 as the engine chooses, {machine}.",
        "Protocols:\n\n" + "\n".join(f"- {protocol}" for protocol in found.protocols),
    ]
    for title in dict.fromkeys(row["set"] for row in found.rows):
        parts += [f"## {title}", _table([row for row in found.rows if row["set"] == title])]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    figures = [name for name in FIGURES if name in rows[0]]
    head = ["model", "parameters", *(COLUMNS[name].label for name in figures), "Mpx/s", "cpu s/Mpx"]
    lines = [_line(head), "|---" + "|---:" * (len(head) - 1) + "|"]
    for row in sorted(rows, key=lambda row: row["psnr_y"]):
        name = f"*{row['model']}*" if row["peer"] else row["model"]
        shown = [COLUMNS[figure].show(row[figure]) for figure in figures]
        speed = [f"{row['mpx_per_s']:.2f}", f"{row['cpu_s_per_mpx']:.2f}"] if "mpx_per_s" in row else ["", ""]
        lines.append(_line([name, f"{row['parameters']:,}", *shown, *speed]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", metavar="BENCHMARKS", type=Path)
    parser.add_argument("--peers", metavar="FILE.py", type=Path)
    parser.add_argument("--features", metavar="VGG19")
    parser.add_argument("--deblur", metavar="FOLDER", type=Path)
    parser.add_argument("-o", "--output", metavar="FILE.md", type=Path)
    parser.add_argument("--json", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    pairs = [arguments.deblur / part for part in ("sharp", "blurred")] if arguments.deblur else []
    for folder in [arguments.benchmarks, *pairs]:
        if not folder.is_dir():
            parser.error(f"{folder}: no such folder")
    features = None
    if arguments.features:
        network = distance_network(arguments.features).to(memory_format=torch.channels_last)
        features = RememberedFeatures(network)
    with tempfile.TemporaryDirectory(prefix="ray-sr-") as folder:
        sets = [
            *found_sets(arguments.benchmarks, SCALES),
            *compressed_sets(arguments.benchmarks, COMPRESSED_SCALE, Path(folder)),
            *unknown_sets(arguments.benchmarks, COMPRESSED_SCALE, Path(folder)),
        ]
        if contenders(1, arguments.peers):
            sets += shaken_sets(arguments.benchmarks, arguments.deblur, Path(folder))
        found = Measurement(features, arguments.features and Path(arguments.features).name, arguments.json)
        measure(sets, arguments.peers, found)
    text = tables(found, describe_machine(torch.device("cpu")))
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
