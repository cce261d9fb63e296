"""Files of sealed frames on the disk: written from the front to the back, never read by others.

Everything here blocks on the disk: call it in a thread.
"""

import errno
import os
from pathlib import Path
from typing import Final

import structlog

from dataplane.control.frames import NO_FILE, FrameKey, Place

# Evidence for a person; more of it says nothing new.
_MAX_SET_ASIDE: Final = 10
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

_log: Final = structlog.get_logger(__name__)


class FrameFile:
    """A file that frames are added to, by one thread at a time.

    After an error nothing more may be added: what the file ends with is not known.
    """

    def __init__(self, path: Path, key: FrameKey, place: Place, descriptor: int) -> None:
        """Use `create` or `reopen`."""
        self.path = path
        self.place = place
        self._key = key
        self._descriptor = descriptor
        self._unwritten_header = b""
        self._written = place.offset

    @classmethod
    def create(cls, path: Path, key: FrameKey, parent_id: bytes = NO_FILE) -> "FrameFile":
        """Make a file that is not there yet; its header is written with the first frame.

        Raises:
            OSError: It is there, or the disk does not take it.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = key.new_file(parent_id)
        # O_EXCL: never through a link that somebody else put there.
        file = cls(path, key, place, os.open(path, _NEW, 0o600))
        file._unwritten_header, file._written = place.header, 0
        return file

    @classmethod
    def reopen(cls, path: Path, key: FrameKey, place: Place) -> "FrameFile":
        """Go on with a file that was read up to `place`, its end.

        Raises:
            OSError: It cannot be written.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        return cls(path, key, place, os.open(path, flags))

    def append(self, plain: bytes, *, is_last: bool = False) -> int:
        """Add a frame and return how many bytes it made the file longer; `sync` makes it last.

        Raises:
            OSError: The disk does not take all of it, or the file is not the one that it was.
        """
        found = os.fstat(self._descriptor)
        if not found.st_nlink or found.st_size != self._written:
            raise OSError(errno.ESTALE, "it was removed or changed by somebody else")
        frame, place = self._key.seal(self.place, plain, is_last=is_last)
        unwritten = memoryview(self._unwritten_header + frame)
        while unwritten:
            unwritten = unwritten[os.write(self._descriptor, unwritten) :]
        grown = place.offset - self._written
        self.place, self._written, self._unwritten_header = place, place.offset, b""
        return grown

    def sync(self) -> None:
        """Return when all frames so far outlive the host.

        Raises:
            OSError: The disk does not promise that.
        """
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file; it may be called again."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Return when the names of the files in `directory` outlive the host.

    Raises:
        OSError: The disk does not promise that.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, stem: str, why: str, *, stays: bool = False) -> None:
    """Rename a file that cannot be used to `<stem>.corrupt-<n>`, for a person to look at; say so.

    At most 10 stay of one stem: the newest takes the place of the one before it. One whose beginning can
    be used `stays` under its own name too, so that whoever starts next finds what this process found.
    """
    _log.error("kept_file_unusable", file=path.name, error=why)
    names = [path.with_name(f"{stem}.corrupt-{n}") for n in range(1, _MAX_SET_ASIDE + 1)]
    target = next((name for name in names if not name.exists()), names[-1])
    try:
        if not stays:
            path.rename(target)
        elif not any(name.exists() and name.samefile(path) for name in names):
            target.unlink(missing_ok=True)
            target.hardlink_to(path)
    except OSError as error:
        _log.error("kept_file_not_set_aside", file=path.name, error=error_code(error))


def error_code(error: OSError) -> str:
    """Return the short name of what a disk said, such as `ENOSPC`."""
    return errno.errorcode.get(error.errno or 0, "EIO")
