"""`ray-sr evaluate`: a model against photographs, with the protocol beside every figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ray_sr.commands.common import chosen_model, json_option, note, show, store_option
from ray_sr.errors import InputError, WeightsAbsentError

if TYPE_CHECKING:
    from ray_sr.perceptual.quality import LPIPS

_Measure = TypeVar("_Measure")


@click.command()
@click.argument("model", required=False)
@click.option("--hr", metavar="FOLDER", help="High-resolution photos.")
@click.option("--lr", metavar="FOLDER", help="Low-resolution photos with the same names (default: downscaled by "
              "bicubic); without --hr: any photos, or one.")  # fmt: skip
@click.option("--scale", type=click.Choice(["1", "2", "3", "4", "8"]), help="Scale of the model `bicubic`.")
@click.option("--pictures", metavar="FOLDER", help="Write ORIGINAL / LOW / BICUBIC / PREDICTED pictures here.")
@click.option("--features", metavar="FILE", help="VGG19 weights: adds the vgg19_conv3_4 feature distance.")
@click.option("--lpips", metavar="NETWORK[=FILE]", help="Adds LPIPS: alex, vgg or squeeze, and a file of "
              "torchvision's weights (default: downloaded once).")  # fmt: skip
@click.option("--dists", metavar="VGG16|auto", help="Adds DISTS: torchvision's weights of VGG16; auto: downloaded "
              "once.")  # fmt: skip
@click.option("--brisque", metavar="FILE|auto", help="Adds BRISQUE, a no-reference measure, also without --hr: "
              "piq's support vectors; auto: downloaded once.")  # fmt: skip
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
    brisque: str | None,
    limit: int | None,
    device: str,
    self_check: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """PSNR, SSIM and sharpness of MODEL, photo by photo, next to bicubic.

    MODEL is a name or channel in the store, a published folder, a run's folder, a weights file,
    FILE.py:NAME:SCALE, or bicubic.

    Photographs that have no HR: --lr PHOTOS --brisque auto, without --hr.
    """
    if self_check:
        _self_check(self_check, as_json)
        return
    place = hr or lr
    if model is None or place is None:
        raise click.UsageError(
            "give a MODEL and --hr FOLDER (without HR: --lr PHOTOS --brisque auto), or --self-check FOLDER"
        )
    if hr is None:
        _check_alone(brisque, {"--features": features, "--lpips": lpips, "--dists": dists})
    from ray_sr.evaluation import evaluate as measure
    from ray_sr.evaluation import evaluate_alone
    from ray_sr.perceptual.quality import load_brisque
    from ray_sr.progress import counted
    from ray_sr.store import load_model

    factor = int(scale) if scale else None
    loaded = load_model(chosen_model(model, store), store, scale=factor or 4)
    options: dict[str, Any] = {"scale": factor, "pictures": pictures, "limit": limit, "device": device}
    options["progress"] = counted("evaluating", "photos", quiet=as_json)
    if hr is None:
        result = evaluate_alone(loaded, place, load_brisque(_file(brisque)), **options)
    else:
        result = measure(loaded, hr, lr, **options, **_measures(features, lpips, dists, brisque))
    show(result.to_json(), result.table(), as_json)
    if result.left_out:
        names = ", ".join(photo.name for photo in result.left_out[:5])
        raise InputError(f"{len(result.left_out)} photos could not be measured: {names}")


def _check_alone(brisque: str | None, comparing: dict[str, str | None]) -> None:
    """Whether the options go without HR photos."""
    if given := [name for name, value in comparing.items() if value]:
        raise click.UsageError(f"{given[0]} compares with HR photos: give their folder by --hr")
    if not brisque:
        raise click.UsageError(
            "without HR photos BRISQUE is what is left to measure: give --brisque auto, or --hr FOLDER"
        )


def _measures(features: str | None, lpips: str | None, dists: str | None, brisque: str | None) -> dict[str, Any]:
    """What is to be measured besides PSNR and SSIM, as far as it can be had: arguments of `evaluate`."""
    from ray_sr.perceptual.quality import load_brisque, load_dists
    from ray_sr.perceptual.vgg import distance_network

    found: dict[str, Any] = {"features": distance_network(features)} if features else {}
    if lpips:
        found["lpips"] = _or_left_out("LPIPS", lambda: _lpips(lpips))
    if dists:
        found["dists"] = _or_left_out("DISTS", lambda: load_dists(_file(dists)))
    if brisque:
        found["brisque"] = _or_left_out("BRISQUE", lambda: load_brisque(_file(brisque)))
    return found


def _file(given: str | None) -> str | None:
    """None for `auto`: from torch's cache, or downloaded."""
    return None if given == "auto" else given


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
