"""Fixtures of the maintenance tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dataplane import embedded_redis
from tests.maintenance.nodes import Cluster, cluster_on


@pytest.fixture
async def cluster(redis_url: str) -> AsyncIterator[Cluster]:
    """A key space of its own on the session's server, its counters open."""
    async with cluster_on(redis_url) as cluster:
        yield cluster


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[embedded_redis.RunningRedis]:
    """A server that the test may stop, empty or restart."""
    server = embedded_redis.start(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture
async def own_cluster(own_redis: embedded_redis.RunningRedis) -> AsyncIterator[Cluster]:
    """Nodes on a server that the test may stop, empty or restart; its counters open."""
    async with cluster_on(own_redis.url) as cluster:
        yield cluster
