"""Fixtures of the limiter's tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dataplane import embedded_redis
from dataplane.limits.limiter import Limiter
from tests.limits import servers
from tests.limits.probe import Probe

# Their assertions say what they compared, as those of a test do.
for _module in (
    "boundaries_budgets",
    "boundaries_calendars",
    "boundaries_cancels",
    "boundaries_epochs",
    "boundaries_marks",
    "boundaries_rates",
    "boundaries_requests",
    "boundaries_upkeep",
    "boundaries_windows",
    "machine",
    "machine_marks",
    "machine_requests",
    "promises",
):
    pytest.register_assert_rewrite(f"tests.limits.{_module}")


@pytest.fixture
async def limiter(redis_url: str) -> AsyncIterator[Limiter]:
    """A limiter in a key space of its own, on the session's server."""
    async with Probe.on(redis_url) as probe:
        yield probe.limiter


@pytest.fixture
async def probe(redis_url: str) -> AsyncIterator[Probe]:
    """A limiter, and a client that looks behind it."""
    async with Probe.on(redis_url) as probe:
        yield probe


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[embedded_redis.RunningRedis]:
    """A server that the test may stop, empty or kill."""
    server = embedded_redis.start(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
async def own_probe(own_redis: embedded_redis.RunningRedis) -> AsyncIterator[Probe]:
    """A limiter on a server that the test may stop, empty or kill."""
    async with Probe.on(own_redis.url) as probe:
        yield probe


@pytest.fixture(scope="session")
def installed_redis(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[embedded_redis.RunningRedis]:
    """The `redis-server` of this machine; it lives as long as the session."""
    try:
        server = servers.start_installed(tmp_path_factory.mktemp("installed-redis"))
    except servers.NoServerError as error:
        pytest.fail(str(error), pytrace=False)
    yield server
    server.stop()


@pytest.fixture(params=servers.names())
def redis_under_test(request: pytest.FixtureRequest) -> str:
    """Each server that the script has to run on, by its URL."""
    fixture = "redis_server" if request.param == servers.EMBEDDED else "installed_redis"
    server: embedded_redis.RunningRedis = request.getfixturevalue(fixture)
    return server.url
