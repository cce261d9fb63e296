"""A sealed frame opens in its one place of its one file, or not at all."""

import io
import os
from itertools import pairwise
from pathlib import Path

import pytest

from dataplane.control.frame_file import FrameFile
from dataplane.control.frames import (
    HEADER_BYTES,
    CorruptFileError,
    FrameKey,
    TornFileError,
    WrongKeyError,
)

_NODE_KEY = bytes(range(32))
_KEY = FrameKey(_NODE_KEY, b"TKTEST01")
_PLAINS = [b"one", b"", b"three", b"four is longer", b"five"]


def _written(path: Path, plains: list[bytes] = _PLAINS) -> list[int]:
    """Write a file, and return the bytes before each frame and after the last."""
    path.unlink(missing_ok=True)
    file, ends = FrameFile.create(path, _KEY), [HEADER_BYTES]
    for plain in plains:
        file.append(plain)
        ends.append(file.place.offset)
    file.close()
    return ends


def _read(path: Path, data: bytes, key: FrameKey = _KEY) -> tuple[list[bytes], str]:
    """Return what opens of `data`, and how reading ended."""
    path.write_bytes(data)
    found: list[bytes] = []
    with path.open("rb") as file:
        try:
            found.extend(plain for plain, _, _ in key.frames(file, key.read_header(file)))
        except TornFileError:
            return found, "torn"
        except CorruptFileError:
            return found, "corrupt"
    return found, "whole"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    _written(tmp_path / "file")
    assert _read(tmp_path / "copy", (tmp_path / "file").read_bytes()) == (_PLAINS, "whole")


def test_a_file_cut_anywhere_gives_the_frames_before_the_cut(tmp_path: Path) -> None:
    ends = _written(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    for cut in range(len(data)):
        whole = [end for end in ends if end <= cut]
        expected = _PLAINS[: max(0, len(whole) - 1)]
        how = "whole" if cut in ends else "torn"
        assert _read(tmp_path / "copy", data[:cut]) == (expected, how), cut


def test_a_flipped_bit_anywhere_is_noticed_and_never_taken_for_a_power_cut(tmp_path: Path) -> None:
    ends = _written(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        frame = sum(end <= at for end in ends[1:]) if at >= HEADER_BYTES else 0
        assert _read(tmp_path / "copy", bytes(changed)) == (_PLAINS[:frame], "corrupt"), at


@pytest.mark.parametrize("zeros", [1, 20, 21, 22, 300])
def test_a_file_that_was_made_longer_but_not_written_is_torn(tmp_path: Path, zeros: int) -> None:
    ends = _written(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    assert _read(tmp_path / "copy", data + bytes(zeros)) == (_PLAINS, "torn")
    lost = data[: ends[-2] + 22] + bytes(ends[-1] - ends[-2] - 22)
    assert _read(tmp_path / "copy", lost) == (_PLAINS[:-1], "torn")


def test_frames_that_are_moved_left_out_repeated_or_of_another_file_do_not_open(
    tmp_path: Path,
) -> None:
    def cut(name: str) -> tuple[bytes, list[bytes]]:
        ends = _written(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        return data[:HEADER_BYTES], [data[start:end] for start, end in pairwise(ends)]

    header, mine = cut("mine")
    _, theirs = cut("theirs")
    variants = {
        "moved": ([mine[1], mine[0], *mine[2:]], 0),
        "left out": ([mine[0], *mine[2:]], 1),
        "repeated": ([*mine, mine[-1]], 5),
        "of another": ([*mine[:2], theirs[2], *mine[3:]], 2),
        "all of another": (theirs, 0),
    }
    for name, (frames, good) in variants.items():
        read = _read(tmp_path / "copy", header + b"".join(frames))
        assert read == (_PLAINS[:good], "corrupt"), name


def test_another_key_and_another_sort_of_file_open_nothing(tmp_path: Path) -> None:
    _written(tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    with pytest.raises(WrongKeyError):
        FrameKey(_NODE_KEY[::-1], b"TKTEST01").read_header(io.BytesIO(data))
    assert _read(tmp_path / "copy", data, FrameKey(_NODE_KEY, b"TKTEST02")) == ([], "corrupt")


def test_a_file_that_somebody_else_changed_or_removed_is_not_added_to(tmp_path: Path) -> None:
    for harm in ("removed", "shorter", "longer"):
        path = tmp_path / harm
        file = FrameFile.create(path, _KEY)
        file.append(b"first")
        if harm == "removed":
            path.unlink()
        else:
            os.truncate(path, file.place.offset + (1 if harm == "longer" else -1))
        with pytest.raises(OSError, match="removed or changed"):
            file.append(b"second")
        file.close()


def test_a_file_is_never_made_through_a_link_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        FrameFile.create(tmp_path / "link", _KEY)
    before = os.umask(0)
    try:
        FrameFile.create(tmp_path / "made" / "file", _KEY).close()
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "made" / "file").stat().st_mode & 0o777 == 0o600
