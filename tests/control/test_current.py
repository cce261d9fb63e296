"""The snapshot in force, and what a revocation does to it ahead of its transfer."""

import pytest

from dataplane.control.current import CurrentSnapshot, Revoked
from dataplane.domain.prices import PriceBook
from dataplane.domain.principals import Service
from dataplane.domain.refusals import Reason, Refusal
from dataplane.domain.revocations import RevokedSubjects
from dataplane.domain.snapshot import Position, Snapshot

_KEY = ("key", "abcdefghijkl")
_USER = ("user", "mnopqrstuvwx")


def _snapshot(revision: int, epoch: str = "epoch-1") -> Snapshot:
    return Snapshot(
        position=Position(epoch, revision, bytes(32)),
        service=Service(),
        keys_by_sha256={},
        routers={},
        prices=PriceBook([]),
        limits={},
    )


def test_before_the_first_snapshot_a_caller_is_told_to_wait() -> None:
    with pytest.raises(Refusal) as caught:
        CurrentSnapshot().get()
    assert caught.value.reason is Reason.CONFIGURATION_UNAVAILABLE
    assert caught.value.retry_after_seconds == 5


def test_a_request_keeps_the_snapshot_that_it_began_with() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(1))
    seen = current.get()
    current.revoke(_KEY, "epoch-1", 2, terminates=False)
    current.replace(_snapshot(2))
    assert seen.position.revision == 1
    assert seen.revoked == frozenset()


def test_a_revocation_survives_older_transfers_and_ends_with_the_one_that_contains_it() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(3))
    current.revoke(_KEY, "epoch-1", 5, terminates=False)
    assert current.get().revoked == {_KEY}
    current.replace(_snapshot(4))
    assert current.get().revoked == {_KEY}
    current.replace(_snapshot(5))
    assert current.get().revoked == frozenset()


def test_a_revocation_before_the_first_snapshot_counts_in_it() -> None:
    current = CurrentSnapshot()
    current.revoke(_KEY, "epoch-1", 5, terminates=False)
    current.replace(_snapshot(4))
    assert current.get().revoked == {_KEY}


def test_a_revocation_that_the_snapshot_contains_changes_nothing() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(5))
    before = current.get()
    current.revoke(_KEY, "epoch-1", 5, terminates=False)
    assert current.get() is before


@pytest.mark.parametrize("revisions", [(7, 9), (9, 7)])
def test_two_revocations_of_one_subject_end_with_the_newer(revisions: tuple[int, int]) -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(6))
    for revision in revisions:
        current.revoke(_KEY, "epoch-1", revision, terminates=False)
    current.replace(_snapshot(8))
    assert current.get().revoked == {_KEY}
    current.replace(_snapshot(9))
    assert current.get().revoked == frozenset()


def test_streams_are_ended_for_a_known_revocation_too_but_only_where_asked() -> None:
    ended: list[Revoked] = []
    current = CurrentSnapshot(ended.append)
    current.replace(_snapshot(5))
    current.revoke(_KEY, "epoch-1", 5, terminates=True)
    current.revoke(_USER, "epoch-1", 6, terminates=False)
    assert ended == [frozenset({_KEY})]
    assert current.get().revoked == {_USER}


def test_a_revoked_key_stays_revoked_when_the_database_is_restored() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(3))
    current.revoke(_KEY, "epoch-1", 5, terminates=False)
    current.revoke(_USER, "epoch-1", 5, terminates=False)
    current.replace(_snapshot(6))
    assert current.get().revoked == frozenset()

    # Restored from a copy that knows the key, and not that it was revoked.
    current.replace(_snapshot(2, "epoch-2"))
    assert current.get().revoked == {_KEY}
    current.replace(_snapshot(9, "epoch-2"))
    assert current.get().revoked == {_KEY}


def test_a_revocation_that_was_contained_when_it_came_counts_after_a_restore_too() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(6))
    current.revoke(_KEY, "epoch-1", 5, terminates=False)
    current.replace(_snapshot(2, "epoch-2"))
    assert current.get().revoked == {_KEY}


def test_a_user_that_is_deleted_after_a_restore_is_refused_on_what_is_older() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(9))
    current.revoke(_USER, "epoch-2", 1, terminates=False)
    assert current.get().revoked == {_USER}
    current.replace(_snapshot(10))
    assert current.get().revoked == {_USER}
    current.replace(_snapshot(1, "epoch-2"))
    assert current.get().revoked == frozenset()


def test_what_is_remembered_of_credentials_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.control.current._MAX_CONTAINED", 2)
    current = CurrentSnapshot()
    current.replace(_snapshot(9))
    for number in range(4):
        current.revoke(("key", f"k{number}"), "epoch-1", 5, terminates=False)
    current.replace(_snapshot(1, "epoch-2"))
    assert current.get().revoked == {("key", "k2"), ("key", "k3")}


def test_a_snapshot_that_must_not_be_served_is_none() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(3))
    assert current.is_serving
    current.must_hear_control_plane = True
    assert not current.is_serving
    with pytest.raises(Refusal, match="configuration_unavailable"):
        current.get()


def test_what_is_of_another_epoch_is_not_looked_at_with_every_snapshot() -> None:
    current = CurrentSnapshot()
    current.replace(_snapshot(1))
    for number in range(2_000):
        current.revoke(("key", f"k{number}"), "epoch-1", 1, terminates=False)
    current.replace(_snapshot(1, "epoch-2"))
    before = current.get().revoked
    assert len(before) == 2_000
    assert current.pending_count == 0

    current.replace(_snapshot(2, "epoch-2"))
    assert current.get().revoked is before
    current.revoke(_KEY, "epoch-2", 3, terminates=False)
    assert current.get().revoked == {*before, _KEY}
    assert (current.pending_count, len(current.revocations)) == (1, 2_001)
    current.replace(_snapshot(3, "epoch-2"))
    assert current.get().revoked == before


def test_one_more_revoked_subject_leaves_the_set_of_before_as_it_was() -> None:
    subjects = [("key", f"k{number}") for number in range(1_000)]
    sets = [RevokedSubjects()]
    for subject in subjects:
        sets.append(sets[-1].and_also(subject))
        assert sets[-1].and_also(subject) is sets[-1]
    for number, each in enumerate(sets):
        assert set(each) == set(subjects[:number])
        assert len(each) == number
        assert subjects[number - 1] in each or not number
