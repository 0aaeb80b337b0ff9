"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.s3 import ENVIRONMENT, s3_service

# Tiny networks run fastest on one thread, and workers beside each other do not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URI of a bucket on loopback, for this process and for the workers of `ray_local`."""
    with s3_service() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A real Ray of this test session alone: own ports, own temporary folder."""
    import ray

    from ray_sr.cluster import local_ray

    # Ray puts sockets into its temporary folder, whose paths are limited to about 100 characters.
    with tempfile.TemporaryDirectory(prefix="rsr-", ignore_cleanup_errors=True) as folder:
        local_ray(cpus=4, temporary=folder, object_store_bytes=1 << 30)
        yield
        ray.shutdown()
