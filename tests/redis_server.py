"""A real Redis server on a free port, which may be killed and keeps what it has."""

from __future__ import annotations

import shutil

import pytest
import redis
from servers import not_here

from gridscore.grid.ports import HOST, choose_ports
from gridscore.testing.guarded import GuardedServer


class RedisServer(GuardedServer):
    """Leaving it ends it; it also ends when this process does. What it has answered is on disk."""

    def __init__(self, folder, *more, **client):
        super().__init__("Redis server", folder / "redis.log")
        (self.port,) = choose_ports(1, 0)
        self.url = f"{'rediss' if client.get('ssl') else 'redis'}://{HOST}:{self.port}"
        self._client = client
        ports = ["--port", "0", "--tls-port"] if client.get("ssl") else ["--port"]
        self._command = [
            shutil.which("redis-server") or "",
            *ports,
            str(self.port),
            "--bind",
            HOST,
            "--dir",
            str(folder),
        ]
        self._command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", *more]
        self._begin()

    def client(self):
        return redis.Redis(port=self.port, **self._client)

    def _is_ready(self):
        try:
            with self.client() as client:
                return client.ping()
        except redis.RedisError:
            return False


def start(folder, *more, **client):
    if not shutil.which("redis-server"):
        not_here("no redis-server: install Debian's `redis-server`")
    return RedisServer(folder, *more, **client)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """A server that takes anybody. Streams outlive a test: take names from `unique`."""
    with start(tmp_path_factory.mktemp("redis")) as server:
        yield server
