"""`ray-sr evaluate`: a model against photographs, with the protocol beside every figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from ray_sr.commands.common import chosen_model, json_option, note, show, store_option
from ray_sr.errors import InputError, WeightsAbsentError

if TYPE_CHECKING:
    from ray_sr.perceptual.quality import LPIPS

_Measure = TypeVar("_Measure")


@click.command()
@click.argument("model", required=False)
@click.option("--hr", metavar="FOLDER", help="High-resolution photos.")
@click.option("--lr", metavar="FOLDER", help="Low-resolution photos of the same names (default: made by bicubic).")
@click.option("--scale", type=click.Choice(["1", "2", "3", "4", "8"]), help="Scale of the model `bicubic`.")
@click.option("--pictures", metavar="FOLDER", help="Write ORIGINAL / LOW / BICUBIC / PREDICTED pictures here.")
@click.option("--features", metavar="FILE", help="VGG19 weights: adds the vgg19_conv3_4 feature distance.")
@click.option("--lpips", metavar="NETWORK[=FILE]", help="Adds LPIPS: alex, vgg or squeeze, and torchvision's "
              "weights of it (default: downloaded once).")  # fmt: skip
@click.option("--dists", metavar="VGG16|auto", help="Adds DISTS: torchvision's weights of VGG16; auto: downloaded "
              "once.")  # fmt: skip
@click.option("--brisque", is_flag=True, help="Adds BRISQUE, which needs no HR (weights are downloaded once).")
@click.option("--limit", type=click.IntRange(1), help="Only this many photos.")
@click.option("--device", default="auto", show_default=True)
@click.option("--self-check", metavar="FOLDER", help="Instead: reproduce the published bicubic figures on "
              "Set5 and Set14 in FOLDER.")  # fmt: skip
@store_option
@json_option
def evaluate(
    model: str | None,
    hr: str | None,
    lr: str | None,
    scale: str | None,
    pictures: str | None,
    features: str | None,
    lpips: str | None,
    dists: str | None,
    brisque: bool,
    limit: int | None,
    device: str,
    self_check: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """PSNR, SSIM and sharpness of MODEL, photo by photo, bicubic beside it.

    MODEL is a name or channel in the store, a published folder, a run's folder, a weights file,
    FILE.py:NAME:SCALE, or bicubic.
    """
    if self_check:
        _self_check(self_check, as_json)
        return
    if model is None or hr is None:
        raise click.UsageError("give a MODEL and --hr FOLDER, or --self-check FOLDER")
    from ray_sr.evaluation import evaluate as measure
    from ray_sr.perceptual.quality import load_brisque, load_dists
    from ray_sr.perceptual.vgg import distance_network
    from ray_sr.progress import counted
    from ray_sr.store import load_model

    loaded = load_model(chosen_model(model, store), store, scale=int(scale or 4))
    network = distance_network(features) if features else None
    result = measure(
        loaded,
        hr,
        lr,
        scale=int(scale) if scale else None,
        pictures=pictures,
        limit=limit,
        device=device,
        features=network,
        lpips=_or_left_out("LPIPS", lambda: _lpips(lpips)) if lpips else None,
        dists=_or_left_out("DISTS", lambda: load_dists(None if dists == "auto" else dists)) if dists else None,
        brisque=_or_left_out("BRISQUE", load_brisque) if brisque else None,
        progress=counted("evaluating", "photos", quiet=as_json),
    )
    show(result.to_json(), result.table(), as_json)
    if result.left_out:
        names = ", ".join(photo.name for photo in result.left_out[:5])
        raise InputError(f"{len(result.left_out)} photos could not be measured: {names}")


def _lpips(text: str) -> LPIPS:
    """By `NETWORK[=FILE]`."""
    from ray_sr.perceptual.quality import BACKBONES, load_lpips

    wanted, _, file = text.partition("=")
    for name in BACKBONES:
        if wanted == name:
            return load_lpips(name, file or None)
    raise click.UsageError(f"--lpips {text}: give alex, vgg or squeeze, or one of them with =FILE of its weights")


def _or_left_out(measure: str, load: Callable[[], _Measure]) -> _Measure | None:
    """None, with a line that says why, where the published weights cannot be had: nothing stands in for them."""
    try:
        return load()
    except WeightsAbsentError as error:
        note(f"{measure} is left out: {error}")
        return None


def _self_check(folder: str, as_json: bool) -> None:
    from ray_sr.evaluation import self_check

    note("bicubic down and up, against the published figures")
    result = self_check(folder)
    show(result.to_json(), result.table(), as_json)
    if not result.ok:
        raise click.ClickException("the published bicubic figures are not reproduced")
