"""`ray-sr data`: photographs -> shards, and looking at them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ray_sr.commands.common import (
    FiniteRange,
    connect_ray,
    json_option,
    note,
    overrides_argument,
    place,
    recipe_option,
    show,
)
from ray_sr.errors import InputError

if TYPE_CHECKING:
    from ray_sr.data.manifest import Encoding


@click.group()
def data() -> None:
    """Make, check and look at shards."""


@data.command()
@click.argument("photos", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="SHARDS", callback=place,
              help="Folder or URI to write the shards to.")  # fmt: skip
@click.option("--sub-image", default=480, show_default=True, help="Side of a sub-image in pixels.")
@click.option("--step", default=240, show_default=True, help="Distance between sub-images in pixels.")
@click.option("--minimum", default=96, show_default=True, help="Leave out photos with a smaller side.")
@click.option("--depth", type=click.Choice(["8", "16"]), default="8", show_default=True,
              help="Bits of each channel: 16 keeps those of photos that have them.")  # fmt: skip
@click.option("--encoding", type=click.Choice(["webp", "png", "raw"]), show_default="webp, raw for 16 bits")
@click.option("--validation", default=0.05, show_default=True, type=FiniteRange(0, 0.5),
              help="Fraction of the photos held out for validation.")  # fmt: skip
@click.option("--hold-out", multiple=True, metavar="NAME", help="Hold out this photo instead; repeatable.")
@click.option("--inputs", metavar="FOLDER", help="Input photos with the same names, for the degradation `pairs`.")
@click.option("--scale", default=1, show_default=True, help="Photo side / input photo side, with --inputs.")
@click.option("--drop-flat", is_flag=False, flag_value=1.0, default=0.0, metavar="[LEVELS]",
              help="Drop sub-images whose neighbouring pixels differ by less on average (1.0).")  # fmt: skip
@click.option("--drop-duplicates", is_flag=True, help="Keep only one of several sub-images with equal pixels.")
@json_option
def prepare(photos: tuple[str, ...], output: str, validation: float, hold_out: tuple[str, ...], as_json: bool,
            inputs: str | None, scale: int, depth: str, encoding: Encoding | None,
            **cutting: Any) -> None:  # fmt: skip
    """Cut PHOTOS (folders, globs, files, URIs, Parquet data sets) into Parquet shards.

    Photos that cannot be read or are too small are named and left out; the exit code is then 3. Duplicates of
    held-out photos are not trained on. Run it again after an interruption, and it makes only the shards that are
    missing or whose photos have changed.
    """
    from pydantic import ValidationError

    from ray_sr.data.manifest import Cutting
    from ray_sr.data.sources import PassedOver, find_photos
    from ray_sr.progress import Progress
    from ray_sr.storage import require_place

    if encoding:
        cutting["encoding"] = encoding
    try:
        how = Cutting(**cutting, depth=8 if depth == "8" else 16, input_scale=scale if inputs else 0)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        raise click.UsageError(option + first["msg"].removeprefix("Value error, ")) from None
    passed_over: list[PassedOver] = []
    found = find_photos(photos, passed_over)
    for one in passed_over:
        note(str(one))
    note(f"{len(found)} photos, {sum(photo.size for photo in found) / 2**20:.0f} MiB")
    require_place(output)
    connect_ray()
    from ray_sr.cluster import telling_of_starvation
    from ray_sr.data.shards import prepare as make_shards

    with (
        Progress("preparing", len(found), "photos", quiet=as_json) as progress,
        telling_of_starvation(progress),
    ):

        def count(record: dict[str, Any]) -> None:
            if record["reason"]:
                progress.say(f"left out: {record['name']}: {record['reason']}")
            progress.advance()

        made = make_shards(
            found, output, cutting=how, validation=validation, hold_out=hold_out, inputs=inputs, progress=count
        )
    manifest = made.manifest
    size = sum(shard.bytes for shard in manifest.shards)
    summary = {
        "shards": output,
        "photos": manifest.photos,
        "left_out": [{"name": photo["name"], "reason": photo["reason"]} for photo in made.left_out],
        "passed_over": [{"path": one.path, "reason": one.why} for one in passed_over],
        "sub_images": manifest.rows("train"),
        "flat": sum(photo["flat"] for photo in made.photos),
        "duplicates": manifest.duplicates,
        "bytes": size,
    }
    show(
        summary,
        f"{output}: {manifest.rows('train')} sub-images of {manifest.photos['train']} photos, "
        f"{manifest.photos['validation']} photos held out, {manifest.left_out} left out; "
        f"{len(manifest.shards)} shards, {size / 2**20:.0f} MiB",
        as_json,
    )
    if how.depth == 16 and not any(photo.get("depth") == 16 for photo in made.photos):
        note("no photo has more than 8 bits: shards of --depth 8 hold the same in less than half of the bytes")
    if not manifest.photos["validation"]:
        note("no photo is held out: training will measure nothing")
    lost = [photo for photo in made.left_out if not photo["copy"]] + [one for one in passed_over if one.lost]
    if lost:
        raise InputError(f"{len(lost)} of {len(found)} photos cannot be used, they are named above")


@data.command()
@click.argument("shards", callback=place)
@json_option
def check(shards: str, as_json: bool) -> None:
    """Compare every shard with the manifest; names what is damaged or missing (exit code 3)."""
    from ray_sr.data.checking import damaged_shards
    from ray_sr.data.manifest import read_manifest

    manifest = read_manifest(shards)
    damage = damaged_shards(shards, manifest)
    lines = [f"{file}: {reason}" for file, reason in damage.items()]
    show(
        {"shards": len(manifest.shards), "damaged": damage},
        "\n".join([*lines, f"{len(manifest.shards) - len(damage)} of {len(manifest.shards)} shards are whole"]),
        as_json,
    )
    if damage:
        raise InputError(f"{shards}: {len(damage)} damaged shards: make them again with `ray-sr data prepare`")


@data.command()
@click.argument("shards", callback=place)
@click.option("--sheet", metavar="PNG", help="Write a contact sheet of sub-images of different photos here.")
@json_option
def info(shards: str, sheet: str | None, as_json: bool) -> None:
    """Counts, split and histogram of resolutions of a shard set."""
    from ray_sr.data.checking import describe, sub_image_sheet

    facts, text = describe(shards)
    if sheet:
        sub_image_sheet(shards, sheet)
        facts["sheet"], text = sheet, f"{text}\nsheet       {sheet}"
    show(facts, text, as_json)


@data.command()
@click.argument("name", type=click.Choice(["div2k", "flickr2k", "gopro"]))
@click.option("-o", "--output", metavar="FOLDER", help="Where to unpack it (default: photos/NAME).")
@click.option("--keep", is_flag=True, help="Keep the archives.")
@json_option
def download(name: str, output: str | None, keep: bool, as_json: bool) -> None:
    """Fetch a public set of photographs. Run it again after an interruption, and it continues."""
    from pathlib import Path

    from ray_sr.data.download import SETS, download_set
    from ray_sr.progress import Progress

    photos, folder = SETS[name], Path(output or f"photos/{name}")
    note(f"{name}: {len(photos.archives)} archive(s) to {folder}; terms: {photos.terms}")
    with Progress(name, 1, "MiB", quiet=as_json) as progress:

        def hear(done: int, total: int) -> None:
            progress.expect(max(1, total >> 20))
            progress.update(done >> 20)

        count = download_set(photos.archives, folder, keep=keep, progress=hear)
    show({"folder": str(folder), "files": count}, f"{folder}: {count} files", as_json)


@data.command()
@recipe_option()
@overrides_argument
@click.option("--photos", multiple=True, metavar="PHOTOS", help="Photos to show (default: those of scikit-image).")
@click.option("-o", "--output", default="preview.png", show_default=True, metavar="PNG")
def preview(recipe_name: str, overrides: tuple[str, ...], photos: tuple[str, ...], output: str) -> None:
    """A contact sheet of what a recipe's degradation does to photos."""
    from ray_sr.data.checking import preview_sheet
    from ray_sr.recipes.reader import load_recipe

    preview_sheet(load_recipe(recipe_name, overrides), photos, output)
    click.echo(output)


@data.command()
@recipe_option()
@overrides_argument
@click.option("--data", "shards", metavar="SHARDS", help="Shard set (default: data.shards of the recipe).")
@click.option("--seconds", default=5.0, show_default=True, type=FiniteRange(0.1), help="Time for each figure.")
@click.option("--processes", type=click.IntRange(1), help="Cores to use (default: all of this machine).")
@json_option
def bench(recipe_name: str, overrides: tuple[str, ...], shards: str | None, seconds: float, processes: int | None,
          as_json: bool) -> None:  # fmt: skip
    """Measure the data plane alone: crops/s of a recipe's stream and of its parts, and memory.

    For comparison, a torch DataLoader that decodes a whole photograph for each crop, as most trainers do.
    """
    from ray_sr.cluster import available_cpus
    from ray_sr.data.manifest import shards_of
    from ray_sr.recipes.reader import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    place = shards_of(recipe, shards)
    connect_ray()
    from ray_sr.bench.data_plane import measure, table

    figures = measure(recipe, place, seconds, processes or available_cpus())
    show(figures, table(figures), as_json)
