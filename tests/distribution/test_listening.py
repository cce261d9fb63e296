"""What control planes hear of each other through PostgreSQL, on a connection that may be lost."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from controlplane.store.database import Store
from controlplane.store.listening import MAX_PAYLOAD_BYTES, Listening
from controlplane.store.tables import Organization
from controlplane.store.transactions import NOTIFY_CHANNEL
from tests.distribution.node import eventually
from tests.fixtures_databases import PostgresServer

CHANNEL = "tollkeeper_test"

postgresql_only = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Heard:
    """A listener and what it heard."""

    def __init__(self, store: Store, *channels: str) -> None:
        self.payloads: list[str] = []
        self.connections = 0
        self.listening = Listening(store)
        for channel in channels or (CHANNEL,):
            self.listening.listen(channel, self.payloads.append)
        self.listening.on_connected(self._count)

    def _count(self) -> None:
        self.connections += 1


@asynccontextmanager
async def hearing(url: str, *channels: str) -> AsyncIterator[Heard]:
    """Listen on a store of its own, as another control plane does."""
    store = Store(url)
    heard = Heard(store, *channels)
    task = asyncio.create_task(heard.listening.run())
    try:
        await eventually(lambda: heard.connections > 0)
        yield heard
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await store.close()


def cut_all(server: PostgresServer, url: str) -> None:
    """End every connection to a database."""
    name = url.partition("?")[0].rpartition("/")[2]
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"  # noqa: S608
        f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )


@postgresql_only
async def test_what_one_announces_all_hear_in_order(database_url: str) -> None:
    async with hearing(database_url) as one, hearing(database_url) as other:
        for number in range(20):
            assert await one.listening.notify(CHANNEL, str(number))
        expected = [str(number) for number in range(20)]

        await eventually(lambda: one.payloads == expected and other.payloads == expected)


@postgresql_only
async def test_a_commit_is_heard_within_moments(database_url: str) -> None:
    store = Store(database_url)
    async with hearing(database_url, NOTIFY_CHANNEL) as heard:
        async with store.transaction("ann", "x") as tx:
            tx.add(Organization(id="a", name="a", created_at=tx.now, updated_at=tx.now))
        begun = time.monotonic()
        await eventually(lambda: heard.payloads == ["1"])
        assert time.monotonic() - begun < 0.5
    await store.close()


@postgresql_only
async def test_a_connection_that_is_cut_comes_back_and_wakes_who_may_have_missed_something(
    database_url: str, postgres_server: PostgresServer
) -> None:
    async with hearing(database_url) as heard:
        with capture_logs() as logs:
            cut_all(postgres_server, database_url)
            await eventually(lambda: heard.connections == 2)
        assert await heard.listening.notify(CHANNEL, "again")
        await eventually(lambda: heard.payloads == ["again"])

    assert [each["log_level"] for each in logs] == ["warning", "info"]


@postgresql_only
async def test_options_of_the_url_mean_what_they_mean_to_the_engine(database_url: str) -> None:
    options = "&prepared_statement_cache_size=0&ssl=disable"
    async with hearing(database_url + options) as heard:
        await heard.listening.notify(CHANNEL, "x")
        await eventually(lambda: heard.payloads == ["x"])


@postgresql_only
async def test_as_much_is_announced_as_the_server_takes(database_url: str) -> None:
    async with hearing(database_url) as heard:
        longest = "x" * MAX_PAYLOAD_BYTES
        assert await heard.listening.notify(CHANNEL, longest)
        with pytest.raises(ValueError, match="cannot be announced"):
            await heard.listening.notify(CHANNEL, longest + "x")
        await eventually(lambda: heard.payloads == [longest])


@postgresql_only
async def test_a_listener_that_fails_does_not_end_the_listening(database_url: str) -> None:
    async with hearing(database_url) as heard:

        def fail(payload: str) -> None:
            heard.payloads.append(payload)
            raise ZeroDivisionError

        heard.listening.listen(CHANNEL, fail)
        with capture_logs() as logs:
            for payload in ("1", "2"):
                await heard.listening.notify(CHANNEL, payload)
            await eventually(lambda: heard.payloads == ["1", "2"])
    assert [each["event"] for each in logs if each["log_level"] == "error"] == [
        "a listener failed",
        "a listener failed",
    ]


async def test_a_server_that_is_away_is_tried_again_and_nobody_waits_for_it(
    tmp_path: Path,
) -> None:
    store = Store(f"postgresql+asyncpg://postgres@/x?host={tmp_path}")
    tries: list[float] = []

    def no_pause(shortest: float, longest: float) -> float:
        tries.append(longest)
        return 0.0

    listening = Listening(store, jitter=no_pause)
    with capture_logs() as logs:
        task = asyncio.create_task(listening.run())
        await eventually(lambda: len(tries) >= 9)
        assert await listening.notify(CHANNEL, "x") is False
        assert not listening.is_connected
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await store.close()

    # It is said once, and the pauses grow up to a bound.
    assert [each["event"] for each in logs] == ["listening interrupted"]
    assert tries[:3] == [0.1, 0.2, 0.4]
    assert max(tries) == 5.0


@sqlite_only
async def test_on_sqlite_there_is_nobody_to_hear(database_url: str) -> None:
    store = Store(database_url)
    heard = Heard(store)
    await asyncio.wait_for(heard.listening.run(), 1)
    assert await heard.listening.notify(CHANNEL, "x") is False
    await store.close()
