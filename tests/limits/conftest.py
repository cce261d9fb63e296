"""Fixtures of the limiter's tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dataplane import embedded_redis
from dataplane.limits.limiter import Limiter
from tests.limits.probe import Probe


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
