"""Servers that every test may ask for; each is real and on a port of its own."""

import gc
import os
import socket
from typing import Any, Final

import pytest

from tests.fixtures_databases import *  # noqa: F403 - fixtures are found by name here
from tests.fixtures_redis import *  # noqa: F403 - as above

# The programs under test are started hundreds of times: they may keep what they compile.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
_connect = socket.socket.connect
# Where a single file takes half a minute.
_LONGEST: Final = ("e2e", "dev", "crashes", "distribution", "topologies", "limits", "maintenance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the folders with the longest files begin, so that no worker ends with one while others have no work.

    Within each of them, and after them, the order stays random.
    """
    items.sort(key=lambda item: _rank(item.path.parent.name))


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through modules and tests, which stay, again and again."""
    gc.collect()
    gc.freeze()


def _rank(folder: str) -> int:
    return _LONGEST.index(folder) if folder in _LONGEST else len(_LONGEST)


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
