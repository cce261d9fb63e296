"""Callers who were refused, or left, while the counters let them in: nobody charges them for that."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace as changed

from dataplane.admitting import Admitting
from dataplane.domain.calls import UsageEvent, UsageState
from dataplane.domain.plan_cache import PlanCache
from dataplane.domain.principals import LimitEntry, User
from dataplane.embedded_redis import RunningRedis
from dataplane.limits.counters import Keyspace
from dataplane.limits.desk import CounterDesk, open_counters
from dataplane.limits.emergency import Emergency
from dataplane.limits.limiter import Limiter
from dataplane.limits.operations import Find, Reap
from dataplane.limits.pending import LATE_UNDO_SECONDS, Undo
from dataplane.maintenance.reaping import abandoned_event
from tests.limits.line import Line, line_to
from tests.pipeline.conftest import DataPlane
from tests.pipeline.wire import check_refusal

BUDGET = (LimitEntry("spend", "month", 10**9),)
# Both ways in lead to the same door.
pytestmark = pytest.mark.parametrize("way_in", ["entry"])


@dataclass(slots=True)
class CutOff:
    """A data plane on a line of its own to its counters, and a desk that has a good one."""

    plane: DataPlane
    line: Line
    limiter: Limiter
    desk: CounterDesk

    async def leases(self) -> list[str]:
        held: Any = await self.desk.client.zrange(self.desk.keyspace.leases, 0, -1)
        return [each.decode() for each in held]

    async def until_held(self) -> None:
        """Wait until a request is held."""
        async with asyncio.timeout(3.0):
            while not await self.leases():
                await asyncio.sleep(0.005)

    async def reaped(self) -> UsageEvent:
        """Cut the line for longer than a lease; return what is reported of the request meanwhile."""
        [request_id] = await self.leases()
        self.line.is_cut = True
        await self.plane.until(lambda: not self.limiter.is_available)
        [found] = await self.desk.run(Find(request_id))
        await self.desk.run(Reap(request_id, found[2]))
        for each in self.limiter._batcher._queues:
            if isinstance(each, Undo):
                each._since -= LATE_UNDO_SECONDS
        event = abandoned_event(request_id, found[3], found[2], self.desk.keyspace)
        assert event is not None
        return event

    async def mended(self) -> None:
        """Mend the line, and wait until nothing is queued."""
        self.line.is_cut = self.line.is_deaf = False
        await self.plane.until(lambda: not self.limiter.queued)

    async def spent(self) -> list[tuple[int, int]]:
        found = await self.limiter.balances(self.plane.plan)
        return [(each.settled, each.held) for each in found]


@pytest_asyncio.fixture
async def cut_off(
    data_plane: DataPlane, redis_server: RunningRedis, tmp_path: Path
) -> AsyncIterator[CutOff]:
    hash_tag, pipeline = secrets.token_hex(6), data_plane.pipeline
    await open_counters(redis_server.url, hash_tag)
    desk = CounterDesk(redis_server.url, Keyspace(hash_tag))
    emergency = Emergency(tmp_path, pipeline.clock_ms)
    async with line_to(redis_server.url) as line:
        limiter = await Limiter.connect(line.url, hash_tag=hash_tag)
        pipeline.admitting = Admitting(limiter, pipeline.bills, pipeline.clock_ms, emergency)
        data_plane.limited(user=BUDGET)
        yield CutOff(data_plane, line, limiter, desk)
        await limiter.aclose(0.2)
    emergency.close()
    await desk.aclose()


def check_retracted(plane: DataPlane, abandoned: UsageEvent) -> None:
    """Check that the last word on an abandoned request is that it was released."""
    assert (abandoned.state, abandoned.charged_nanousd > 0) == (UsageState.ABANDONED, True)
    [event] = plane.records.closes
    assert (event.request_id, event.state) == (abandoned.request_id, UsageState.RELEASED)
    assert (event.cost_nanousd, event.charged_nanousd, event.usage.total_tokens) == (0, 0, 0)
    assert (event.http_status, event.error_code) == (503, "limits_unavailable")
    assert (event.user, event.model) == (abandoned.user, abandoned.model)
    assert plane.records.opens == []


async def test_a_caller_who_was_refused_is_not_charged_where_the_node_was_taken_for_dead(
    cut_off: CutOff,
) -> None:
    cut_off.line.is_deaf = True
    check_refusal(await cut_off.plane.chat(max_tokens=100), 503, "limits_unavailable", "openai")
    abandoned = await cut_off.reaped()

    await cut_off.mended()

    check_retracted(cut_off.plane, abandoned)
    assert await cut_off.spent() == [(0, 0)]


async def test_a_caller_who_left_while_the_counters_were_asked_is_not_charged_either(
    cut_off: CutOff,
) -> None:
    cut_off.line.is_deaf = True
    asking = asyncio.create_task(cut_off.plane.chat(max_tokens=100))
    await cut_off.until_held()
    asking.cancel()
    await asyncio.wait({asking})
    abandoned = await cut_off.reaped()

    await cut_off.mended()

    check_retracted(cut_off.plane, abandoned)
    assert await cut_off.spent() == [(0, 0)]


async def test_of_a_refused_caller_whose_hold_was_given_back_in_time_there_is_no_record(
    cut_off: CutOff,
) -> None:
    cut_off.line.is_deaf = True
    check_refusal(await cut_off.plane.chat(max_tokens=100), 503, "limits_unavailable", "openai")

    await cut_off.mended()

    assert cut_off.plane.records.closes == []
    assert await cut_off.spent() == [(0, 0)]


async def test_a_caller_who_was_served_without_the_counters_is_charged_for_that_alone(
    cut_off: CutOff,
) -> None:
    plane = cut_off.plane
    open_fails(plane)
    cut_off.line.is_deaf = True
    assert (await plane.chat(max_tokens=100)).status_code == 200
    abandoned = await cut_off.reaped()

    await cut_off.mended()

    [event] = plane.records.closes
    assert (event.request_id, event.state) == (abandoned.request_id, UsageState.SETTLED)
    assert event.is_degraded


def open_fails(plane: DataPlane) -> None:
    """Let the caller's organization be served within emergency limits."""
    snapshot = plane.configuration.get()
    [(digest, key)] = snapshot.keys_by_sha256.items()
    user = key.principal.user
    opened: User = changed(user, organization=replace(user.organization, fails_open=True))
    keys = {digest: changed(key, principal=changed(key.principal, user=opened))}
    plane.use(replace(snapshot, keys_by_sha256=keys, _plans=PlanCache()))
