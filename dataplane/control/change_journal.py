"""What changed since a generation was written: a journal beside it, named by the generation's id.

A journal belongs to one generation: whichever of the two is used, its own changes are there. Frames
hold parts of `kept_changes`; one change may take several.

Calls block on the disk: make them in a thread, one at a time.
"""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from dataplane.control.frame_file import FrameFile, set_aside, sync_directory
from dataplane.control.frames import CorruptFileError, FrameKey, Place, TornFileError
from dataplane.control.kept_changes import Fold, joined, parts_in

_MAGIC: Final = b"TKJRNL01"
_PREFIX: Final = "journal-"

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JournalEnd:
    """How far a journal was read, and whether it can be gone on with.

    Attributes:
        place: Behind its last frame; None when there is no journal.
        records: The changes in it.
        is_whole: It ends with a whole change, and nothing of it was lost.
    """

    place: Place | None = None
    records: int = 0
    is_whole: bool = True


class ChangeJournals:
    """The journals of the generations in one directory."""

    def __init__(self, directory: Path, node_key: bytes) -> None:
        self._directory = directory
        self._key = FrameKey(node_key, _MAGIC)

    def of(self, generation_id: bytes, end: JournalEnd | None = None) -> "ChangeJournal":
        """Return the journal of a generation, to be gone on with from `end`."""
        return ChangeJournal(self._path(generation_id), self._key, generation_id, end)

    def read(self, generation_id: bytes, fold: Fold, *, sets_aside: bool = True) -> JournalEnd:
        """Fold the changes since a generation was written, as many as are as they were written.

        A last one that did not reach the disk whole does not count. What follows a change that is
        not what was written does not count either, and the journal is set aside if asked, where it also
        stays until another generation is there: the state before that change is whole, and newer than
        what would be left without it.
        """
        path, records = self._path(generation_id), 0
        place: Place | None = None
        is_within_a_change = False
        try:
            with path.open("rb") as file:
                place = self._key.read_header(file)
                if place.parent_id != generation_id:
                    raise CorruptFileError("it belongs to another generation")
                for plain, _, behind in self._key.frames(file, place):
                    for part in parts_in(plain):
                        is_within_a_change = not fold.add(part)
                        records += not is_within_a_change
                    place = behind
        except FileNotFoundError:
            return JournalEnd()
        except TornFileError as error:
            _log.warning("kept_journal_torn", file=path.name, error=str(error), changes=records)
        except CorruptFileError as error:
            _log.error("kept_journal_corrupt", file=path.name, error=str(error), changes=records)
            if sets_aside:
                set_aside(path, "journal", str(error), stays=True)
        except OSError as error:
            _log.error("kept_journal_unreadable", file=path.name, error=error.strerror)
        else:
            return JournalEnd(place, records, not is_within_a_change)
        return JournalEnd(place, records, is_whole=False)

    def remove_all_but(self, generation_ids: Collection[bytes]) -> None:
        """Remove the journals of generations that are gone, as far as the disk lets."""
        wanted = {self._path(each) for each in generation_ids}
        for path in self._directory.glob(f"{_PREFIX}{'[0-9a-f]' * 32}"):
            if path not in wanted:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _path(self, generation_id: bytes) -> Path:
        return self._directory / f"{_PREFIX}{generation_id.hex()}"


class ChangeJournal:
    """One journal; after an error it is not to be used any more."""

    def __init__(
        self, path: Path, key: FrameKey, generation_id: bytes, end: JournalEnd | None
    ) -> None:
        """Use `ChangeJournals.of`."""
        self._path = path
        self._key = key
        self._generation_id = generation_id
        self._file: FrameFile | None = None
        self._place = None if end is None else end.place
        self.records = 0 if end is None else end.records
        self.size_bytes = 0 if self._place is None else self._place.offset

    def append(self, parts: list[bytes], records: int) -> int:
        """Add parts, which end `records` changes, and return their bytes once they are on the disk.

        Raises:
            OSError: The disk does not take them.
        """
        is_new = self._file is None and self._place is None
        if self._file is None:
            self._file = self._opened()
        grown = self._file.append(joined(parts))
        self._file.sync()
        if is_new:
            sync_directory(self._path.parent)
        self.size_bytes += grown
        self.records += records
        return grown

    def close(self) -> None:
        """Close the file; it may be called again."""
        if self._file is not None:
            self._file.close()

    def _opened(self) -> FrameFile:
        if self._place is None:
            return FrameFile.create(self._path, self._key, self._generation_id)
        return FrameFile.reopen(self._path, self._key, self._place)
