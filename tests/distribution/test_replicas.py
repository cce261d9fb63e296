"""What control planes on one PostgreSQL know of each other's nodes, and tell each other for receipts."""

import asyncio
import time

import pytest
from sqlalchemy import text
from tollkeeper.config.v1 import config_service_pb2 as pb

from controlplane.snapshots.peer_messages import (
    CHANNEL,
    Answer,
    Moved,
    Question,
    Told,
    answers,
    from_text,
    to_text,
)
from controlplane.snapshots.peers import Ask
from controlplane.store.database import Store
from controlplane.store.listening import MAX_PAYLOAD_BYTES
from tests.distribution.node import eventually
from tests.distribution.peer_fleets import EPOCH, linked
from tests.distribution.test_listening import hearing, postgresql_only, sqlite_only

REVOCATION = pb.Revocation(revocation_id="4:key-1:7", revision=7, config_epoch=EPOCH)


def ask(*, wait_ms: int = 5_000, epoch: str = EPOCH) -> Ask:
    """Wait for the revocation of revision 7."""
    return Ask(config_epoch=epoch, revision=7, wait_ms=wait_ms, revocation=REVOCATION)


@postgresql_only
async def test_nodes_of_one_are_known_to_the_other_while_they_are_connected(
    database_url: str,
) -> None:
    async with linked(database_url, "cp-a", "own") as a:
        async with linked(database_url, "cp-b", "node-1") as b:
            await eventually(lambda: a.replicas.live_nodes() == {"node-1": "cp-b"})
            assert a.replicas.states() == {"node-1": b"state of node-1"}
            await eventually(lambda: b.replicas.live_nodes() == {"own": "cp-a"})

            begun = time.monotonic()
            b.fleet.move("node-2", 1)
            await eventually(lambda: set(a.replicas.live_nodes()) == {"node-1", "node-2"})
            b.fleet.leave("node-1")
            await eventually(lambda: set(a.replicas.live_nodes()) == {"node-2"})
            # Without a hint it would take one or two intervals of 5 s.
            assert time.monotonic() - begun < 4
        await eventually(lambda: not a.replicas.live_nodes())


@postgresql_only
async def test_nodes_of_a_control_plane_that_died_are_forgotten_after_fifteen_seconds(
    database_url: str,
) -> None:
    store = Store(database_url)
    async with store.ledger() as session:
        await (await session.connection()).execute(
            text(
                "INSERT INTO node_sessions (control_plane_id, node_id, state, heard_at) VALUES"
                " ('dead', 'late', '', now() - interval '14 seconds'),"
                " ('dead', 'gone', '', now() - interval '16 seconds')"
            )
        )
    await store.close()
    async with linked(database_url, "cp-a") as a:
        await eventually(lambda: a.replicas.live_nodes() == {"late": "dead"})
        await eventually(lambda: a.replicas.live_nodes() == {})


@postgresql_only
async def test_who_waits_for_a_revocation_hears_of_the_nodes_of_others_as_they_obey(
    database_url: str,
) -> None:
    async with (
        linked(database_url, "cp-a", "own") as a,
        linked(database_url, "cp-b", "kept", "not-kept", "moved", "deaf") as b,
    ):
        a.replicas.ask(ask())
        await eventually(lambda: b.fleet.revocations == [REVOCATION])
        await eventually(lambda: len(a.fleet.heard) == 4)
        assert a.fleet.heard == [
            ("live", node_id) for node_id in ("deaf", "kept", "moved", "not-kept")
        ]
        begun = time.monotonic()
        b.fleet.acknowledge("kept", REVOCATION.revocation_id)
        b.fleet.acknowledge("not-kept", REVOCATION.revocation_id, is_kept=False)
        b.fleet.move("moved", 7)
        b.fleet.move("deaf", 6)

        await eventually(lambda: len(a.fleet.heard) == 7)
        assert time.monotonic() - begun < 1
        assert a.fleet.heard[4:] == [
            ("ack", "kept", "4:key-1:7", True),
            ("ack", "not-kept", "4:key-1:7", False),
            ("applied", "moved", EPOCH, 7),
        ]
        assert b.fleet.heard == []
        assert a.fleet.revocations == []


@postgresql_only
async def test_what_nodes_did_before_the_question_came_is_told_too(database_url: str) -> None:
    async with (
        linked(database_url, "cp-a") as a,
        linked(database_url, "cp-b", "node-1", "node-2", "node-3") as b,
    ):
        b.fleet.acknowledge("node-1", REVOCATION.revocation_id)
        b.fleet.move("node-2", 9)

        a.replicas.ask(ask())

        await eventually(lambda: len(a.fleet.heard) == 5)
        assert a.fleet.heard[3:] == [
            ("ack", "node-1", "4:key-1:7", True),
            ("applied", "node-2", EPOCH, 7),
        ]


@postgresql_only
async def test_who_waits_for_a_change_hears_where_nodes_stand(database_url: str) -> None:
    async with linked(database_url, "cp-a") as a, linked(database_url, "cp-b", "node-1") as b:
        a.replicas.ask(Ask(config_epoch=EPOCH, revision=3, wait_ms=5_000))
        await eventually(lambda: a.fleet.heard == [("live", "node-1")])
        assert a.replicas.live_nodes() == {"node-1": "cp-b"}

        b.fleet.move("node-1", 2)
        b.fleet.move("node-1", 4)
        b.fleet.move("node-1", 5)

        await eventually(lambda: len(a.fleet.heard) > 1)
        assert a.fleet.heard[1:] == [("applied", "node-1", EPOCH, 3)]
        assert b.fleet.revocations == []


@postgresql_only
async def test_nothing_is_said_when_nobody_waits(database_url: str) -> None:
    async with (
        hearing(database_url, CHANNEL) as spy,
        linked(database_url, "cp-a") as a,
        linked(database_url, "cp-b", "node-1") as b,
    ):
        await eventually(lambda: a.replicas.live_nodes() != {})
        a.replicas.ask(ask(wait_ms=0))
        await eventually(lambda: b.fleet.revocations == [REVOCATION])
        b.fleet.acknowledge("node-1", REVOCATION.revocation_id)
        for revision in range(5):
            b.fleet.move("node-1", revision)
        # Whatever they say to each other comes before this.
        await b.listening.notify(CHANNEL, "the end")
        await eventually(lambda: "the end" in spy.payloads)

        said = [from_text(payload) for payload in spy.payloads]
    assert not [each for each in said if isinstance(each, Answer)]
    assert len([each for each in said if isinstance(each, Moved)]) <= 2


@postgresql_only
async def test_answers_end_when_the_wait_is_over(database_url: str) -> None:
    async with (
        hearing(database_url, CHANNEL) as spy,
        linked(database_url, "cp-a") as a,
        linked(database_url, "cp-b", "node-1") as b,
    ):
        a.replicas.ask(ask(wait_ms=50))
        await eventually(lambda: a.fleet.heard == [("live", "node-1")])
        await asyncio.sleep(0.06)  # what is tested is that time passes
        b.fleet.acknowledge("node-1", REVOCATION.revocation_id)
        await b.listening.notify(CHANNEL, "the end")
        await eventually(lambda: "the end" in spy.payloads)

    assert a.fleet.heard == [("live", "node-1")]
    told = [from_text(payload) for payload in spy.payloads]
    assert len([each for each in told if isinstance(each, Answer)]) == 1


@postgresql_only
async def test_a_thousand_nodes_are_told_in_as_many_announcements_as_they_need(
    database_url: str,
) -> None:
    nodes = [f"node-{number}-{'é' * 60}" for number in range(1_000)]
    async with (
        linked(database_url, "cp-a") as a,
        linked(database_url, "cp-b", *nodes) as b,
    ):
        a.replicas.ask(ask())
        await eventually(lambda: len(a.fleet.heard) == 1_000)
        for node_id in nodes:
            b.fleet.acknowledge(node_id, REVOCATION.revocation_id)
        await eventually(lambda: len(a.fleet.heard) == 2_000)

    assert {each[1] for each in a.fleet.heard[1_000:]} == set(nodes)


@postgresql_only
async def test_questions_of_another_epoch_and_noise_are_not_answered(database_url: str) -> None:
    async with linked(database_url, "cp-a") as a, linked(database_url, "cp-b", "node-1") as b:
        for noise in ("", "{", '{"is": "song"}', '{"is": "ask"}', '{"is": "told", "lines": 5}'):
            await a.listening.notify(CHANNEL, noise)
        unreadable = Question("cp-a", "1", 5_000, EPOCH, 7, b"\xff\xff")
        await a.listening.notify(CHANNEL, to_text(unreadable))
        a.replicas.ask(ask(epoch="t000000000002-0123456789ab"))
        a.replicas.ask(Ask(config_epoch=EPOCH, revision=1, wait_ms=5_000))

        await eventually(lambda: len(a.fleet.heard) == 2)
        assert a.fleet.heard == [("live", "node-1"), ("applied", "node-1", EPOCH, 1)]
        assert b.fleet.revocations == []


@sqlite_only
async def test_on_sqlite_there_are_no_others(database_url: str) -> None:
    async with linked(database_url, "cp-a", "node-1") as a:
        a.replicas.ask(ask())
        a.fleet.move("node-1", 7)
        assert a.replicas.live_nodes() == {}
        assert a.fleet.on_news is None


@pytest.mark.parametrize("count", [0, 1, 200, 5_000])
def test_lines_are_put_into_announcements_that_the_server_takes(count: int) -> None:
    lines = [("0123456789abcdef", f"nöde-{number}", int(Told.KEPT)) for number in range(count)]

    made = list(answers("0123456789ab", lines))

    assert [line for each in made for line in each.lines] == lines
    sizes = [len(to_text(each).encode()) for each in made]
    assert all(size <= MAX_PAYLOAD_BYTES for size in sizes)
    assert all(size > MAX_PAYLOAD_BYTES / 2 for size in sizes[:-1])
    assert [from_text(to_text(each)) for each in made] == made


def test_the_longest_names_fit_into_an_announcement() -> None:
    longest = ("0" * 8, "\x01" * 128, int(Told.LIVE))
    [made] = answers("0" * 64, [longest])
    assert len(to_text(made).encode()) <= MAX_PAYLOAD_BYTES
