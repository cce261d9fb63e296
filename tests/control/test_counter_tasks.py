"""Work on the counters that a control plane asks for, and what heartbeats say of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs
from tollkeeper.common.v1 import limits_pb2
from tollkeeper.config.v1 import config_service_pb2 as pb

from dataplane.control import counter_tasks
from dataplane.control.counter_messages import (
    SUBJECT_KINDS,
    TASK_KINDS,
    UNITS,
    WINDOWS,
    counter_from_proto,
    counter_to_proto,
)
from dataplane.control.counter_tasks import CounterTasks
from dataplane.control.watch import Condition
from dataplane.domain.counters import (
    CounterDifference,
    CounterName,
    CounterReport,
    CounterTask,
    CounterTaskKind,
    LedgerUnavailable,
)
from dataplane.domain.limiting import LimitsUnavailable, SubjectKind, Unit, Window
from tests.control.configurations import configuration
from tests.control.scripted import ScriptedControlPlane, full, revocation
from tests.control.watching import watching

COUNTER = CounterName(SubjectKind.MODEL, "a:b", Unit.TOKENS, Window.DAY, "20261121", 3)


@asynccontextmanager
async def asking(**options: Any) -> AsyncIterator[ScriptedControlPlane]:
    """Yield a control plane that a watch with `options` listens to."""
    async with watching(heartbeat_ms=50, **options) as it:
        # A control plane that is alive says so.
        beating = asyncio.create_task(_beat(it.control_plane))
        try:
            yield it.control_plane
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


async def _beat(control_plane: ScriptedControlPlane) -> None:
    while True:
        control_plane.say(pb.StreamConfigResponse(heartbeat=pb.Heartbeat()))
        await asyncio.sleep(0.03)


def task(
    task_id: str, kind: pb.CounterTaskKind.ValueType = pb.COUNTER_TASK_KIND_VERIFY
) -> pb.StreamConfigResponse:
    return pb.StreamConfigResponse(counter_task=pb.CounterTask(task_id=task_id, kind=kind))


async def report(control_plane: ScriptedControlPlane) -> pb.CounterReport:
    return (await control_plane.hear("counter_report")).counter_report


@pytest.mark.parametrize("kind", CounterTaskKind)
async def test_a_task_is_done_and_its_outcome_told(kind: CounterTaskKind) -> None:
    asked: list[CounterTask] = []

    async def work(it: CounterTask) -> CounterReport:
        asked.append(it)
        found = CounterDifference(COUNTER, 5, 4, held=3, reserved=2, is_repaired=True)
        return CounterReport(it.task_id, compared=7, differing=1, differences=(found,))

    async with asking(on_counter_task=work) as control_plane:
        control_plane.say(task("t1", TASK_KINDS[kind]))
        answer = await report(control_plane)

    assert asked == [CounterTask("t1", kind)]
    [found] = answer.differences
    assert found == limits_pb2.CounterDifference(
        counter=counter_to_proto(COUNTER), settled=5, ledger=4, held=3, reserved=2, repaired=True
    )
    assert (answer.task_id, answer.problem, answer.compared, answer.differing) == ("t1", "", 7, 1)


async def test_tasks_are_done_one_at_a_time_while_the_stream_goes_on() -> None:
    go_on = asyncio.Event()
    order: list[str] = []

    async def work(it: CounterTask) -> CounterReport:
        order.append(f"begin {it.task_id}")
        await go_on.wait()
        order.append(f"end {it.task_id}")
        return CounterReport(it.task_id)

    async with asking(on_counter_task=work) as control_plane:
        control_plane.say(task("t1"), task("t2"))
        control_plane.say(*full(1, configuration(1), 1), revocation("key000000001", 2))
        await control_plane.hear("revocation_ack")
        assert order == ["begin t1"]
        go_on.set()
        answers = [await report(control_plane), await report(control_plane)]

    assert [each.task_id for each in answers] == ["t1", "t2"]
    assert order == ["begin t1", "end t1", "begin t2", "end t2"]


async def test_a_task_too_many_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[pb.StreamConfigRequest] = []

    async def work(it: CounterTask) -> CounterReport:
        raise AssertionError("nothing runs")

    tasks = CounterTasks(work)
    for number in range(counter_tasks.MAX_WAITING + 1):
        tasks.take(task(f"t{number}").counter_task, said.append)

    [refused] = [each.counter_report for each in said]
    assert (refused.task_id, refused.problem) == ("t8", counter_tasks.TOO_MANY)


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (LimitsUnavailable("redis://:secret@host"), counter_tasks.NO_COUNTERS),
        (LedgerUnavailable("secret"), counter_tasks.NO_LEDGER),
        (TimeoutError("secret"), counter_tasks.TOO_LONG),
        (ZeroDivisionError("secret"), counter_tasks.FAULT),
    ],
)
async def test_a_task_that_fails_says_why_in_our_words_and_the_next_one_runs(
    failure: Exception, problem: str
) -> None:
    failures = iter([failure])

    async def work(it: CounterTask) -> CounterReport:
        for each in failures:
            raise each
        return CounterReport(it.task_id, compared=1)

    with capture_logs():
        async with asking(on_counter_task=work) as control_plane:
            control_plane.say(task("t1"), task("t2"))
            first, second = await report(control_plane), await report(control_plane)

    assert (first.task_id, first.problem) == ("t1", problem)
    assert (second.task_id, second.problem, second.compared) == ("t2", "", 1)
    assert len(control_plane.tokens) == 1


async def test_a_task_without_an_end_is_given_up() -> None:
    said: asyncio.Queue[pb.StreamConfigRequest] = asyncio.Queue()

    async def work(it: CounterTask) -> CounterReport:
        await asyncio.Event().wait()
        return CounterReport(it.task_id)

    tasks = CounterTasks(work, task_seconds=0.02)
    tasks.take(task("t1").counter_task, said.put_nowait)
    running = asyncio.create_task(tasks.run(said.put_nowait))
    async with asyncio.timeout(5):
        answer = (await said.get()).counter_report
    running.cancel()

    assert answer.problem == counter_tasks.TOO_LONG


async def test_a_report_names_its_own_task_and_at_most_a_thousand_differences() -> None:
    async def work(it: CounterTask) -> CounterReport:
        found = CounterDifference(COUNTER, 5, 4)
        return CounterReport("another", differing=1_500, differences=(found,) * 1_500)

    async with asking(on_counter_task=work) as control_plane:
        control_plane.say(task("t1"))
        answer = await report(control_plane)

    assert (answer.task_id, answer.differing, len(answer.differences)) == ("t1", 1_500, 1_000)


async def test_tasks_that_are_not_known_or_not_for_this_node_are_met_with_silence() -> None:
    async def work(it: CounterTask) -> CounterReport:
        return CounterReport(it.task_id)

    async with asking(on_counter_task=work) as control_plane:
        control_plane.say(task("newer", 99), task("t2"))  # type: ignore[arg-type] # that is the point
        assert (await report(control_plane)).task_id == "t2"

    async with asking() as control_plane:
        control_plane.say(task("t3"), *full(1, configuration(1), 1))
        heard: list[str | None] = []
        while not heard or heard[-1] != "ack":
            heard.append((await control_plane.heard.get()).WhichOneof("message"))
    assert "counter_report" not in heard


async def test_a_task_ends_with_its_stream_and_the_next_stream_has_its_own() -> None:
    begun: list[str] = []
    cancelled: list[str] = []

    async def work(it: CounterTask) -> CounterReport:
        begun.append(it.task_id)
        if it.task_id == "t1":
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(it.task_id)
        return CounterReport(it.task_id)

    async with asking(on_counter_task=work) as control_plane:
        control_plane.say(task("t1"))
        await control_plane.hear("heartbeat")
        async with asyncio.timeout(5):
            while not begun:
                await asyncio.sleep(0.005)
        control_plane.say(None)
        await control_plane.hear("hello")
        control_plane.say(task("t2"))
        assert (await report(control_plane)).task_id == "t2"

    assert cancelled == ["t1"]


async def test_heartbeats_say_who_maintains_the_counters_and_how_far_usage_lags() -> None:
    oldest: list[int | None] = [None]
    async with asking(
        condition=Condition(
            maintains_counters=lambda: oldest[0] is not None,
            oldest_unreported_ms=lambda: oldest[0],
        )
    ) as control_plane:
        before = (await control_plane.hear("heartbeat")).heartbeat
        oldest[0] = 1_792_000_000_123
        after = before
        while not after.maintains_counters:
            after = (await control_plane.hear("heartbeat")).heartbeat

    assert not before.maintains_counters
    assert not before.HasField("oldest_unreported_at")
    assert after.oldest_unreported_at.ToMilliseconds() == 1_792_000_000_123


def test_a_counter_is_the_same_on_both_planes() -> None:
    assert counter_from_proto(counter_to_proto(COUNTER)) == COUNTER
    newer = counter_to_proto(COUNTER)
    newer.subject_kind = 99  # type: ignore[assignment] # of a newer control plane
    assert counter_from_proto(newer) is None


@pytest.mark.parametrize(
    ("table", "ours", "prefix", "theirs"),
    [
        (SUBJECT_KINDS, SubjectKind, "SUBJECT_KIND_", limits_pb2.SubjectKind),
        (UNITS, Unit, "LIMIT_UNIT_", limits_pb2.LimitUnit),
        (WINDOWS, Window, "LIMIT_WINDOW_", limits_pb2.LimitWindow),
        (TASK_KINDS, CounterTaskKind, "COUNTER_TASK_KIND_", pb.CounterTaskKind),
    ],
)
def test_tables_name_every_value_of_both_sides_alike(
    table: dict[Any, int], ours: Any, prefix: str, theirs: Any
) -> None:
    named = {
        each: f"{prefix}{'UNSPECIFIED' if each is Window.NONE else each.value.upper()}"
        for each in ours
    }
    assert {each: theirs.Name(number) for each, number in table.items()} == named
    assert set(theirs.values()) - {0} == set(table.values()) - {0}
