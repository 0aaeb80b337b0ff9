"""An S3 service on loopback (moto's HTTP server), and a wire to it that can be cut."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import urllib.request
from collections.abc import Iterator

import pytest

BUCKET = "photos"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


ADDRESS = f"127.0.0.1:{_free_port()}"
# For this process and, set before Ray starts, for its workers: s3://photos/... is then a place like any other.
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://{ADDRESS}",
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "tester",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_service() -> Iterator[str]:
    """The URI of the bucket of a service at ADDRESS. Skips without moto."""
    server_module = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    host, port = ADDRESS.split(":")
    server = server_module.ThreadedMotoServer(ip_address=host, port=int(port), verbose=False)
    server.start()
    try:
        bucket = urllib.request.Request(f"http://{ADDRESS}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(bucket, timeout=30):
            yield f"s3://{BUCKET}"
    finally:
        server.stop()


class Wire:
    """A TCP proxy to the service that goes dead, for good, when the writing request of that number begins."""

    def __init__(self, writes: int) -> None:
        host, port = ADDRESS.split(":")
        self._service, self._left = (host, int(port)), writes
        self._dead = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_dead(self) -> bool:
        return self._dead.is_set()

    def close(self) -> None:
        self._dead.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._dead.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._service) as service:
            while not self._dead.is_set():
                ready, _, _ = select.select([client, service], [], [], 0.1)
                for source in ready:
                    data = source.recv(65536)
                    if not data or (source is client and self._cuts(data)):
                        return
                    (service if source is client else client).sendall(data)

    def _cuts(self, data: bytes) -> bool:
        if data.startswith((b"PUT ", b"POST ")):
            self._left -= 1
            if self._left < 0:
                self.close()
        return self._dead.is_set()
