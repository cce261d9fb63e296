"""Servers that every test may ask for; each is real and on a port of its own."""

import os
import socket
from typing import Any

import pytest

from tests.fixtures_databases import *  # noqa: F403 - fixtures are found by name here
from tests.fixtures_redis import *  # noqa: F403 - as above

# The programs under test are started hundreds of times: they may keep what they compile.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
_connect = socket.socket.connect


def _is_local(address: Any) -> bool:
    if isinstance(address, str | bytes):
        return True  # a unix socket
    host = str(address[0])
    return host.startswith("127.") or host in {"::1", "localhost", "0.0.0.0"}  # noqa: S104


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a test leaves this machine."""

    def connect(self: socket.socket, address: Any) -> None:
        if not _is_local(address):
            raise AssertionError(f"a test tried to connect to {address!r}")
        _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
