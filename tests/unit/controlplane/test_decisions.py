"""The table of reconnects, row by row."""

from collections.abc import Iterable

import pytest
from tollkeeper.config.v1 import config_service_pb2 as pb
from tollkeeper.config.v1 import resources_pb2

from controlplane.snapshots.decisions import decide, is_ahead
from controlplane.snapshots.history import Item, Log, Removal
from controlplane.snapshots.references import ResourceKey
from controlplane.snapshots.scopes import EVERYTHING, SHARED
from controlplane.snapshots.snapshot import Position, Snapshot
from controlplane.snapshots.totals import FormerDigests, Totals, sum_of

EPOCH, LATER = "t000000000001-000000000000", "t000000000002-000000000000"
FORMER = "epoch-0"
OTHER = ResourceKey(resources_pb2.RESOURCE_KIND_USER, "gone")
ONE = frozenset({"one"})


def item(name: str, at: int, owner: str = SHARED) -> Item:
    key = ResourceKey(resources_pb2.RESOURCE_KIND_USER, name)
    return Item(key, owner, at, b"entry of " + name.encode(), 1)


def snapshot(removals: Iterable[Removal] = (Removal(8, OTHER, "two"),)) -> Snapshot:
    """A snapshot of revision 10: 9 is known, deletions up to 5 are forgotten."""
    items = [item("a", 1), item("b", 6, "one"), item("c", 10, "two")]
    totals = {SHARED: Totals(1, 1, 1), "one": Totals(20, 1, 1), "two": Totals(300, 1, 1)}
    former = FormerDigests()
    former.note(9, 121, {"two": 100})
    return Snapshot(
        EPOCH,
        10,
        5,
        frozenset({FORMER}),
        Log(items, list(removals)),
        totals,
        sum_of(totals.values()),
        former,
    )


def at(revision: int, digest: int = 0, epoch: str = EPOCH) -> Position:
    return Position(epoch, revision, Totals(digest).digest)


TABLE = {
    "nothing": (Position(), "FULL", "FIRST"),
    "the same": (at(10, 321), "NONE", "CURRENT"),
    "older": (at(9, 121), "DELTA", "CHANGED"),
    "older, of a revision that another control plane published": (at(7, 5), "DELTA", "CHANGED"),
    "older, with the content of now": (at(8, 321), "NONE", "CURRENT"),
    "as old as deletions are told": (at(5, 5), "DELTA", "CHANGED"),
    "compacted": (at(4, 5), "FULL", "COMPACTED"),
    "the same with another digest": (at(10, 320), "FULL", "MISMATCH"),
    "older with another digest": (at(9, 120), "FULL", "MISMATCH"),
    "another epoch": (at(10, 321, "elsewhere"), "FULL", "EPOCH"),
    "an earlier epoch": (at(99, 321, "t000000000000-000000000000"), "FULL", "EPOCH"),
    "a later epoch": (at(1, 321, LATER), "FULL", "EPOCH"),
}


def named(intent: int, reason: int) -> tuple[str, str]:
    return (
        pb.TransferIntent.Name(pb.TransferIntent.ValueType(intent)).rpartition("_")[2],
        pb.TransferReason.Name(pb.TransferReason.ValueType(reason)).rpartition("_")[2],
    )


@pytest.mark.parametrize("row", TABLE)
def test_what_a_node_is_sent_depends_on_what_it_has(row: str) -> None:
    applied, intent, reason = TABLE[row]

    decision = decide(snapshot(), EVERYTHING, applied, has_delta=True)

    assert named(decision.intent, decision.reason) == (intent, reason)
    assert (decision.difference is not None) is (intent == "DELTA")


@pytest.mark.parametrize("row", TABLE)
def test_who_does_not_know_changes_only_is_never_sent_them(row: str) -> None:
    applied, intent, reason = TABLE[row]
    expected = ("FULL", "UNSUITED") if intent == "DELTA" else (intent, reason)

    decision = decide(snapshot(), EVERYTHING, applied, has_delta=False)

    assert named(decision.intent, decision.reason) == expected


def test_who_refused_what_does_not_fit_is_sent_everything() -> None:
    for applied in (at(9, 121), at(10, 321)):
        decision = decide(snapshot(), EVERYTHING, applied, has_delta=True, wants_everything=True)

        assert named(decision.intent, decision.reason) == ("FULL", "MISMATCH")


def test_a_difference_is_what_changed_in_the_scope() -> None:
    everything = decide(snapshot(), EVERYTHING, at(5), has_delta=True).difference
    one = decide(snapshot(), ONE, at(5, 5), has_delta=True).difference

    assert everything is not None
    assert [each.key.resource_id for each in everything.put] == ["b", "c"]
    assert everything.removed == (OTHER,)
    assert one is not None
    assert [each.key.resource_id for each in one.put] == ["b"]
    assert one.removed == ()


def test_digests_are_compared_in_the_scope_of_the_node() -> None:
    assert decide(snapshot(), ONE, at(10, 21), has_delta=True).intent == pb.TRANSFER_INTENT_NONE
    same = decide(snapshot(), ONE, at(9, 21), has_delta=True)
    assert named(same.intent, same.reason) == ("NONE", "CURRENT")
    wrong = decide(snapshot(), ONE, at(9, 20), has_delta=True)
    assert named(wrong.intent, wrong.reason) == ("FULL", "MISMATCH")


@pytest.mark.parametrize("applied", [at(10, 321), at(9, 121)])
def test_who_had_everything_and_serves_less_now_is_sent_all_that_it_serves(
    applied: Position,
) -> None:
    decision = decide(snapshot(), ONE, applied, has_delta=True)

    assert named(decision.intent, decision.reason) == ("FULL", "UNSUITED")


def test_what_was_deleted_before_anybody_knew_whose_it_was_is_not_told_to_some() -> None:
    forgotten = snapshot([Removal(8, OTHER, None)])

    decision = decide(forgotten, ONE, at(7, 5), has_delta=True)

    assert named(decision.intent, decision.reason) == ("FULL", "COMPACTED")
    assert decide(forgotten, ONE, at(8, 5), has_delta=True).difference is not None
    everything = decide(forgotten, EVERYTHING, at(7, 5), has_delta=True)
    assert everything.difference is not None
    assert everything.difference.removed == (OTHER,)


def test_a_node_is_ahead_with_a_newer_revision_or_a_later_epoch_that_was_not_checked() -> None:
    current = at(10)

    assert is_ahead(at(11), current, is_epoch_checked=True)
    assert not is_ahead(at(10), current, is_epoch_checked=False)
    assert is_ahead(at(1, epoch=LATER), current, is_epoch_checked=False)
    assert not is_ahead(at(1, epoch=LATER), current, is_epoch_checked=True)
    assert not is_ahead(at(99, epoch="zzz"), current, is_epoch_checked=False)
    assert not is_ahead(Position(), current, is_epoch_checked=False)


def test_what_a_restored_database_lacks_is_taken_without_suspicion_where_a_node_knew_it_before() -> (
    None
):
    assert snapshot().has_mass_deletion_since(at(3, epoch=FORMER))
    assert not snapshot().has_mass_deletion_since(at(3, epoch="epoch-of-another-database"))
