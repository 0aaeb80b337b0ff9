"""`ray-sr serve` and `ray-sr keys`: the upscaling endpoint on this machine, and who may use it."""

from __future__ import annotations

from typing import Any

import click

from ray_sr.commands.common import chosen_model, json_option, note, show, store_option


@click.command()
@click.option(
    "-n",
    "--model",
    "models",
    metavar="MODEL",
    multiple=True,
    help="Model to serve, repeatable; the first is the default one (default: every model here, "
    "loaded on first request; requests that name none get `best`, else the newest published).",
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option(
    "--replicas",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Maximum number of replicas of a model.",
)
@click.option("--device", default="auto", show_default=True)
@click.option(
    "--jobs",
    metavar="FOLDER",
    help="Where jobs are kept: folder or bucket (default: ~/.ray-sr/jobs or under RAY_SR_STORAGE, by port).",
)
@click.option(
    "--ingress-replicas", default=1, show_default=True, type=click.IntRange(1), help="HTTP ingress processes."
)
@click.option("--keys", metavar="FILE", help="Accept pictures only with a key of this file (`ray-sr keys`).")
@click.option("--access-log", metavar="FILE", help="Append a JSON line for each request.")
@click.option("--insecure", is_flag=True, help="Allow a host that other machines can reach, without keys.")
@store_option
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    replicas: int,
    store: str | None,
    insecure: bool,
    **options: Any,
) -> None:
    """Answer POST /v1/upscale: a photo in, the upscaled photo out. Ctrl-C ends it.

    A MODEL that is a channel or a name is followed: models promoted or published later are picked up.
    """
    from ray_sr.serving.run import checked_options, serve_forever

    model, *further = models or (chosen_model(None, store),)
    chosen = [chosen_model(name, store) for name in (model, *further)]
    serve_forever(
        checked_options(
            model=chosen[0],
            further_models=chosen[1:],
            all_models=not models,
            store=store,
            max_replicas=replicas,
            **options,
        ),
        host=host,
        port=port,
        insecure=insecure,
    )


@click.group()
def keys() -> None:
    """Who may use an endpoint: a file of hashed API keys, for `ray-sr serve --keys FILE`."""


def file_option(command: Any) -> Any:
    return click.option(
        "--file", "path", default="keys.json", show_default=True, metavar="FILE", help="The file of keys."
    )(command)


@keys.command()
@click.argument("name")
@click.option("--pixels-per-minute", type=click.IntRange(1), help="Quota in output pixels (default: none).")
@file_option
def add(name: str, pixels_per_minute: int | None, path: str) -> None:
    """Make a key for NAME and print it once: the file keeps only its hash."""
    from ray_sr.serving.keys import add_key

    click.echo(add_key(path, name, pixels_per_minute))
    note(f"{name} is in {path}; a service that runs takes it from there at once")


@keys.command(name="list")
@file_option
@json_option
def list_keys(path: str, as_json: bool) -> None:
    """List the holders of keys."""
    from ray_sr.serving.keys import read_keys

    found = [key.model_dump(exclude={"sha256"}) for key in read_keys(path)]
    lines = [f"{key['name']:24}{key['pixels_per_minute'] or 'no quota':>14}  {key['created']}" for key in found]
    show({"keys": found}, "\n".join(lines) or "no keys", as_json)


@keys.command()
@click.argument("name")
@file_option
def remove(name: str, path: str) -> None:
    """Revoke the key of NAME; a running service refuses it from then on."""
    from ray_sr.serving.keys import remove_key

    remove_key(path, name)
    note(f"{name} is not in {path} any more")
