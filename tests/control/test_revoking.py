"""Revocations overtake everything, count at once, and are answered when they are kept."""

import pytest
from structlog.testing import capture_logs
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2 as res

from dataplane.control import revoking
from dataplane.control.holdings import Change, Key
from dataplane.control.kept import Kept, KeptRevocation
from dataplane.control.raw_resources import RawResource
from dataplane.control.transfers import position_from_proto
from dataplane.domain.digest import resource_hash
from dataplane.domain.refusals import Refusal
from tests.control.configurations import EPOCH, configuration, position_of
from tests.control.scripted import full, none, revocation
from tests.control.watching import Watching, until, watching

_KEY_1 = ("key", "key000000001")


async def _answer(it: Watching) -> pb.RevocationAck:
    return (await it.control_plane.hear("revocation_ack")).revocation_ack


async def test_a_revocation_overtakes_a_transfer_that_is_half_received() -> None:
    async with watching() as it:
        it.control_plane.say(*full(1, configuration(3), 5))
        await it.control_plane.hear("ack")
        begin, first, second, end = full(2, configuration(4), 6)

        it.control_plane.say(begin, first, revocation("key000000001", 7))
        answer = await _answer(it)

        assert (answer.revocation_id, answer.is_kept) == ("key000000001:7", True)
        assert (it.revision, set(it.current.get().revoked)) == (5, {_KEY_1})
        it.control_plane.say(second, end)
        await it.control_plane.hear("ack")
        assert (it.revision, set(it.current.get().revoked)) == (6, {_KEY_1})


async def test_revocations_count_while_transfers_are_refused() -> None:
    broken = res.Resource(kind=res.RESOURCE_KIND_ROUTER, id="r2", revision=1, payload=b"\xff")
    async with watching() as it:
        it.control_plane.say(*full(1, configuration(3), 5))
        await it.control_plane.hear("ack")
        for number in (6, 7, 8):
            it.control_plane.say(*full(number, [*configuration(3), broken], number))
            await it.control_plane.hear("nack")
            it.control_plane.say(revocation("key000000001", number))
            assert (await _answer(it)).revocation_id == f"key000000001:{number}"
        assert (it.revision, set(it.current.get().revoked)) == (5, {_KEY_1})
        assert it.watch.figures.nacks_total["invalid"] == 3


async def test_a_slow_disk_holds_answers_to_revocations_up_and_nothing_else() -> None:
    async with watching() as it:
        it.control_plane.say(*full(1, configuration(9), 5))
        await it.control_plane.hear("ack")
        it.disk.is_working.clear()
        for number in range(5):
            it.control_plane.say(revocation(f"key{number:09d}", 6 + number))
        it.control_plane.say(*full(2, configuration(8), 5))

        # The transfer came after them, and is answered before them.
        await it.control_plane.hear("ack")
        assert len(it.current.get().revoked) == 5
        assert not it.disk.revocations
        it.disk.is_working.set()

        heard = [(await _answer(it)).revocation_id for _ in range(5)]
        assert heard == [f"key{number:09d}:{6 + number}" for number in range(5)]
        assert [each.revision for each in it.disk.revocations] == [6, 7, 8, 9, 10]
        assert len(it.control_plane.tokens) == 1


async def test_a_full_disk_is_told_and_the_revocation_counts_all_the_same() -> None:
    async with watching() as it:
        it.disk.is_full = True
        it.control_plane.say(*full(1, configuration(3), 5), revocation("key000000001", 6))
        with capture_logs() as logs:
            assert not (await _answer(it)).is_kept
        await until(lambda: it.revision == 5)
        assert it.current.get().revoked == {_KEY_1}
        assert it.watch.figures.unkept_revocations_total == 1
    assert "revocations_not_kept" in [each["event"] for each in logs]


async def test_a_disk_with_a_fault_does_not_end_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with watching() as it:
        monkeypatch.setattr(it.disk, "keep_revocation", lambda _: 1 / 0)
        monkeypatch.setattr(it.disk, "keep", lambda *_: 1 / 0)
        with capture_logs() as logs:
            it.control_plane.say(*full(1, configuration(3), 5), revocation("key000000001", 6))
            assert not (await _answer(it)).is_kept
            await until(lambda: it.revision == 5)
            it.control_plane.say(*full(2, configuration(3), 6))
            await until(lambda: it.revision == 6)
        assert len(it.control_plane.tokens) == 1
    events = {each["event"] for each in logs}
    assert events >= {"revocation_keeping_failed", "configuration_not_kept"}


async def test_a_disk_that_hangs_is_waited_for_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(revoking, "_KEEP_SECONDS", 0.05)
    async with watching() as it:
        it.disk.is_working.clear()
        it.control_plane.say(revocation("key000000001", 6))
        assert not (await _answer(it)).is_kept


async def test_a_node_that_keeps_nothing_says_that_it_is_kept() -> None:
    async with watching(keeper=None) as it:
        it.control_plane.say(revocation("key000000001", 6))
        assert (await _answer(it)).is_kept


async def test_more_revocations_than_can_wait_end_the_stream_and_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(revoking, "MAX_WAITING", 5)
    async with watching() as it:
        it.control_plane.say(*full(1, configuration(9), 5))
        await it.control_plane.hear("ack")
        it.disk.is_working.clear()
        it.control_plane.say(revocation("key000000000", 6))
        await until(lambda: it.current.get().revoked)
        # The first one is with the disk.
        for number in range(1, 8):
            it.control_plane.say(revocation(f"key{number:09d}", 6 + number))
        again = (await it.control_plane.hear("hello")).hello
        assert again.applied.revision == 5
        assert len(it.current.get().revoked) >= 6


async def test_revocations_without_end_end_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoking, "_MAX_PENDING", 3)
    async with watching() as it:
        for number in range(4):
            it.control_plane.say(revocation(f"key{number:09d}", 6 + number))
        await until(lambda: len(it.control_plane.tokens) == 2)
        assert it.current.pending_count == 4


async def test_each_revocation_is_passed_on_with_its_organization_and_position() -> None:
    message = revocation("key000000001", 6, terminate=True)
    message.revocation.organization_id = "acme"
    async with watching() as it:
        it.control_plane.say(message, message)
        await _answer(it)
        await _answer(it)
        [first, second] = it.told
        [kept, _] = it.disk.revocations
        assert first == second
        assert (first.subject, first.organization_id, first.terminates) == (_KEY_1, "acme", True)
        assert (first.config_epoch, first.revision) == (EPOCH, 6)
        assert (kept.kind, kept.subject_id, kept.organization_id) == (*_KEY_1, "acme")
        assert kept.at_ms > 0
        assert it.terminated == [frozenset({_KEY_1})] * 2


async def test_a_fault_in_the_second_path_does_not_hold_the_first_up() -> None:
    with capture_logs() as logs:
        async with watching(on_revocation=lambda _: 1 / 0) as it:
            it.control_plane.say(revocation("key000000001", 6))
            assert (await _answer(it)).is_kept
    assert "revocation_not_passed_on" in [each["event"] for each in logs]


def _kept(*revocations: KeptRevocation, is_complete: bool = True) -> Kept:
    put: dict[Key, RawResource] = {
        (each.kind, each.id): RawResource(each.kind, each.id, each.revision, each.payload)
        for each in configuration(3)
    }
    hashes = {
        each: resource_hash(raw.kind, raw.resource_id, raw.revision, raw.payload)
        for each, raw in put.items()
    }
    position = position_from_proto(position_of(configuration(3), 5))
    change = Change(position, put, frozenset(), {}, frozenset(), hashes, True)
    return Kept(change, revocations, is_complete)


async def test_what_was_revoked_before_a_restart_is_refused_after_it() -> None:
    kept = KeptRevocation("key", "key000000001", "acme", EPOCH, 6, 1_000)
    older = KeptRevocation("key", "key000000002", "acme", EPOCH, 5, 1_000)
    async with watching("127.0.0.1:1") as it:
        assert await it.watch.restore(_kept(kept, older))
        assert (it.revision, set(it.current.get().revoked)) == (5, {_KEY_1})
        assert len(it.watch.holdings.resources) == len(configuration(3))


async def test_where_revocations_cannot_be_read_the_control_plane_must_be_heard_first() -> None:
    async with watching(heartbeat_ms=30) as it:
        known = KeptRevocation("key", "key000000001", "acme", "epoch-0", 6, 1_000)
        assert await it.watch.restore(_kept(known, is_complete=False))
        with pytest.raises(Refusal, match="configuration_unavailable"):
            it.current.get()
        assert (await it.control_plane.hear("heartbeat")).heartbeat.not_ready

        it.control_plane.say(*none(1, position_of(configuration(3), 5)))
        await it.control_plane.hear("ack")

        assert it.current.get().position.revision == 5
        # What could be read of them counts, and the control plane need not know it any more.
        assert it.current.get().revoked == {_KEY_1}


async def test_what_was_revoked_is_refused_although_no_configuration_can_be_read() -> None:
    kept = KeptRevocation("key", "key000000001", "acme", "epoch-0", 6, 1_000)
    async with watching() as it:
        assert not await it.watch.restore(Kept(None, (kept,)))
        # Restored from a copy that knows the key, and not that it was revoked.
        it.control_plane.say(*full(1, configuration(3), 5))
        await it.control_plane.hear("ack")

        assert it.current.get().revoked == {_KEY_1}


async def test_what_was_revoked_before_a_restart_is_passed_on_again() -> None:
    kept = KeptRevocation("key", "key000000001", "acme", EPOCH, 6, 1_000)
    async with watching("127.0.0.1:1") as it:
        await it.watch.restore(_kept(kept))
        [told] = it.told
        assert (told.subject, told.organization_id, told.terminates) == (_KEY_1, "acme", False)
        assert (told.config_epoch, told.revision) == (EPOCH, 6)
        assert not it.terminated


async def test_answers_wait_for_a_control_plane_that_listens_slowly() -> None:
    async with watching() as it:
        for number in range(3_000):
            it.control_plane.say(revocation(f"key{number:09d}", 6))
        heard = [(await _answer(it)).revocation_id for _ in range(3_000)]
        assert heard == [f"key{number:09d}:6" for number in range(3_000)]
        assert len(it.control_plane.tokens) == 1


async def test_a_restart_while_a_revocation_is_being_kept_leaves_it_in_force() -> None:
    async with watching() as it:
        it.disk.is_working.clear()
        it.control_plane.say(*full(1, configuration(3), 5), revocation("key000000001", 6))
        await until(lambda: it.revision == 5 and it.current.get().revoked)
        it.control_plane.say(None)
        await until(lambda: len(it.control_plane.tokens) == 2)
        it.control_plane.say(revocation("key000000001", 6))
        it.disk.is_working.set()
        assert (await _answer(it)).is_kept
        assert it.current.get().revoked == {_KEY_1}
