"""The configuration on disk: the newest intact generation, or nothing; never a wrong one."""

import itertools
import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from dataplane.control import snapshot_file
from dataplane.control.snapshot_file import CURRENT, FRAME_BYTES, PREVIOUS, Contents, SnapshotFile

_KEY = bytes(range(32))


def _contents(revision: int, payload: bytes = b"payload") -> Contents:
    return Contents(
        config_epoch="epoch",
        revision=revision,
        digest=bytes([revision]) * 32,
        resources=[(3, "abcdefghijkl", revision, payload), (4, "mnopqrstuvwx", 2, b"")],
        secrets=[("credential12", 7, b"sk-very-secret")],
    )


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    big = _contents(1, os.urandom(2 * FRAME_BYTES + 17))
    SnapshotFile(tmp_path / "made" / "here", _KEY).write(big)
    assert SnapshotFile(tmp_path / "made" / "here", _KEY).read() == big


@pytest.mark.parametrize("extra_bytes", [-1, 0, 1])
def test_contents_that_fill_their_last_frame_are_read_back(
    tmp_path: Path, extra_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(msgspec.msgpack.encode(_contents(1, b"x" * 500)))
    monkeypatch.setattr(snapshot_file, "FRAME_BYTES", size // 2 + extra_bytes)
    SnapshotFile(tmp_path, _KEY).write(_contents(1, b"x" * 500))
    assert SnapshotFile(tmp_path, _KEY).read() == _contents(1, b"x" * 500)


def test_an_empty_directory_has_no_contents(tmp_path: Path) -> None:
    assert SnapshotFile(tmp_path, _KEY).read() is None


def test_the_newest_generation_is_read_and_two_are_kept(tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path, _KEY)
    for revision in (1, 2, 3):
        file.write(_contents(revision))
    assert file.read() == _contents(3)
    assert sorted(os.listdir(tmp_path)) == [CURRENT, PREVIOUS]
    (tmp_path / CURRENT).unlink()
    assert file.read() == _contents(2)


def test_only_the_owner_may_read_the_files_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        SnapshotFile(tmp_path, _KEY).write(_contents(1))
    finally:
        os.umask(before)
    assert (tmp_path / CURRENT).stat().st_mode & 0o777 == 0o600


def test_a_corrupt_file_is_set_aside_and_the_older_one_used(tmp_path: Path) -> None:
    file = SnapshotFile(tmp_path, _KEY)
    file.write(_contents(1))
    file.write(_contents(2))
    (tmp_path / CURRENT).write_bytes((tmp_path / CURRENT).read_bytes()[:-1])
    with capture_logs() as logs:
        assert file.read() == _contents(1)
    assert [entry["event"] for entry in logs] == ["snapshot file is corrupt"]
    assert sorted(os.listdir(tmp_path)) == [f"{CURRENT}.corrupt-1", PREVIOUS]


def test_corrupt_files_do_not_fill_the_disk(tmp_path: Path) -> None:
    for _ in range(15):
        (tmp_path / CURRENT).write_bytes(b"nothing of ours")
        assert SnapshotFile(tmp_path, _KEY).read() is None
    assert len(os.listdir(tmp_path)) == 10


def test_another_key_reads_nothing_and_says_so(tmp_path: Path) -> None:
    SnapshotFile(tmp_path, _KEY).write(_contents(1))
    with capture_logs() as logs:
        assert SnapshotFile(tmp_path, _KEY[::-1]).read() is None
    assert "another node key" in logs[0]["event"]


def test_a_file_that_does_not_fit_the_disk_leaves_the_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = SnapshotFile(tmp_path, _KEY)
    file.write(_contents(1))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.write(_contents(2))
    assert os.listdir(tmp_path) == [CURRENT]
    assert file.read() == _contents(1)


def test_neither_secrets_nor_their_bytes_show(tmp_path: Path) -> None:
    SnapshotFile(tmp_path, _KEY).write(_contents(1))
    assert "very-secret" not in repr(_contents(1))
    assert b"very-secret" not in (tmp_path / CURRENT).read_bytes()


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans())
def test_a_changed_file_gives_the_older_contents(position: int, bit: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot_file, "FRAME_BYTES", 64)
        file = SnapshotFile(Path(name), _KEY)
        file.write(_contents(1))
        file.write(_contents(2, b"y" * 200))
        path = Path(name, CURRENT)
        data = bytearray(path.read_bytes())
        position %= len(data)
        if cut:
            del data[position:]
        else:
            data[position] ^= 1 << bit
        path.write_bytes(data)
        assert file.read() == _contents(1)


def test_frames_cannot_be_swapped_dropped_or_taken_from_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_file, "FRAME_BYTES", 16)
    file = SnapshotFile(tmp_path, _KEY)
    file.write(_contents(1, b"z" * 40))
    whole = (tmp_path / CURRENT).read_bytes()
    file.write(_contents(1, b"z" * 40))
    other = (tmp_path / CURRENT).read_bytes()
    frame_bytes = 4 + 1 + 12 + 16 + 16
    mine, theirs = (
        [data[start : start + frame_bytes] for start in range(40, len(data), frame_bytes)]
        for data in (whole, other)
    )
    variants = [
        [mine[1], mine[0], *mine[2:]],
        mine[1:],
        mine[:-1],
        [theirs[0], *mine[1:]],
        [*mine, mine[-1]],
    ]
    for variant in variants:
        (tmp_path / PREVIOUS).unlink(missing_ok=True)
        (tmp_path / CURRENT).write_bytes(b"".join(itertools.chain([whole[:40]], variant)))
        assert file.read() is None
    (tmp_path / CURRENT).write_bytes(b"".join(itertools.chain([whole[:40]], mine)))
    assert file.read() == _contents(1, b"z" * 40)
