"""A node that is announced to go costs no steps: a checkpoint is saved while it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ray_sr.cluster import preemption as spot

ROOT = Path(__file__).parents[2]


@pytest.mark.cluster
def test_a_notice_saves_a_checkpoint_from_which_the_run_goes_on(tmp_path: Path) -> None:
    """Two raylets with a worker on each; `ray drain-node` announces that one goes."""
    often = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | often
    command = [sys.executable, "-m", "tests.cluster.drain_a_node", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["outcome"] == "stopped when it had gone on"
    [[step, nodes, seconds]] = result["notices"]
    assert nodes == 1
    assert 0 < seconds <= 8
    assert result["starts"] == [[0, 2], [step, 2]]  # no checkpoint was due before step 500,000


class _Metadata(BaseHTTPRequestHandler):
    """The two clouds' metadata as their instances see it; a notice comes with the third question."""

    asked: list[str] = []  # noqa: RUF012

    def do_PUT(self) -> None:
        self._answer(200, "a token" if self.path == "/latest/api/token" else "")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        due = len(self.asked) >= 3
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "a token":
                self._answer(401, "")
            else:
                self._answer(200, '{"action": "terminate"}') if due else self._answer(404, "")
        elif self.path == "/computeMetadata/v1/instance/preempted" and self.headers["Metadata-Flavor"] == "Google":
            self._answer(200, "TRUE" if due else "FALSE")
        else:
            self._answer(400, "")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr."""


@contextmanager
def metadata_server() -> Iterator[str]:
    _Metadata.asked.clear()
    server = HTTPServer(("127.0.0.1", 0), _Metadata)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("cloud", spot.CLOUDS)
def test_the_notice_of_a_cloud_is_heard(cloud: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot, "POLL_SECONDS", 0.01)
    with metadata_server() as address:
        spot.wait_for_notice(spot.CLOUDS[cloud], address)
        assert len(_Metadata.asked) == 3
