"""The last known good configuration on the node's disk: a restart without a control plane serves it.

What is there, all of it sealed under the node's key:

    snapshot, snapshot.previous   whole configurations, two generations
    journal-<id of a generation>  what changed since that one was written
    revocations                   what is refused on top of either

Nothing here makes whoever applies a configuration wait, and nothing that a disk does is raised: a
node whose disk is full serves what it applied, and says so.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from dataplane.control.change_journal import ChangeJournals, JournalEnd
from dataplane.control.configuration_keeper import ConfigurationKeeper
from dataplane.control.frame_file import error_code
from dataplane.control.frames import CorruptFileError
from dataplane.control.holdings import Change, Holdings
from dataplane.control.kept import Kept, KeptRevocation
from dataplane.control.kept_changes import Fold
from dataplane.control.revocation_journal import RevocationJournal
from dataplane.control.snapshot_file import CURRENT, PREVIOUS, Generation, SnapshotFile
from dataplane.domain.snapshot import Position

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Figures:
    """What was kept, for metrics.

    Attributes:
        bytes_written: Since the start, of everything.
        journal_records: Changes in the journal of the newest generation.
        revocations: Revocations that are remembered.
        is_behind: Something that is in force is not on the disk, or not known to be.
        error: What the disk said last, as a short code such as `ENOSPC`; empty: all is kept.
    """

    bytes_written: int
    journal_records: int
    revocations: int
    is_behind: bool
    error: str


class LastKnownGood:
    """Keeps what is applied, and has it again after a restart.

    Use it on one event loop, and `load` before anything else.

    Args:
        directory: Where the files are; made when it is not there. One process may use it.
        node_key: 32 secret bytes that outlive the process elsewhere.
        clock_ms: Unix milliseconds.
    """

    def __init__(self, directory: Path, node_key: bytes, clock_ms: Callable[[], int]) -> None:
        self._files = SnapshotFile(directory, node_key)
        self._journals = ChangeJournals(directory, node_key)
        self._revocations = RevocationJournal(directory, node_key, clock_ms)
        self._keeper = ConfigurationKeeper(self._files, self._journals, self._revocations)

    @property
    def figures(self) -> Figures:
        """Return what was kept so far."""
        return Figures(
            bytes_written=self._keeper.bytes_written + self._revocations.bytes_written,
            journal_records=self._keeper.journal_records,
            revocations=self._revocations.count,
            is_behind=self._keeper.is_behind,
            error=self._keeper.outage.error or self._revocations.outage.error,
        )

    async def load(self, takes: Callable[[Kept], Awaitable[bool]]) -> Kept | None:
        """Offer what an earlier process kept, newest first, until `takes` is true of it.

        What is not as it was written is set aside and the older generation used. What is intact but
        not taken stays: another version of this program may be able to serve it. Where no
        configuration can be read, `takes` is told of the revocations alone.

        Returns:
            What was taken; None when there was nothing, or nothing was taken.
        """
        is_expected = await asyncio.to_thread(self._files.exists)
        await self._revocations.load(is_expected=is_expected)
        revoked, is_complete = self._revocations.entries, self._revocations.is_complete
        was_told = False
        for name in (CURRENT, PREVIOUS):
            read = await asyncio.to_thread(self._read, name)
            if read is None:
                continue
            generation, end, change = read
            kept, was_told = Kept(change, revoked, is_complete), True
            if await takes(kept):
                if name == CURRENT:
                    self._keeper.go_on_from(generation, end, change.position)
                return kept
        if not await asyncio.to_thread(self._files.exists):
            # Nothing older than what the control plane will say can be served any more.
            self._revocations.is_complete = True
        if revoked and not was_told:
            # A database that is restored from a backup may know keys again that were revoked.
            await takes(Kept(None, revoked, is_complete))
        return None

    def keep(self, holdings: Holdings, change: Change) -> None:
        """Keep what `holdings` is since it took `change` over, soon; does not await."""
        self._keeper.keep(holdings, change)

    async def keep_revocation(self, revocation: KeptRevocation) -> bool:
        """Return whether a revocation outlives the host; it is remembered in any case.

        False comes after 5 seconds at the latest; it is written with whatever is kept next.
        """
        return await self._revocations.keep(revocation)

    async def aclose(self) -> None:
        """Return when everything is on the disk, or cannot be; within some seconds."""
        await self._keeper.aclose()
        await self._revocations.aclose()

    def _read(self, name: str) -> tuple[Generation, JournalEnd, Change] | None:
        fold = Fold()
        try:
            generation = self._files.read(name, fold)
            if generation is None:
                return None
            end = self._journals.read(generation.file_id, fold)
            return generation, end, fold.change()
        except CorruptFileError as error:
            self._files.set_aside(name, str(error))
        except OSError as error:
            _log.error("kept_file_unreadable", file=name, error=error_code(error))
        return None


def position_on_disk(directory: Path, node_key: bytes) -> Position | None:
    """Return what a restart would serve, without touching a file; another process may be writing.

    Blocks on the disk.
    """
    files, journals = SnapshotFile(directory, node_key), ChangeJournals(directory, node_key)
    for name in (CURRENT, PREVIOUS):
        fold = Fold()
        try:
            generation = files.read(name, fold)
        except (CorruptFileError, OSError):
            continue
        if generation is not None:
            journals.read(generation.file_id, fold, sets_aside=False)
            return fold.position
    return None
