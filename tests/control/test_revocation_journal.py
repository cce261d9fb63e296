"""What a node was told to refuse is refused after a restart, or nobody pretends to know."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from dataplane.control import revocation_journal
from dataplane.control.frames import HEADER_BYTES
from dataplane.control.kept import KeptRevocation
from dataplane.control.revocation_file import REVOCATIONS
from dataplane.control.revocation_journal import RevocationJournal, is_needed
from dataplane.domain.snapshot import Position
from tests.control.kept_configurations import EPOCH, NODE_KEY, NOW_MS, revocation
from tests.control.usage_events import until

_DAY_MS = 24 * 60 * 60 * 1000
_MANY = 1_200


def _journal(directory: Path, node_key: bytes = NODE_KEY) -> RevocationJournal:
    return RevocationJournal(directory, node_key, lambda: NOW_MS)


async def _loaded(
    directory: Path, *, is_expected: bool = True, node_key: bytes = NODE_KEY
) -> set[KeptRevocation] | None:
    """Return what the next process refuses."""
    journal = _journal(directory, node_key)
    await journal.load(is_expected=is_expected)
    await journal.aclose()
    return set(journal.entries) if journal.is_complete else None


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[RevocationJournal]:
    journal = _journal(tmp_path)
    await journal.load(is_expected=False)
    yield journal
    await journal.aclose()


def _full(*_args: object) -> int:
    raise OSError(28, "No space left on device")


def _position(revision: int, epoch: str = EPOCH) -> Position:
    return Position(epoch, revision, bytes(32))


async def test_what_was_answered_is_on_the_disk(journal: RevocationJournal, tmp_path: Path) -> None:
    told = set()
    for number in range(5):
        each = revocation(f"key{number}", number)
        assert await journal.keep(each)
        told.add(each)
        assert await _loaded(tmp_path) == told
    assert (tmp_path / REVOCATIONS).stat().st_mode & 0o777 == 0o600


async def test_all_that_wait_share_one_sync_in_a_thread(
    journal: RevocationJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await journal.keep(revocation("first"))
    threads: list[threading.Thread] = []
    sync = os.fdatasync

    def watched(descriptor: int) -> None:
        threads.append(threading.current_thread())
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", watched)
    told = [revocation(f"key{number}") for number in range(500)]
    assert all(await asyncio.gather(*map(journal.keep, told)))
    assert len(threads) <= 2
    assert threading.main_thread() not in threads
    assert len(await _loaded(tmp_path) or ()) == 501


async def test_a_journal_is_gone_on_with_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        journal = _journal(tmp_path)
        await journal.load(is_expected=True) if number else None
        assert await journal.keep(revocation(f"key{number}"))
        await journal.aclose()
    assert {each.subject_id for each in await _loaded(tmp_path) or ()} == {"key0", "key1", "key2"}


async def test_of_two_revocations_of_one_subject_the_newer_counts_in_each_epoch(
    journal: RevocationJournal, tmp_path: Path
) -> None:
    for epoch, revision in (("epoch-1", 5), ("epoch-1", 4), ("epoch-2", 1)):
        assert await journal.keep(revocation("key", revision, epoch=epoch))
    assert await _loaded(tmp_path) == {revocation("key", 5), revocation("key", 1, epoch="epoch-2")}


async def test_a_journal_cut_within_its_last_frame_gives_those_before(
    journal: RevocationJournal, tmp_path: Path
) -> None:
    path = tmp_path / REVOCATIONS
    ends = {}
    for number in range(3):
        assert await journal.keep(revocation(f"key{number}"))
        ends[path.stat().st_size] = number + 1
    data = path.read_bytes()
    first_frame = HEADER_BYTES + 21 + 17
    for cut in range(first_frame, len(data)):
        path.write_bytes(data[:cut])
        whole = max((count for end, count in ends.items() if end <= cut), default=0)
        assert len(await _loaded(tmp_path) or ()) == whole, cut
    path.write_bytes(data[: first_frame - 1])
    assert await _loaded(tmp_path) is None
    assert not path.exists()


async def test_a_journal_that_was_changed_anywhere_is_set_aside_and_nobody_can_say(
    journal: RevocationJournal, tmp_path: Path
) -> None:
    for number in range(2):
        assert await journal.keep(revocation(f"key{number}"))
    path = tmp_path / REVOCATIONS
    data = path.read_bytes()
    for at in range(0, len(data), 2):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        path.write_bytes(changed)
        assert await _loaded(tmp_path) is None, at
        assert not path.exists()
    assert len(list(tmp_path.glob(f"{REVOCATIONS}.corrupt-*"))) == 10


async def test_a_journal_under_another_key_says_nothing(
    journal: RevocationJournal, tmp_path: Path
) -> None:
    assert await journal.keep(revocation("key"))
    with capture_logs() as logs:
        assert await _loaded(tmp_path, node_key=NODE_KEY[::-1]) is None
    assert [entry["event"] for entry in logs] == ["kept_file_unusable"]


async def test_a_journal_that_is_not_there_is_empty_only_where_nothing_else_is(
    tmp_path: Path,
) -> None:
    assert await _loaded(tmp_path, is_expected=False) == set()
    assert await _loaded(tmp_path, is_expected=True) is None


async def test_what_comes_after_a_loss_is_kept_and_the_loss_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = _journal(tmp_path)
    await journal.load(is_expected=True)
    assert not journal.is_complete
    assert await journal.keep(revocation("key"))
    assert await _loaded(tmp_path) is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", _full)
        await journal.complete()
    assert not journal.is_complete
    await journal.complete()
    assert await _loaded(tmp_path) == {revocation("key")}
    await journal.aclose()


async def test_a_disk_that_fails_is_said_once_and_what_it_missed_is_written_with_the_next(
    journal: RevocationJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await journal.keep(revocation("before"))

    with capture_logs() as logs:
        for call in ("write", "fdatasync", "rename"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, _full)
                assert not await journal.keep(revocation(f"during-{call}"))
        assert journal.outage.error == "ENOSPC"
        assert await journal.keep(revocation("after"))
    assert journal.outage.error == ""
    said = [(entry["event"], entry["error"]) for entry in logs]
    assert said == [("not_kept_on_disk", "ENOSPC"), ("kept_on_disk_again", "ENOSPC")]
    names = {each.subject_id for each in await _loaded(tmp_path) or ()}
    assert names == {"before", "during-write", "during-fdatasync", "during-rename", "after"}


async def test_a_journal_that_somebody_removed_is_written_again(
    journal: RevocationJournal, tmp_path: Path
) -> None:
    assert await journal.keep(revocation("one"))
    (tmp_path / REVOCATIONS).unlink()
    assert await journal.keep(revocation("two"))
    assert len(await _loaded(tmp_path) or ()) == 2
    (tmp_path / REVOCATIONS).unlink()
    await journal.ensure()
    assert len(await _loaded(tmp_path) or ()) == 2


async def test_a_disk_that_does_not_answer_makes_nobody_wait(
    journal: RevocationJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await journal.keep(revocation("one"))
    monkeypatch.setattr(revocation_journal, "_PATIENCE_SECONDS", 0.05)
    answers = threading.Event()
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        answers.wait(10)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    assert not await journal.keep(revocation("two"))
    answers.set()
    monkeypatch.setattr(revocation_journal, "_PATIENCE_SECONDS", 5.0)
    assert await journal.keep(revocation("three"))
    assert len(await _loaded(tmp_path) or ()) == 3


async def test_more_than_may_wait_is_refused_and_written_with_the_next(
    journal: RevocationJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation_journal, "_MAX_WAITING", 3)
    told = [revocation(f"key{number}") for number in range(5)]
    kept = await asyncio.gather(*map(journal.keep, told))
    assert kept.count(False) == 2
    assert await journal.keep(revocation("after"))
    assert len(await _loaded(tmp_path) or ()) == 6


async def test_what_is_refused_while_the_file_is_written_anew_is_written_with_the_next(
    journal: RevocationJournal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await journal.keep(revocation("before"))
    (tmp_path / REVOCATIONS).unlink()
    monkeypatch.setattr(revocation_journal, "_MAX_WAITING", 0)
    begun, goes_on = threading.Event(), threading.Event()
    rename = os.rename

    def slow(*names: str) -> None:
        begun.set()
        goes_on.wait(10)
        rename(*names)

    monkeypatch.setattr(os, "rename", slow)
    writing = asyncio.create_task(journal.ensure())
    await until(begun.is_set)
    assert not await journal.keep(revocation("during"))
    goes_on.set()
    await writing
    monkeypatch.undo()
    assert await journal.keep(revocation("after"))
    assert len(await _loaded(tmp_path) or ()) == 3


async def test_a_caller_that_leaves_does_not_take_its_revocation_along(
    journal: RevocationJournal, tmp_path: Path
) -> None:
    leaving = asyncio.create_task(journal.keep(revocation("one")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await journal.keep(revocation("two"))
    assert len(await _loaded(tmp_path) or ()) == 2


async def test_a_journal_of_which_most_is_not_needed_is_written_anew(
    journal: RevocationJournal, tmp_path: Path
) -> None:
    users = [revocation(f"user{number}", number, "user") for number in range(_MANY)]
    assert all(await asyncio.gather(*map(journal.keep, users)))
    size = (tmp_path / REVOCATIONS).stat().st_size
    bases = [_position(_MANY), _position(_MANY - 3)]

    await journal.forget([bases[0], None])
    assert await _loaded(tmp_path) == set(users)

    await journal.forget(bases)
    assert await _loaded(tmp_path) == set(users[-2:])
    assert (tmp_path / REVOCATIONS).stat().st_size < size / 10


@pytest.mark.parametrize(
    ("revoked", "bases", "needed"),
    [
        (revocation("u", 5, "user"), [_position(5), _position(9)], False),
        (revocation("u", 5, "user"), [_position(9), _position(4)], True),
        (revocation("u", 5, "user"), [_position(1, "epoch-2"), _position(1, "epoch-3")], False),
        (revocation("u", 5, "user"), [_position(99, "epoch-0"), _position(9)], True),
        (revocation("o", 5, "organization"), [], False),
        (revocation("k", 5, at_ms=NOW_MS - 6 * _DAY_MS), [_position(9), _position(9)], True),
        (revocation("k", 5, at_ms=NOW_MS - 8 * _DAY_MS), [_position(9), _position(9)], False),
        (revocation("k", 5, at_ms=NOW_MS - 8 * _DAY_MS), [_position(9), _position(4)], True),
        (revocation("k", 5, at_ms=NOW_MS - 8 * _DAY_MS), [_position(9, "epoch-0")], True),
        (revocation("k", 5, at_ms=NOW_MS - 8 * _DAY_MS), [_position(1, "epoch-2")], False),
        (revocation("d", 5, "device", at_ms=NOW_MS), [_position(1, "epoch-2")], True),
    ],
)
def test_a_revocation_is_needed_while_something_older_may_be_loaded(
    revoked: KeptRevocation, bases: list[Position], needed: bool
) -> None:
    assert is_needed(revoked, bases, NOW_MS) is needed
