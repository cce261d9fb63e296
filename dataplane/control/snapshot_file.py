"""Whole configurations in two generations on the disk, under the node's key.

`snapshot` is the newer one, `snapshot.previous` the one before. Each is written beside them and takes
its name when it is whole, so that whenever the process or the host dies, one is there. The first
frame says the position, the others hold the parts of `kept_changes`.

Calls block on the disk: make them in a thread, one at a time.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from dataplane.control.frame_file import FrameFile, set_aside, sync_directory
from dataplane.control.frames import CorruptFileError, FrameKey, Place
from dataplane.control.kept_changes import Fold, joined, parts_in
from dataplane.domain.snapshot import Position

CURRENT: Final = "snapshot"
PREVIOUS: Final = "snapshot.previous"
_MAGIC: Final = b"TKSNAP02"
# The disk writes while there is more to encode, and whoever else syncs does not wait for all of it.
_SYNC_BYTES: Final = 8 * 1024 * 1024

_position_decoder: Final = msgspec.msgpack.Decoder(tuple[str, int, bytes])


@dataclass(frozen=True, slots=True)
class Generation:
    """A whole configuration that is on the disk."""

    file_id: bytes
    position: Position
    size_bytes: int


class SnapshotFile:
    """Two generations in one directory."""

    def __init__(self, directory: Path, node_key: bytes) -> None:
        self.directory = directory
        self._key = FrameKey(node_key, _MAGIC)

    def begin(self, position: Position) -> "NewGeneration":
        """Begin another generation; it counts when it is finished.

        Raises:
            OSError: The disk does not take it.
        """
        temporary = self.directory / f"{CURRENT}.tmp"
        temporary.unlink(missing_ok=True)
        file = FrameFile.create(temporary, self._key)
        new = NewGeneration(file, position)
        try:
            file.append(
                msgspec.msgpack.encode((position.config_epoch, position.revision, position.digest))
            )
        except OSError:
            new.abort()
            raise
        return new

    def read(self, name: str, fold: Fold) -> Generation | None:
        """Fold a generation, which is not changed; None when there is none of that name.

        Raises:
            CorruptFileError: It is not what was written.
            OSError: It cannot be read.
        """
        path = self.directory / name
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            place, position = self._read_first(file)
            is_whole = False
            for plain, is_last, behind in self._key.frames(file, place):
                for part in parts_in(plain):
                    fold.add(part)
                place, is_whole = behind, is_last
                if is_last:
                    break
            if not is_whole or fold.position != position:
                raise CorruptFileError("it ends early")
            if file.read(1):
                raise CorruptFileError("something follows its last frame")
        return Generation(place.file_id, position, place.offset)

    def look(self) -> Iterator[Generation | None]:
        """Yield what the generations begin with: None for one that nobody can read.

        What follows the beginning is not looked at.
        """
        for name in (CURRENT, PREVIOUS):
            try:
                with (self.directory / name).open("rb") as file:
                    place, position = self._read_first(file)
            except FileNotFoundError:
                continue
            except (OSError, CorruptFileError):
                yield None
            else:
                yield Generation(place.file_id, position, place.offset)

    def exists(self) -> bool:
        """Return whether there is a file of any generation, whatever is in it."""
        return any((self.directory / name).exists() for name in (CURRENT, PREVIOUS))

    def set_aside(self, name: str, why: str) -> None:
        """Take a generation that cannot be used out of the way, for a person to look at."""
        set_aside(self.directory / name, name, why)

    def drop_previous(self) -> None:
        """Remove the older generation.

        Raises:
            OSError: It stays.
        """
        (self.directory / PREVIOUS).unlink(missing_ok=True)
        sync_directory(self.directory)

    def _read_first(self, file: BinaryIO) -> tuple[Place, Position]:
        for plain, _, place in self._key.frames(file, self._key.read_header(file)):
            try:
                return place, Position(*_position_decoder.decode(plain))
            except msgspec.DecodeError as error:
                raise CorruptFileError("its position has another form") from error
        raise CorruptFileError("it ends early")


class NewGeneration:
    """A generation being written; `abort` it unless `finish` returned."""

    def __init__(self, file: FrameFile, position: Position) -> None:
        """Use `SnapshotFile.begin`."""
        self._file = file
        self._position = position
        self._synced = 0

    def add(self, parts: list[bytes], *, is_last: bool = False) -> None:
        """Write parts as one frame.

        Raises:
            OSError: The disk does not take it.
        """
        self._file.append(joined(parts), is_last=is_last)
        if self._file.place.offset - self._synced >= _SYNC_BYTES:
            self._file.sync()
            self._synced = self._file.place.offset

    def finish(self, *, rotates: bool) -> Generation:
        """Make this the newest generation.

        Args:
            rotates: The newest so far becomes the older one; else it is replaced, as one is that
                cannot be served.

        Raises:
            OSError: The disk does not take it; one generation of before is there at least.
        """
        self._file.sync()
        self._file.close()
        temporary, directory = self._file.path, self._file.path.parent
        if rotates:
            with contextlib.suppress(FileNotFoundError):
                (directory / CURRENT).rename(directory / PREVIOUS)
        temporary.rename(directory / CURRENT)
        sync_directory(directory)
        return Generation(self._file.place.file_id, self._position, self._file.place.offset)

    def abort(self) -> None:
        """Remove what was written, as far as the disk lets."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._file.path.unlink(missing_ok=True)
