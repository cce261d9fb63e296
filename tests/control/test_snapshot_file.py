"""Whole configurations on disk: two generations, each of them intact or noticed not to be."""

import asyncio
import os
from pathlib import Path

import pytest

from dataplane.control import kept_changes, snapshot_file
from dataplane.control.frames import CorruptFileError
from dataplane.control.holdings import Holdings
from dataplane.control.kept_changes import Fold, encoded_parts
from dataplane.control.slices import Slices
from dataplane.control.snapshot_file import CURRENT, PREVIOUS, Generation, SnapshotFile
from tests.control.kept_configurations import NODE_KEY, Author, State


def _file(directory: Path) -> SnapshotFile:
    return SnapshotFile(directory, NODE_KEY)


async def _parts(held: Holdings) -> list[bytes]:
    parts = encoded_parts(Slices(), held.position, held.resources.values(), held.secrets.values())
    return [part async for part in parts]


def _write(file: SnapshotFile, held: Holdings, *, rotates: bool = True) -> Generation:
    """Write a generation with one part in each frame."""
    *parts, last = asyncio.run(_parts(held))
    new = file.begin(held.position)
    for part in parts:
        new.add([part])
    new.add([last], is_last=True)
    return new.finish(rotates=rotates)


def _read(file: SnapshotFile, name: str = CURRENT) -> State | None:
    fold = Fold()
    if file.read(name, fold) is None:
        return None
    change = fold.change()
    return change.position, change.put, change.secrets


def _author(entries: int = 3, payload: bytes = b"payload") -> Author:
    author = Author()
    author.change(
        {f"key{number}": payload for number in range(entries)}, secrets={"c1": b"sk-very-secret"}
    )
    return author


def test_what_was_written_is_read_back_from_many_parts(tmp_path: Path) -> None:
    author = _author(1_700, os.urandom(700))
    written = _write(_file(tmp_path / "made" / "here"), author.holdings)
    assert _read(_file(tmp_path / "made" / "here")) == author.state
    assert written.size_bytes == (tmp_path / "made" / "here" / CURRENT).stat().st_size
    assert len(asyncio.run(_parts(author.holdings))) == 5


def test_parts_are_small_however_large_the_resources(tmp_path: Path) -> None:
    author = _author(20, os.urandom(100_000))
    parts = asyncio.run(_parts(author.holdings))
    assert max(map(len, parts)) < kept_changes._PART_BYTES + 200_000
    assert len(parts) == 7


def test_an_empty_configuration_and_an_empty_directory_are_two_things(tmp_path: Path) -> None:
    assert _read(_file(tmp_path)) is None
    author = Author()
    author.change()
    _write(_file(tmp_path), author.holdings)
    assert _read(_file(tmp_path)) == author.state


def test_two_generations_are_kept_and_one_that_nobody_takes_makes_room(tmp_path: Path) -> None:
    file, author, states = _file(tmp_path), _author(), []
    for revision in (2, 3, 4):
        author.change({"key0": b"%d" % revision})
        states.append(author.state)
        _write(file, author.holdings)
    assert (_read(file), _read(file, PREVIOUS)) == (states[2], states[1])
    author.change({"key0": b"last"})
    _write(file, author.holdings, rotates=False)
    assert (_read(file), _read(file, PREVIOUS)) == (author.state, states[1])
    assert sorted(os.listdir(tmp_path)) == [CURRENT, PREVIOUS]


def test_the_beginnings_say_which_configurations_there_are(tmp_path: Path) -> None:
    file, author = _file(tmp_path), _author()
    first = _write(file, author.holdings)
    author.change({"key0": b"new"})
    second = _write(file, author.holdings)
    found = list(file.look())
    assert [(each.file_id, each.position) for each in found if each] == [
        (second.file_id, second.position),
        (first.file_id, first.position),
    ]
    (tmp_path / PREVIOUS).write_bytes(b"nothing of ours")
    assert list(file.look())[1] is None


def test_a_generation_that_is_cut_or_changed_anywhere_is_noticed(tmp_path: Path) -> None:
    file = _file(tmp_path)
    _write(file, _author(2).holdings)
    path = tmp_path / CURRENT
    data = path.read_bytes()
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        for harmed in (data[:at], bytes(flipped)):
            path.write_bytes(harmed)
            with pytest.raises(CorruptFileError):
                _read(file)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptFileError, match="follows"):
        _read(file)


def test_contents_that_do_not_have_their_digest_are_refused(tmp_path: Path) -> None:
    file, author = _file(tmp_path), _author()
    held = author.holdings
    held.resources.popitem()
    _write(file, held)
    with pytest.raises(CorruptFileError, match="digest"):
        _read(file)


def test_a_disk_that_is_full_leaves_the_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, author = _file(tmp_path), _author()
    _write(file, author.holdings)
    before = author.state
    author.change({"key0": b"new"})

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    for call in ("write", "fdatasync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(OSError, match="No space"):
                _write(file, author.holdings)
        assert _read(file) == before
    _write(file, author.holdings)
    assert _read(file) == author.state


def test_a_large_generation_reaches_the_disk_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_file, "_SYNC_BYTES", 1_000)
    synced: list[int] = []
    sync = os.fdatasync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", watched)
    _write(_file(tmp_path), _author(3_000, b"").holdings)
    assert len(synced) > 3
    assert synced == sorted(synced)


def test_a_part_does_not_print_what_it_holds(tmp_path: Path) -> None:
    part = kept_changes.parts_in(kept_changes.joined(asyncio.run(_parts(_author().holdings))))[0]
    assert part.secrets
    assert "very-secret" not in repr(part)
