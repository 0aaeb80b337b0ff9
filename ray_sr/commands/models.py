"""`ray-sr models`: the model store, and weights from and for other programs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ray_sr.commands.common import json_option, note, overrides_argument, show, store_option

if TYPE_CHECKING:
    from ray_sr.store import ModelRecord
    from ray_sr.store.remote import Remote


@click.group()
def models() -> None:
    """Publish, list, promote, import and export models."""


@models.command("list")
@store_option
@json_option
def list_models(store: str | None, as_json: bool) -> None:
    """Published models, newest first, the channels, and the models that come with ray-sr."""
    from ray_sr.store import Store
    from ray_sr.store.store import SHIPPED

    place, shipped = Store(store), Store(SHIPPED).list()
    records, channels = place.list(), place.channels()

    def line(record: ModelRecord, remark: str) -> str:
        network = record.network
        return f"{record.ref}  x{network.scale}  {network.generator.kind}  {record.date}  {remark}".rstrip()

    def document(record: ModelRecord) -> dict[str, Any]:
        return record.model_dump(mode="json", exclude={"recipe"})

    lines = [
        line(record, ", ".join(name for name, channel in channels.items() if channel.current.ref == record.ref))
        for record in records
    ] or [f"no models in {place.root}: `ray-sr models publish RUN` fills it"]
    result = {
        "store": place.root,
        "models": [document(record) for record in records],
        "channels": {name: channel.current.ref for name, channel in channels.items()},
        "shipped": [document(record) for record in shipped],
    }
    show(result, "\n".join([*lines, *(line(record, "comes with ray-sr") for record in shipped)]), as_json)


@models.command("show")
@click.argument("model")
@store_option
@json_option
def show_model(model: str, store: str | None, as_json: bool) -> None:
    """The card of a published MODEL (name, name@version or channel)."""
    from ray_sr.store import Store
    from ray_sr.store.card import write_card

    record = Store(store).show(model)
    show(record.model_dump(mode="json"), write_card(record), as_json)


@models.command()
@click.argument("run")
@click.option("--name", help="Name in the store (default: the recipe's).")
@click.option("--stage", type=click.Choice(["last", "best", "pretrain"]), default="last", show_default=True,
              help="Which generator: the last, the best by PSNR-Y, or the one before the GAN stage.")  # fmt: skip
@click.option("--promote", metavar="CHANNEL", help="Point this channel at it.")
@click.option("--measure", metavar="HR[,LR]", multiple=True, help="Folder of HR photos (and one of LR photos): "
              "figures and pictures for the card.")  # fmt: skip
@click.option("--pictures", metavar="HR[,LR]", help="Show all photos of this folder on the card instead of the "
              "measured ones.")  # fmt: skip
@click.option("--notes", metavar="FILE", type=click.File(encoding="utf-8"), help="Markdown for the card: data and "
              "their licences, hardware, where it fails.")  # fmt: skip
@click.option("--source", metavar="TEXT", help="What the card says about the run's origin (default: its folder).")
@click.option("--half", is_flag=True, help="Store float16: half the size; --measure measures what is stored.")
@store_option
@json_option
def publish(
    run: str,
    name: str | None,
    stage: str,
    promote: str | None,
    measure: tuple[str, ...],
    pictures: str | None,
    notes: TextIO | None,
    source: str | None,
    half: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Publish the generator of RUN."""
    from ray_sr.progress import counted
    from ray_sr.publishing import publish_run
    from ray_sr.store import Store
    from ray_sr.training.runs import Run

    place = Store(store)
    text = notes.read() if notes else None
    record = publish_run(
        Run.existing(run),
        place,
        name=name,
        stage=stage,
        promote=promote,
        measure_on=measure,
        pictures_of=pictures,
        notes=text,
        source=source,
        half=half,
        progress=counted("measuring", "photos", quiet=as_json),
    )
    result = {"model": record.ref, "name": record.name, "version": record.version, "store": place.root}
    show(result, f"{record.ref} published in {place.root}", as_json)


@models.command()
@click.argument("model")
@click.argument("channel")
@store_option
def promote(model: str, channel: str, store: str | None) -> None:
    """Point CHANNEL at MODEL."""
    from ray_sr.store import Store

    click.echo(f"{channel} is now {Store(store).promote(model, channel).ref}")


@models.command()
@click.argument("channel")
@store_option
def rollback(channel: str, store: str | None) -> None:
    """Point CHANNEL back at the previous model."""
    from ray_sr.store import Store

    click.echo(f"{channel} is now {Store(store).rollback(channel).ref}")


@models.command()
@click.argument("model")
@store_option
def delete(model: str, store: str | None) -> None:
    """Delete MODEL (NAME@VERSION), unless a channel points at it."""
    from ray_sr.store import Store

    Store(store).delete(model)
    click.echo(f"{model} deleted")


@models.command("import")
@click.argument("file", metavar="FILE|ADDRESS")
@overrides_argument
@click.option("-c", "--recipe", metavar="RECIPE", help="Recipe (name or YAML) with the network, changed by "
              "KEY=VALUE: for files that do not tell all of it.")  # fmt: skip
@click.option("--name", help="Name in the store (default: the file's).")
@click.option("--promote", metavar="CHANNEL", help="Point this channel at it.")
@store_option
@json_option
def import_file(
    file: str,
    overrides: tuple[str, ...],
    recipe: str | None,
    name: str | None,
    promote: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Publish a generator FILE of ours, BasicSR, Real-ESRGAN, ESRGAN, KAIR, MMagic, or any that spandrel loads.

    The network follows from the weights' names and shapes. They do not tell an activation without weights, or
    values in [-1, 1] inside the network: then name it by a recipe, such as -c compact-x4
    generator.activation=leakyrelu.

    ADDRESS is https://…/NAME.pth#sha256=DIGITS, hf:OWNER/REPO/FILE (Hugging Face), or openmodeldb:NAME: fetched,
    checked by its hash, and only then read; its licence is kept in the record.

    FILE may be - for stdin. Weights are read without running code from the file; any pickle that would is refused.
    """
    if overrides and recipe is None:
        raise click.UsageError(f"{overrides[0]}: give the recipe that it changes too (-c RECIPE)")
    from ray_sr.errors import ModelError
    from ray_sr.models.weights import load_generator
    from ray_sr.recipes.reader import load_recipe
    from ray_sr.store import Provenance, Store
    from ray_sr.store.remote import is_address

    place = Store(store)
    if file == "-" and name is None:
        raise click.UsageError("weights from stdin have no name: give --name NAME")
    source, licence = ("stdin" if file == "-" else file), None
    file = "/dev/stdin" if file == "-" else file
    if is_address(file):
        remote = _fetched(file, quiet=as_json)
        file, source, licence = str(remote.path), remote.source, remote.licence
        note(f"sha256 {remote.sha256}, licence: {licence or 'not named by its source'}")
    name = name or _name_from(file)
    generator, network = load_generator(file, load_recipe(recipe, overrides).network if recipe else None)
    if network is None:
        raise ModelError(f"{file}: its options do not follow from the weights: take the file itself as MODEL (-n)")
    version = place.publish(
        name, generator, network, provenance=Provenance(source=source, licence=licence), promote=promote
    )
    result = {
        "model": f"{name}@{version}",
        "licence": licence,
        "network": network.model_dump(mode="json"),
        "store": place.root,
    }
    show(result, f"{name}@{version} published in {place.root}: {network.generator.kind} x{network.scale}", as_json)


def _fetched(address: str, quiet: bool) -> Remote:
    """The file at this address, with a bar of its bytes on a terminal."""
    from tqdm import tqdm

    from ray_sr.store.remote import fetch_weights

    with tqdm(unit="B", unit_scale=True, desc=address, disable=True if quiet else None) as bar:

        def show_bytes(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return fetch_weights(address, show_bytes)


def _name_from(file: str) -> str:
    """The file's name as that of a model. Raises UsageError where it cannot be one."""
    from ray_sr.store.records import NAME_PATTERN
    from ray_sr.store.store import has_another_meaning

    stem = Path(file).stem
    if re.fullmatch(NAME_PATTERN, stem) and len(stem) <= 64 and not has_another_meaning(stem):
        return stem
    close = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:64] or "NAME"
    if has_another_meaning(close):
        close = f"my-{close.replace('.', '-')}"
    raise click.UsageError(f"{stem!r} cannot name a model: give it a name, such as --name {close}")


@models.command()
@click.argument("model")
@click.option("-o", "--output", required=True, metavar="FILE", help="A .safetensors or .onnx file.")
@store_option
@json_option
def export(model: str, output: str, store: str | None, as_json: bool) -> None:
    """Write MODEL as safetensors, or as ONNX with dynamic height and width."""
    from ray_sr.models.export import export_onnx, foreign_use
    from ray_sr.models.weights import save_weights
    from ray_sr.store import load_model

    loaded = load_model(model, store)
    suffix = Path(output).suffix.lower()
    if suffix not in (".safetensors", ".onnx"):
        raise click.UsageError(f"-o {output}: the name must end in .safetensors or .onnx")
    if loaded.network is None:
        raise click.UsageError(f"{model} is not one of ray-sr's own networks and cannot be exported")
    result: dict[str, object] = {"file": output}
    if suffix == ".onnx":
        difference = export_onnx(loaded.module, output).max_difference
        result["max_difference"] = difference
        text = f"{output}: " + ("not compared" if difference is None else f"within {difference:.1e} of torch")
    else:
        save_weights(output, loaded.module, loaded.network)
        reason = foreign_use(loaded.network)
        text = output + (f" (for ray-sr: {reason})" if reason else " (spandrel and chaiNNer read it too)")
    show(result, text, as_json)


@models.command()
@click.argument("model", nargs=-1, required=True)
@store_option
@json_option
def compare(model: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Published MODELs side by side: network, size, steps, metrics."""
    from ray_sr.store import Store

    records = [Store(store).show(ref) for ref in model]
    rows = [
        {
            "model": record.ref,
            "network": f"{record.network.generator.kind} x{record.network.scale}",
            "parameters": record.parameters,
            "steps": record.provenance.steps,
            **{key: value for metrics in record.metrics for key, value in metrics.values.items()},
        }
        for record in records
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    width = max(map(len, keys))
    lines = [f"{key:{width}}  " + "  ".join(f"{_cell(row.get(key)):>24}" for row in rows) for key in keys]
    show({"models": rows}, "\n".join(lines), as_json)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
