"""Work on the counters: the data plane that maintains them is asked on its stream, and its report is waited for."""

import asyncio
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.domain.errors import DeadlineError, LimitsUnavailableError, OverloadedError
from controlplane.rpc.node_views import node_to_proto
from controlplane.snapshots.counter_tasks import MAX_RUNNING
from controlplane.snapshots.fleet import Fleet
from controlplane.snapshots.opening import secret_opener
from tests.distribution.conftest import SEALER, Connect, ControlPlane
from tests.distribution.node import Node, eventually

VERIFY = pb.COUNTER_TASK_KIND_VERIFY
Report = tuple[str, pb.CounterReport]


def ask(control_plane: ControlPlane, deadline_s: float = 5.0) -> asyncio.Task[Report]:
    return asyncio.create_task(control_plane.fleet.run_counter_task(VERIFY, deadline_s))


async def heard(node: Node) -> pb.CounterTask:
    """Read up to the next task."""
    message = await node.read_until(lambda each: each.HasField("counter_task"))
    return message.counter_task


async def join(
    control_plane: ControlPlane, connect: Connect, name: str, *, maintains: bool
) -> Node:
    """Connect a node, and wait until it is known whether it maintains the counters."""
    node = await connect()
    await node.hello(name)
    await node.follow()
    await node.say(heartbeat=pb.Heartbeat(maintains_counters=maintains, unreported_records=7))
    await eventually(
        lambda: any(
            each.node_id == name and each.unreported_records
            for each in control_plane.fleet.watchers()
        )
    )
    return node


async def test_the_node_that_maintains_the_counters_is_asked_and_its_report_comes_back(
    control_plane: ControlPlane, connect: Connect
) -> None:
    await join(control_plane, connect, "node-1", maintains=False)
    maintainer = await join(control_plane, connect, "node-2", maintains=True)

    waiting = ask(control_plane)
    task = await heard(maintainer)
    report = pb.CounterReport(task_id=task.task_id, compared=12, differing=1)
    await maintainer.say(counter_report=report)

    assert await waiting == ("node-2", report)
    assert task.kind == VERIFY


async def test_a_lease_that_moved_is_followed_by_the_heartbeats(
    control_plane: ControlPlane, connect: Connect
) -> None:
    before = await join(control_plane, connect, "node-1", maintains=True)
    after = await join(control_plane, connect, "node-2", maintains=True)
    # Both say so until the first one notices: the later word counts.
    waiting = ask(control_plane)
    task = await heard(after)
    await after.say(counter_report=pb.CounterReport(task_id=task.task_id))
    assert (await waiting)[0] == "node-2"

    await after.say(heartbeat=pb.Heartbeat(maintains_counters=False))
    await eventually(lambda: not control_plane.fleet.watchers()[1].maintains_counters)
    waiting = ask(control_plane)
    task = await heard(before)
    await before.say(counter_report=pb.CounterReport(task_id=task.task_id))

    assert (await waiting)[0] == "node-1"


async def test_without_a_node_that_maintains_them_nobody_is_waited_for(
    control_plane: ControlPlane, connect: Connect
) -> None:
    with pytest.raises(LimitsUnavailableError):
        await ask(control_plane)

    await join(control_plane, connect, "node-1", maintains=False)

    # It may be connected elsewhere: who asks learns where to go on.
    with pytest.raises(LimitsUnavailableError, match=r"to this control plane .* ask another one"):
        await ask(control_plane)


async def test_a_node_that_goes_away_meanwhile_ends_the_wait(
    control_plane: ControlPlane, connect: Connect
) -> None:
    node = await join(control_plane, connect, "node-1", maintains=True)
    waiting = ask(control_plane, deadline_s=30)
    await heard(node)

    await node.call.done_writing()

    with pytest.raises(LimitsUnavailableError, match="went away"):
        await asyncio.wait_for(waiting, 5)


async def test_a_node_that_stays_silent_is_waited_for_until_the_deadline(
    control_plane: ControlPlane, connect: Connect
) -> None:
    node = await join(control_plane, connect, "node-1", maintains=True)

    waiting = ask(control_plane, deadline_s=0.2)
    task = await heard(node)
    with pytest.raises(DeadlineError):
        await asyncio.wait_for(waiting, 5)

    # Too late is no harm, and neither is a report of a task that never was.
    await node.say(counter_report=pb.CounterReport(task_id=task.task_id))
    await node.say(counter_report=pb.CounterReport(task_id="x"))
    again = ask(control_plane)
    second = await heard(node)
    await node.say(counter_report=pb.CounterReport(task_id=second.task_id, compared=3))
    assert (await again)[1].compared == 3


async def test_another_node_cannot_report_for_the_one_that_was_asked(
    control_plane: ControlPlane, connect: Connect
) -> None:
    stranger = await join(control_plane, connect, "node-1", maintains=False)
    maintainer = await join(control_plane, connect, "node-2", maintains=True)
    waiting = ask(control_plane)
    task = await heard(maintainer)

    await stranger.say(counter_report=pb.CounterReport(task_id=task.task_id, compared=1))
    await stranger.say(heartbeat=pb.Heartbeat(unreported_records=99))
    await eventually(lambda: control_plane.fleet.watchers()[0].unreported_records == 99)
    assert not waiting.done()
    await maintainer.say(counter_report=pb.CounterReport(task_id=task.task_id, compared=2))

    assert (await waiting)[1].compared == 2


async def test_more_tasks_than_a_few_are_refused_and_a_withdrawn_one_makes_room(
    control_plane: ControlPlane, connect: Connect
) -> None:
    await join(control_plane, connect, "node-1", maintains=True)
    running = [ask(control_plane) for _ in range(MAX_RUNNING)]
    await asyncio.sleep(0)

    with pytest.raises(OverloadedError):
        await ask(control_plane)
    for each in running:
        each.cancel()
    await asyncio.wait(running)

    with pytest.raises(DeadlineError):
        await ask(control_plane, deadline_s=0)


async def test_a_task_that_was_not_sent_in_time_is_not_sent_any_more() -> None:
    fleet = Fleet(secret_opener(SEALER))
    watcher = fleet.attach(pb.Hello(node_id="node-1", boot_id="b"))
    watcher.hear_heartbeat(pb.Heartbeat(maintains_counters=True))

    with pytest.raises(DeadlineError):
        await fleet.run_counter_task(VERIFY, 0)

    assert watcher.next_message(fleet.now_s()) is None


async def test_an_administrator_sees_who_maintains_the_counters_and_who_is_behind(
    control_plane: ControlPlane, connect: Connect
) -> None:
    node = await join(control_plane, connect, "node-1", maintains=True)
    (watcher,) = control_plane.fleet.watchers()
    oldest = Timestamp(seconds=1_795_000_000)

    def shown() -> tuple[bool, bool]:
        now_s = control_plane.fleet.now_s()
        found = node_to_proto(watcher, datetime.now(UTC), now_s, "cp-1")
        assert found.oldest_unreported_at in (oldest, Timestamp())
        return found.maintains_counters, found.HasField("oldest_unreported_at")

    assert shown() == (True, False)
    await node.say(heartbeat=pb.Heartbeat(oldest_unreported_at=oldest))
    await eventually(lambda: shown() == (False, True))
    await node.say(heartbeat=pb.Heartbeat(oldest_unreported_at=Timestamp(seconds=2**40)))
    await eventually(lambda: shown() == (False, False))
