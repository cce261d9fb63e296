"""An admit whose outcome its caller never learned: given back, and told of where that came too late."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from dataplane.domain.limiting import Demand, Denied, LimitsUnavailable, Unit, Window
from dataplane.limits.desk import CounterDesk
from dataplane.limits.limiter import Limiter
from dataplane.limits.operations import Find, Reap
from dataplane.limits.pending import LATE_UNDO_SECONDS, Undo
from tests.limits.line import Line, line_to
from tests.limits.plans import only
from tests.limits.probe import Probe

PLAN = only(Unit.SPEND, Window.TOTAL, 100)


@dataclass(slots=True)
class Cut:
    """A limiter on a line of its own, beside one with a good one; `told` are late undos."""

    probe: Probe
    line: Line
    limiter: Limiter
    told: list[str] = field(default_factory=list)

    async def reserve(self, request_id: str, cost: int = 10) -> None:
        await self.limiter.reserve(
            request_id, PLAN, Demand(1, cost), b"{}", lambda: self.told.append(request_id)
        )

    async def until_undone(self) -> None:
        """Wait until everything of the limiter was answered."""
        await self.probe.until(lambda: not self.limiter.queued)

    def wait_a_lease(self) -> None:
        """Let undos that wait have waited for so long already."""
        batcher = self.limiter._batcher
        for each in (*batcher._queues, *batcher._in_flight):
            if isinstance(each, Undo):
                each._since -= LATE_UNDO_SECONDS

    async def reap(self, request_id: str) -> None:
        """Take the owner of a reservation for dead."""
        desk = CounterDesk(self.probe.redis_url, self.probe.keyspace)
        [found] = await desk.run(Find(request_id))
        await desk.run(Reap(request_id, found[2]))
        await desk.aclose()


@pytest.fixture
async def cut(redis_url: str) -> AsyncIterator[Cut]:
    async with Probe.on(redis_url) as probe, line_to(redis_url) as line:
        limiter = await Limiter.connect(line.url, hash_tag=probe.hash_tag)
        yield Cut(probe, line, limiter)
        await limiter.aclose(0.2)


async def lose_the_answer(cut: Cut, request_id: str) -> None:
    """Have an admit take effect whose caller is told that limits are unavailable."""
    cut.line.is_deaf = True
    with pytest.raises(LimitsUnavailable):
        await cut.reserve(request_id)
    cut.line.is_cut = True
    await cut.probe.until(lambda: not cut.limiter.is_available)
    assert await cut.probe.balances(PLAN) == [(0, 10)]


def mend(line: Line) -> None:
    line.is_deaf = line.is_cut = False


async def test_an_admit_whose_answer_was_lost_is_given_back_and_nobody_is_told(cut: Cut) -> None:
    await lose_the_answer(cut, "a")

    mend(cut.line)
    await cut.until_undone()

    assert (await cut.probe.balances(PLAN), cut.told) == ([(0, 0)], [])


async def test_one_that_a_reaper_charged_meanwhile_is_given_back_and_told_of(cut: Cut) -> None:
    await lose_the_answer(cut, "a")
    await cut.reap("a")
    assert await cut.probe.balances(PLAN) == [(10, 0)]
    cut.wait_a_lease()

    mend(cut.line)
    await cut.until_undone()

    assert (await cut.probe.balances(PLAN), cut.told) == ([(0, 0)], ["a"])


async def test_a_caller_that_left_before_its_answer_was_lost_is_told_of_too(cut: Cut) -> None:
    cut.line.is_deaf = True
    leaving = asyncio.create_task(cut.reserve("a"))
    await cut.probe.until(lambda: cut.probe.reservation("a") is not None)
    leaving.cancel()
    await asyncio.wait({leaving})
    cut.line.is_cut = True
    await cut.probe.until(lambda: not cut.limiter.is_available)
    await cut.reap("a")
    cut.wait_a_lease()

    mend(cut.line)
    await cut.until_undone()

    assert (await cut.probe.balances(PLAN), cut.told) == ([(0, 0)], ["a"])


async def test_an_undo_that_never_leaves_is_told_of(cut: Cut) -> None:
    await lose_the_answer(cut, "a")

    assert await cut.limiter.aclose(0.05) >= 1

    assert cut.told == ["a"]


async def test_whoever_is_told_and_fails_disturbs_nobody(
    cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("what they do with it")

    cut.line.is_deaf = True
    with pytest.raises(LimitsUnavailable):
        await cut.limiter.reserve("a", PLAN, Demand(1, 10), b"{}", fail)
    cut.line.is_cut = True
    await cut.probe.until(lambda: not cut.limiter.is_available)
    cut.wait_a_lease()

    mend(cut.line)
    await cut.probe.until(lambda: cut.limiter.is_available)
    await cut.until_undone()

    await cut.reserve("b")
    assert await cut.probe.balances(PLAN) == [(0, 10)]
    assert "a late undo could not be told of" in caplog.text


async def test_a_request_that_is_denied_after_a_lost_attempt_may_ask_for_less(cut: Cut) -> None:
    cut.line.loses = 1
    with pytest.raises(Denied):
        await cut.reserve("a", cost=101)

    await cut.reserve("a", cost=100)

    await cut.until_undone()
    assert await cut.probe.balances(PLAN) == [(0, 100)]


async def test_an_attempt_that_arrives_after_its_call_has_failed_does_nothing(cut: Cut) -> None:
    first = await cut.probe.reserve("first", PLAN, cost=95)
    cut.line.loses = 1
    with pytest.raises(Denied):
        await cut.reserve("a", cost=10)
    first.release()
    await cut.probe.until(lambda: not cut.probe.limiter.queued)

    await cut.line.deliver_late(password_in(cut.line.url))

    assert await cut.probe.balances(PLAN) == [(0, 0)]
    assert cut.probe.reservation("a") is None


async def test_a_denial_while_an_earlier_attempt_may_take_effect_is_an_outage(cut: Cut) -> None:
    # Its calls may take as long as its callers wait.
    cut.limiter._batcher._connection.timeout_seconds = 1.0
    cut.line.loses, cut.line.hangs_up = 1, True

    with pytest.raises(LimitsUnavailable):
        await cut.reserve("a", cost=101)

    await cut.until_undone()
    assert cut.probe.reservation("a") == b"released"
    await cut.line.deliver_late(password_in(cut.line.url))
    assert await cut.probe.balances(PLAN) == [(0, 0)]


def password_in(url: str) -> str:
    return url.split("@")[0].rpartition(":")[2]
