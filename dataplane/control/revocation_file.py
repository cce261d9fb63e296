"""The revocations that a node heard of, on its disk, under the node's key.

One file: its first frame says whether it is complete, each other holds revocations that reached the
disk together. It is written anew beside itself to leave out what nobody needs any more.

Calls block on the disk: make them in a thread, one at a time.
"""

import contextlib
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import structlog

from dataplane.control.frame_file import FrameFile, error_code, set_aside, sync_directory
from dataplane.control.frames import CorruptFileError, FrameKey, TornFileError
from dataplane.control.kept import KeptRevocation

REVOCATIONS: Final = "revocations"
_MAGIC: Final = b"TKREVO01"
# Encoded in well under a millisecond.
_FRAME_REVOCATIONS: Final = 500

_encode: Final = msgspec.msgpack.Encoder().encode
_first_decoder: Final = msgspec.msgpack.Decoder(bool)
_decoder: Final = msgspec.msgpack.Decoder(list[KeptRevocation])
_log: Final = structlog.get_logger(__name__)


class RevocationFile:
    """The file, which one process writes."""

    def __init__(self, directory: Path, node_key: bytes) -> None:
        self._path = directory / REVOCATIONS
        self._key = FrameKey(node_key, _MAGIC)
        self._file: FrameFile | None = None
        self.records = 0

    def read(self) -> tuple[list[KeptRevocation], bool] | None:
        """Return what is in the file, and whether that is all there was.

        A last frame that is torn was never acknowledged. A file that is not what was written is set
        aside: it may have held any revocation.

        Returns:
            None when there is no file.
        """
        try:
            return self._read()
        except FileNotFoundError:
            return None
        except CorruptFileError as error:
            set_aside(self._path, REVOCATIONS, str(error))
        except OSError as error:
            set_aside(self._path, REVOCATIONS, error_code(error))
        return [], False

    def exists(self) -> bool:
        """Return whether there is a file that can be added to."""
        return self._file is not None and self._path.exists()

    def append(self, revocations: Sequence[KeptRevocation]) -> int:
        """Add revocations and return their bytes once they outlive the host.

        Raises:
            OSError: The disk does not take them; the file must be rewritten.
        """
        file, self._file = self._file, None
        if file is None:
            raise FileNotFoundError(2, "it was not written yet")
        try:
            grown = file.append(_encode(revocations))
            file.sync()
        except OSError:
            file.close()
            raise
        self._file = file
        self.records += len(revocations)
        return grown

    def rewrite(self, revocations: Iterable[KeptRevocation], *, is_complete: bool) -> int:
        """Write the file anew and return its bytes once it outlives the host.

        Raises:
            OSError: The disk does not take it; the file so far stays.
        """
        temporary = self._path.with_name(f"{REVOCATIONS}.tmp")
        temporary.unlink(missing_ok=True)
        file, rest, records = FrameFile.create(temporary, self._key), iter(revocations), 0
        try:
            file.append(_encode(is_complete))
            while some := list(islice(rest, _FRAME_REVOCATIONS)):
                file.append(_encode(some))
                records += len(some)
            file.sync()
            temporary.rename(self._path)
            sync_directory(self._path.parent)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        self.close()
        self._file, self.records = file, records
        return file.place.offset

    def close(self) -> None:
        """Close the file; it may be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self) -> tuple[list[KeptRevocation], bool]:
        found: list[KeptRevocation] = []
        is_complete: bool | None = None
        with self._path.open("rb") as file:
            try:
                for plain, _, _ in self._key.frames(file, self._key.read_header(file)):
                    if is_complete is None:
                        is_complete = _first_decoder.decode(plain)
                    else:
                        found += _decoder.decode(plain)
            except TornFileError as error:
                _log.warning("kept_revocations_torn", error=str(error), revocations=len(found))
            except msgspec.DecodeError as error:
                raise CorruptFileError("its contents have another form") from error
        if is_complete is None:
            # The first frame is on the disk before the file has its name.
            raise CorruptFileError("it ends early")
        return found, is_complete
