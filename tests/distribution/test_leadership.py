"""Which of several control planes does the periodic work."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from structlog.testing import capture_logs

from controlplane.store.database import Store
from controlplane.store.leadership import Leadership, lock_key
from tests.distribution.node import eventually
from tests.distribution.test_listening import cut_all, postgresql_only, sqlite_only
from tests.fixtures_databases import PostgresServer

TAKEOVER_S = 5.0


@dataclass
class Candidate:
    """A control plane that wants to lead, and what became of its work."""

    leadership: Leadership
    running: int = 0
    ended: int = 0
    fails: bool = False
    task: asyncio.Task[None] | None = field(default=None)

    async def work(self) -> None:
        self.running += 1
        try:
            if self.fails:
                raise ZeroDivisionError
            await asyncio.Event().wait()
        finally:
            self.running -= 1
            self.ended += 1

    @property
    def leads(self) -> bool:
        return self.leadership.is_leader and self.running == 1

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


@asynccontextmanager
async def candidate(
    url: str, *, check_s: float = 0.1, name: str = "work", fails: bool = False
) -> AsyncIterator[Candidate]:
    store = Store(url)
    made = Candidate(Leadership(store, name, check_s=check_s), fails=fails)
    made.task = asyncio.create_task(made.leadership.run(made.work))
    try:
        yield made
    finally:
        await made.stop()
        assert not made.leadership.is_leader
        assert made.running == 0
        await store.close()


@postgresql_only
async def test_one_of_several_leads_and_when_it_stops_another_one_does(database_url: str) -> None:
    async with AsyncExitStack() as stack:
        three = [await stack.enter_async_context(candidate(database_url)) for _ in range(3)]
        for left in (3, 2, 1):
            await eventually(lambda: any(each.leads for each in three), TAKEOVER_S)
            [leader] = [each for each in three if each.leads]
            assert sum(each.running for each in three) == 1
            await leader.stop()
            three.remove(leader)
            assert len(three) == left - 1


@postgresql_only
async def test_a_leader_whose_connection_is_cut_stops_its_work_and_another_one_leads(
    database_url: str, postgres_server: PostgresServer
) -> None:
    async with candidate(database_url) as one, candidate(database_url) as other:
        await eventually(lambda: one.leads or other.leads, TAKEOVER_S)
        leader, follower = (one, other) if one.leads else (other, one)
        begun = time.monotonic()

        cut_leader(postgres_server, database_url)

        await eventually(lambda: leader.ended == 1 and follower.leads, 3 * TAKEOVER_S)
        assert time.monotonic() - begun < TAKEOVER_S


@postgresql_only
async def test_candidates_that_all_lose_their_connections_have_a_leader_again(
    database_url: str, postgres_server: PostgresServer
) -> None:
    async with candidate(database_url) as one, candidate(database_url) as other:
        await eventually(lambda: one.leads or other.leads, TAKEOVER_S)
        leader = one if one.leads else other

        cut_all(postgres_server, database_url)

        await eventually(lambda: leader.ended == 1, TAKEOVER_S)
        await eventually(lambda: one.leads != other.leads, 3 * TAKEOVER_S)


def cut_leader(server: PostgresServer, url: str) -> None:
    """End the connections that hold a leader's lock."""
    name = url.partition("?")[0].rpartition("/")[2]
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())",
        name,
    )


@postgresql_only
async def test_a_leader_that_stands_still_loses_the_lead(database_url: str) -> None:
    # It would make sure that it leads once a minute: to the server that is silence.
    async with candidate(database_url, check_s=60) as silent:
        await eventually(lambda: silent.leads)
        async with candidate(database_url) as other:
            begun = time.monotonic()
            await eventually(lambda: other.leads, 2 * TAKEOVER_S)
            assert time.monotonic() - begun < TAKEOVER_S
            await eventually(lambda: silent.ended == 1 and not silent.leadership.is_leader)


@postgresql_only
async def test_different_works_may_have_different_leaders(database_url: str) -> None:
    async with (
        candidate(database_url, name="one") as one,
        candidate(database_url, name="other") as other,
    ):
        await eventually(lambda: one.leads and other.leads)


async def test_work_that_fails_is_begun_again(database_url: str) -> None:
    with capture_logs() as logs:
        async with candidate(database_url, fails=True) as failing:
            await eventually(lambda: failing.ended >= 2)
            failing.fails = False
            await eventually(lambda: failing.leads)

    failures = [each for each in logs if each["event"] == "work failed"]
    assert len(failures) == failing.ended - 1


@sqlite_only
async def test_on_sqlite_the_only_control_plane_leads_at_once(database_url: str) -> None:
    async with candidate(database_url) as only:
        await eventually(lambda: only.leads)


def test_the_lock_of_a_work_is_a_number_that_the_database_takes() -> None:
    keys = {lock_key(f"work {n}") for n in range(1_000)}
    assert len(keys) == 1_000
    assert all(-(2**63) <= key < 2**63 for key in keys)
