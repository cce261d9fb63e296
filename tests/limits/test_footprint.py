"""What counters cost Redis: memory, as long as somebody calls."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane import embedded_redis
from dataplane.embedded_redis import RunningRedis
from tests.limits import servers
from tests.load.footprint import LAYERS, footprint

MOST_BYTES = 1536
# An older server has an entry for each key and another for its lifetime, where the embedded one has
# one object; what allocates them may round each up.
MOST_BYTES_OF_INSTALLED = 2048
# The tables of the embedded server have just been doubled for so many: users cost the most here.
USERS = 800


@pytest.fixture(params=servers.names())
def most_bytes_on(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[RunningRedis, int]]:
    """Each server that the script has to run on, of the test's own, and what a user may take of it."""
    if request.param == servers.EMBEDDED:
        server, most_bytes = embedded_redis.start(tmp_path), MOST_BYTES
    else:
        server, most_bytes = servers.start_installed(tmp_path), MOST_BYTES_OF_INSTALLED
    yield server, most_bytes
    server.stop()


def test_an_active_user_with_ten_layers_takes_no_more_memory_than_promised(
    most_bytes_on: tuple[RunningRedis, int],
) -> None:
    server, most_bytes = most_bytes_on

    found = footprint(server.url, USERS)

    # All but the parallel set, which is gone with its last request.
    assert found.counted_keys == LAYERS - 1
    assert 500 < found.counters < MOST_BYTES
    # With the server's tables of keys and of their lifetimes.
    assert found.counters < found.server < most_bytes
