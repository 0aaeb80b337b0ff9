"""Fixtures that more than one test module uses."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.s3 import ENVIRONMENT, s3_service

# Tiny networks run fastest on one thread, and workers beside each other do not fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
os.environ.update(ENVIRONMENT)


# The first of these that fits is a test's tier; what fits none is `fast`. A test or module may name its own.
TIERS = {
    "sweep": {"tests/tuning/test_sweep.py"},
    "cluster": {"tests/cluster/test_hosts.py", "tests/cluster/test_jobs.py"},
    "browser": {"browser"},  # a fixture
    "ray": {"ray_local"},
    "slow": {
        *("s3", "finished", "halves"),
        *("tests/bench/test_step.py", "tests/bench/test_upscale.py", "tests/data/test_shards.py"),
        *("tests/evaluation/test_peers.py", "tests/publishing/test_report.py", "tests/serving/test_codec_pool.py"),
        *("tests/store/test_shipped_weights.py", "tests/store/test_store_faults.py"),
        *("tests/training/test_trackers.py", "tests/tuning/test_results.py", "tests/video"),
    },
}


# Of several processes of pytest, one runs all that starts a Ray: no two Rays get into each other's way. It also
# runs what counts in tenths of a second, which is disturbed least there: all processes of that Ray wait meanwhile.
IN_ONE_PROCESS = {"ray", "cluster", "browser", "sweep", "tests/serving", "tests/bench/test_http.py"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks a test with its tier: markers in pyproject.toml, `make test-fast`, `test` and `test-nightly`.

    This early, so that pytest-xdist sees the groups.
    """
    file = item.nodeid.partition("::")[0]
    places = {file, file.rpartition("/")[0]}
    if not any(item.get_closest_marker(tier) for tier in (*TIERS, "fast")):
        has = places | {*getattr(item, "fixturenames", ())}
        item.add_marker(next((tier for tier, needs in TIERS.items() if needs & has), "fast"))
    if IN_ONE_PROCESS & (places | {mark.name for mark in item.iter_markers()}):
        item.add_marker(pytest.mark.xdist_group("ray"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Only bytes that are a short text name a test: files made here may hold the time, and names have to stay."""
    is_name = not isinstance(val, bytes) or (len(val) <= 32 and val.isascii() and val.decode().isprintable())
    return None if is_name else argname


class _Failures:
    """Names what failed as soon as it has: a run that is ended from outside never comes to its summary."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message.partition("\n")[0] if crash else report.longreprtext.rpartition("\n")[2]
            self._terminal.write_line(f"\nFAILED {report.nodeid} in its {report.when} - {why}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:  # the processes of pytest-xdist have none
        config.pluginmanager.register(_Failures(terminal))


@pytest.fixture(autouse=True)
def _no_ray_in_fast_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever starts or looks for a Ray belongs to another tier, where one is shared."""
    before = ray_is_up()
    yield
    if request.node.get_closest_marker("fast") or request.node.get_closest_marker("slow"):
        assert ray_is_up() == before, "this test starts a Ray: give it the fixture ray_local"


def ray_is_up() -> bool:
    ray = sys.modules.get("ray")
    return bool(ray and ray.is_initialized())


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
