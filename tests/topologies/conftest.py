"""Fixtures of the topology tests."""

from collections.abc import AsyncIterator, Iterator

import pytest

from dataplane import embedded_redis
from tests.topologies import machinery
from tests.topologies.fleet import Fleet, fleet_on
from tests.topologies.machinery import Cluster, Watched, client, client_in, clients_of
from tests.topologies.spread import Spread, spread_over


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes that live as long as the session; tests leave them whole."""
    with machinery.cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def plain_redis(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[embedded_redis.RunningRedis]:
    """A server that no other test knows: here the tags are those of production."""
    server = embedded_redis.start(tmp_path_factory.mktemp("plain"))
    yield server
    server.stop()


@pytest.fixture
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A primary, a replica and sentinels that the test may kill."""
    with machinery.watched(tmp_path_factory.mktemp("watched")) as watched:
        yield watched


@pytest.fixture
async def on_cluster(redis_cluster: Cluster) -> AsyncIterator[Spread]:
    """A sharded limiter on an emptied Cluster."""
    with clients_of(redis_cluster) as clients:
        servers, client_of = list(clients.values()), client_in(redis_cluster, clients)
        async with spread_over(redis_cluster.url, servers, client_of) as spread:
            yield spread


@pytest.fixture
async def on_one_server(plain_redis: embedded_redis.RunningRedis) -> AsyncIterator[Spread]:
    """A sharded limiter on one emptied server that is no Cluster."""
    with client(plain_redis) as one:
        async with spread_over(plain_redis.url, [one], lambda _: one) as spread:
            yield spread


@pytest.fixture(params=["on_cluster", "on_one_server"])
def spread(request: pytest.FixtureRequest) -> Spread:
    """A sharded limiter, on each kind of server."""
    found: Spread = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def cluster_fleet(redis_cluster: Cluster) -> AsyncIterator[Fleet]:
    """Data planes on an emptied Cluster."""
    with clients_of(redis_cluster) as clients:
        client_of = client_in(redis_cluster, clients)
        async with fleet_on(redis_cluster.url, clients.values(), client_of) as fleet:
            yield fleet


@pytest.fixture
async def plain_fleet(plain_redis: embedded_redis.RunningRedis) -> AsyncIterator[Fleet]:
    """Data planes on one emptied server that is no Cluster."""
    with client(plain_redis) as one:
        async with fleet_on(plain_redis.url, [one], lambda _: one) as fleet:
            yield fleet


@pytest.fixture(params=["cluster_fleet", "plain_fleet"])
def fleet(request: pytest.FixtureRequest) -> Fleet:
    """Data planes, on each kind of server."""
    found: Fleet = request.getfixturevalue(request.param)
    return found
