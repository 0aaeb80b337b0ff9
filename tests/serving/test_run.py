"""Starting the service: what is refused before anything runs."""

from __future__ import annotations

import socket

import pytest

from ray_sr.errors import ClusterError, ModelError, RecipeError
from ray_sr.serving.options import ServiceOptions
from ray_sr.serving.run import refuse_public_host, running_service
from tests.serving.conftest import Running


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_public_hosts_need_insecure(host: str) -> None:
    with pytest.raises(RecipeError, match="--keys FILE"):
        refuse_public_host(host, guarded=False)
    refuse_public_host(host, guarded=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    refuse_public_host(host, guarded=False)


def test_public_host_is_refused_before_anything_starts(options: ServiceOptions) -> None:
    with pytest.raises(RecipeError, match=r"0\.0\.0\.0"), running_service(options, host="0.0.0.0"):
        pytest.fail("the service must not start")


def test_unknown_model_is_refused_before_anything_starts(options: ServiceOptions) -> None:
    wrong = options.model_copy(update={"model": "portait"})
    with pytest.raises(ModelError, match="did you mean 'portrait'"), running_service(wrong):
        pytest.fail("the service must not start")


def test_port_in_use_is_one_line(ray_local: None, options: ServiceOptions) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"port {port}"), running_service(options, port=port):
            pytest.fail("the service must not start")


def test_second_service_on_the_same_ray_is_refused(service: Running) -> None:
    with pytest.raises(ClusterError, match="serve deploy"), running_service(service.options):
        pytest.fail("the service must not start")
