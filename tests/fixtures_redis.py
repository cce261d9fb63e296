"""Fixtures: one real server for a test session."""

from collections.abc import Iterator

import pytest

from dataplane import embedded_redis


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded_redis.RunningRedis]:
    """A server that lives as long as the session."""
    server = embedded_redis.start(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: embedded_redis.RunningRedis) -> str:
    """The session's server; tests keep apart by their hash tags."""
    return redis_server.url
