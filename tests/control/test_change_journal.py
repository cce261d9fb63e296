"""A journal gives the changes that reached the disk whole, up to the first that is not as written."""

import asyncio
from pathlib import Path

from structlog.testing import capture_logs

from dataplane.control.change_journal import ChangeJournals, JournalEnd
from dataplane.control.frames import HEADER_BYTES
from dataplane.control.holdings import Change
from dataplane.control.kept_changes import Fold, encoded_parts
from dataplane.control.slices import Slices
from tests.control.kept_configurations import NODE_KEY, Author, State, journals

_GENERATION = bytes(range(16))


async def _parts(change: Change) -> list[bytes]:
    parts = encoded_parts(
        Slices(),
        change.position,
        change.put.values(),
        change.secrets.values(),
        change.removed,
        change.dropped_secrets,
    )
    return [part async for part in parts]


def _changes() -> list[tuple[Change, State]]:
    author = Author()
    made = []
    for number in range(6):
        change = (
            author.change({f"key{number}": b"x" * number}, secrets={f"c{number}": b"sk"})
            if number % 3 != 2
            else author.change({}, [f"key{number - 1}"], {}, [f"c{number - 2}"])
        )
        made.append((change, author.state))
    return made


def _write(directory: Path, changes: list[tuple[Change, State]]) -> list[int]:
    """Write a journal with one change in each frame; return how long it was after each."""
    journal = ChangeJournals(directory, NODE_KEY).of(_GENERATION)
    ends = []
    for change, _ in changes:
        journal.append(asyncio.run(_parts(change)), 1)
        ends.append(journal.size_bytes)
    assert journal.records == len(changes)
    journal.close()
    return ends


def _read(directory: Path, *, sets_aside: bool = True) -> tuple[State | None, JournalEnd]:
    fold = Fold()
    end = ChangeJournals(directory, NODE_KEY).read(_GENERATION, fold, sets_aside=sets_aside)
    if fold.position is None:
        return None, end
    change = fold.change()
    return (change.position, change.put, change.secrets), end


def test_all_changes_are_read_in_their_order(tmp_path: Path) -> None:
    changes = _changes()
    ends = _write(tmp_path, changes)
    state, end = _read(tmp_path)
    assert state == changes[-1][1]
    assert (end.records, end.is_whole) == (6, True)
    assert end.place is not None
    assert end.place.offset == ends[-1]


def test_a_generation_without_a_journal_has_not_changed(tmp_path: Path) -> None:
    assert _read(tmp_path) == (None, JournalEnd(None, 0, is_whole=True))


def test_a_journal_is_gone_on_with_after_a_restart(tmp_path: Path) -> None:
    changes = _changes()
    _write(tmp_path, changes[:3])
    end = _read(tmp_path)[1]
    journal = ChangeJournals(tmp_path, NODE_KEY).of(_GENERATION, end)
    assert journal.records == 3
    for change, _ in changes[3:]:
        journal.append(asyncio.run(_parts(change)), 1)
    journal.close()
    assert _read(tmp_path)[0] == changes[-1][1]


def test_a_journal_cut_anywhere_gives_the_last_change_before_the_cut(tmp_path: Path) -> None:
    changes = _changes()
    ends = _write(tmp_path, changes)
    path = journals(tmp_path)[0]
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends)
        with capture_logs() as logs:
            state, end = _read(tmp_path)
        assert state == (changes[whole - 1][1] if whole else None), cut
        assert end.records == whole
        is_at_an_end = cut in ends or cut == HEADER_BYTES
        assert end.is_whole == is_at_an_end, cut
        assert [entry["event"] for entry in logs] == [] if is_at_an_end else ["kept_journal_torn"]
        assert path.exists()


def test_a_flipped_bit_gives_the_state_before_it_and_sets_the_journal_aside(
    tmp_path: Path,
) -> None:
    changes = _changes()
    ends = _write(tmp_path, changes)
    path = journals(tmp_path)[0]
    data = path.read_bytes()
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        # Another file: what was set aside stays as it was.
        path.unlink()
        path.write_bytes(changed)
        whole = sum(end <= at for end in ends)
        for _ in range(2):
            state, end = _read(tmp_path)
            assert state == (changes[whole - 1][1] if whole else None), at
            assert not end.is_whole
        assert any(each.samefile(path) for each in tmp_path.glob("journal.corrupt-*"))
    assert len(list(tmp_path.glob("journal.corrupt-*"))) == 10


def test_a_change_in_many_frames_counts_when_its_last_is_there(tmp_path: Path) -> None:
    author = Author()
    change = author.change({f"key{number:04d}": b"" for number in range(1_800)})
    parts = asyncio.run(_parts(change))
    assert len(parts) == 4
    journal = ChangeJournals(tmp_path, NODE_KEY).of(_GENERATION)
    for number, part in enumerate(parts):
        journal.append([part], int(part is parts[-1]))
        state, end = _read(tmp_path)
        is_all = number == len(parts) - 1
        assert (state == author.state) == is_all
        assert end.is_whole == is_all
        assert end.records == is_all
    journal.close()


def test_a_change_without_its_digest_and_what_follows_do_not_count(tmp_path: Path) -> None:
    changes = _changes()
    del changes[3]
    _write(tmp_path, changes)
    state, end = _read(tmp_path)
    assert state == changes[2][1]
    assert not end.is_whole


def test_a_journal_of_another_generation_does_not_count(tmp_path: Path) -> None:
    _write(tmp_path, _changes())
    other = bytes(16)
    journals(tmp_path)[0].rename(tmp_path / f"journal-{other.hex()}")
    fold = Fold()
    assert not ChangeJournals(tmp_path, NODE_KEY).read(other, fold).is_whole
    assert fold.position is None


def test_who_only_looks_changes_nothing(tmp_path: Path) -> None:
    _write(tmp_path, _changes())
    path = journals(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:100] + b"?" + path.read_bytes()[101:])
    before = path.read_bytes()
    assert not _read(tmp_path, sets_aside=False)[1].is_whole
    assert path.read_bytes() == before


def test_journals_of_generations_that_are_gone_are_removed(tmp_path: Path) -> None:
    _write(tmp_path, _changes())
    for name in (f"journal-{bytes(16).hex()}", "journal-of-somebody", "journal.corrupt-1"):
        (tmp_path / name).touch()
    ChangeJournals(tmp_path, NODE_KEY).remove_all_but([_GENERATION])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"journal-{_GENERATION.hex()}",
        "journal-of-somebody",
        "journal.corrupt-1",
    ]


def test_a_resource_that_is_removed_and_put_by_one_change_is_there(tmp_path: Path) -> None:
    author = Author()
    changes = [
        author.change({"key": b"old", "other": b""}),
        author.change({"key": b"new"}, ["key"]),
    ]
    _write(tmp_path, [(change, author.state) for change in changes])
    assert _read(tmp_path)[0] == author.state


def test_a_transfer_that_only_moves_a_configuration_is_a_change(tmp_path: Path) -> None:
    author = Author()
    first = (author.change({"key": b""}), author.state)
    moved = (author.change(), author.state)
    _write(tmp_path, [first, moved])
    state, end = _read(tmp_path)
    assert state == moved[1]
    assert (moved[0].position.revision, end.records) == (2, 2)
    assert moved[0].position.digest == first[0].position.digest
