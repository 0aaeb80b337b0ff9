"""`ray-sr serve`: the upscaling endpoint on this machine."""

from __future__ import annotations

import click

from ray_sr.commands.common import chosen_model, store_option


@click.command()
@click.option("-n", "--model", metavar="MODEL", help="Model (default: channel `best`, else the newest published).")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(1), help="Most generator replicas.")
@click.option("--device", default="auto", show_default=True)
@click.option("--insecure", is_flag=True, help="Allow a host that others can reach.")
@store_option
def serve(
    model: str | None, host: str, port: int, replicas: int, device: str, insecure: bool, store: str | None
) -> None:
    """Answer POST /v1/upscale: a photo in, the upscaled photo out. Ctrl-C ends it."""
    from ray_sr.serving.options import ServiceOptions
    from ray_sr.serving.run import serve_forever

    options = ServiceOptions(model=chosen_model(model, store), store=store, device=device, max_replicas=replicas)
    serve_forever(options, host=host, port=port, insecure=insecure)
