"""Metrics: on Ray's port and not on the service's, and the dashboard asks for those that there are."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import httpx
import ray

from tests.serving.conftest import Running

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "serve/dashboards/endpoint.json").read_text())


def declared() -> set[str]:
    """Names as Prometheus sees them, from the code that makes them."""
    suffixes = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
    text = "".join((ROOT / "ray_sr/serving" / name).read_text() for name in ("telemetry.py", "replica.py"))
    found = re.findall(r'(Counter|Gauge|Histogram)\("(sr_\w+)"', text)
    return {f"ray_{name}{suffix}" for kind, name in found for suffix in suffixes[kind]}


def test_dashboard_asks_for_metrics_that_exist() -> None:
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"ray_sr_\w+", query)}
    assert asked <= declared()
    assert len(asked) >= 7
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_metrics_are_on_rays_port_and_not_on_the_services(service: Running, small_png: bytes) -> None:
    assert httpx.get(f"{service.url}/metrics").status_code == 404
    httpx.post(f"{service.url}/v1/upscale", content=small_png, timeout=60)
    httpx.post(f"{service.url}/v1/upscale", content=b"text", timeout=60)
    node = next(node for node in ray.nodes() if node["Alive"])
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {
        'ray_sr_requests_total{.*route="/v1/upscale".*status="200"',
        'ray_sr_refusals_total{.*reason="unsupported-media-type"',
        'ray_sr_pixels_total{.*direction="out"',
        'ray_sr_stage_seconds_bucket{.*stage="encode"',
    }
    end = time.monotonic() + 90
    while missing := {name for name in wanted if not re.search(name, httpx.get(address, timeout=30).text)}:
        assert time.monotonic() < end, missing
        time.sleep(0.5)
