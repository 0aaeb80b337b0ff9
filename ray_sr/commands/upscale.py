"""`ray-sr upscale`: photos in, larger photos out."""

from __future__ import annotations

import sys
from typing import Any

import click

from ray_sr.commands.common import chosen_model, json_option, note, show, store_option
from ray_sr.errors import InputError


@click.command()
@click.argument("photos", nargs=-1, required=True)
@click.option("-o", "--output", metavar="OUT", help="File or folder to write to (default: beside each photo).")
@click.option("-n", "--model", metavar="MODEL", help="Model (default: channel `best`, else the newest published).")
@click.option("-s", "--scale", type=click.FloatRange(0, min_open=True), help="Any scale (default: the model's).")
@click.option("-f", "--format", type=click.Choice(["png", "jpeg", "webp", "tiff"]), help="Format of the results.")
@click.option("-t", "--tile", type=click.IntRange(16), help="Tile side in pixels (default: what fits in memory).")
@click.option(
    "-q", "--quality", default=95, show_default=True, type=click.IntRange(1, 100), help="Of jpeg and webp."
)
@click.option("--lossless", is_flag=True, help="Lossless webp.")
@click.option("--metadata", type=click.Choice(["keep", "copyright", "none"]), default="keep", show_default=True)
@click.option("--suffix", help="Added to the names of results (default: _x and the scale).")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("--skip-existing", is_flag=True, help="Leave photos alone whose results exist.")
@click.option("--recursive", is_flag=True, help="Take the folders inside folders too.")
@click.option("--lenient", is_flag=True, help="Accept damaged photos as far as they can be read.")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("-d", "--device", default="auto", show_default=True)
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]), default="auto", show_default=True)
@store_option
@json_option
def upscale(
    photos: tuple[str, ...],
    output: str | None,
    model: str | None,
    scale: float | None,
    format: str | None,
    tile: int | None,
    quality: int,
    lossless: bool,
    metadata: Any,
    suffix: str | None,
    overwrite: bool,
    skip_existing: bool,
    recursive: bool,
    lenient: bool,
    dry_run: bool,
    device: str,
    precision: Any,
    store: str | None,
    as_json: bool,
) -> None:
    """Upscale PHOTOS: files, folders, glob patterns.

    A photo that cannot be read is named and the rest goes on; the exit code is then 3.
    """
    if overwrite and skip_existing:
        raise click.UsageError("--overwrite and --skip-existing exclude each other")
    from ray_sr.images import Limits
    from ray_sr.model_store import load_model
    from ray_sr.upscaling import Engine
    from ray_sr.upscaling.files import FileOptions, upscale_files

    loaded = load_model(chosen_model(model, store), store)
    engine = Engine(loaded.module, loaded.capability, device=device, precision=precision, tile=tile)
    if not as_json:
        version = f"@{loaded.version}" if loaded.version else ""
        note(f"{loaded.name}{version}: x{engine.scale} on {engine.device}, {engine.precision}")
    options = FileOptions(
        format=format,
        suffix=suffix,
        existing="overwrite" if overwrite else "skip" if skip_existing else "refuse",
        recursive=recursive,
        quality=quality,
        lossless=lossless,
        metadata=metadata,
        limits=Limits(strict=not lenient),
    )
    summary = upscale_files(photos, output, engine, scale=scale, options=options, dry_run=dry_run, quiet=as_json)
    show({"model": f"{loaded.name}@{loaded.version}", **summary.to_dict()}, str(summary), as_json)
    if dry_run and not as_json:
        for file in summary.files:
            print(file, file=sys.stderr)
    if summary.exit_code:
        raise InputError(f"{summary.count('failed')} of {len(summary.files)} photos failed, they are named above")
