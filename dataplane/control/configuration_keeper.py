"""Brings every configuration that was applied to the disk, behind the back of those who apply.

Changes wait in a short queue and are appended to the journal of the newest generation, together where
they came together. A new generation is written instead when the journal has grown as large as is worth
reading again, when a change is most of the configuration, when more waits than is worth queueing, and
after anything went wrong: what is held is whole, so nothing has to be repaired.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Final

from dataplane.control.change_journal import ChangeJournal, ChangeJournals, JournalEnd
from dataplane.control.disk_outage import DiskOutage
from dataplane.control.disk_thread import DiskThread
from dataplane.control.holdings import Change, Holdings
from dataplane.control.kept_changes import encoded_parts
from dataplane.control.revocation_journal import RevocationJournal
from dataplane.control.slices import Slices
from dataplane.control.snapshot_file import Generation, NewGeneration, SnapshotFile
from dataplane.domain.snapshot import Position

FRAME_BYTES: Final = 1024 * 1024
MAX_JOURNAL_RECORDS: Final = 10_000
_MAX_JOURNAL_BYTES: Final = 64 * 1024 * 1024
# A small configuration is not written anew for every other change.
_SMALL_JOURNAL_BYTES: Final = 256 * 1024
# A change of more than a quarter of the configuration is a new generation, unless it is small anyway.
_SMALL_CHANGE: Final = 1_000
MAX_QUEUED_CHANGES: Final = 1_000
MAX_QUEUED_ENTRIES: Final = 50_000
# A disk that is full is asked again with the next change, not more often, and once in a while.
RETRY_SECONDS: Final = (1.0, 60.0)
_CLOSING_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Pending:
    change: Change
    entries: int


class ConfigurationKeeper:
    """Keeps configurations; use it on one event loop."""

    def __init__(
        self, files: SnapshotFile, journals: ChangeJournals, revocations: RevocationJournal
    ) -> None:
        self._files = files
        self._journals = journals
        self._revocations = revocations
        self._holdings = Holdings()
        self._last = self._holdings.position
        self._generation: Generation | None = None
        self._journal: ChangeJournal | None = None
        self._queue: deque[_Pending] = deque()
        self._queued_entries = 0
        self._wants_generation = True
        self._work: asyncio.Task[None] | None = None
        self._is_woken = asyncio.Event()
        self._closing = asyncio.Event()
        self._disk = DiskThread("keep-configuration")
        self.outage = DiskOutage("configuration")
        self.bytes_written = 0

    @property
    def journal_records(self) -> int:
        """Return how many changes are in the journal of the newest generation."""
        return 0 if self._journal is None else self._journal.records

    @property
    def is_behind(self) -> bool:
        """Return whether something of what was to be kept is not on the disk yet."""
        return self._work is not None and not self._work.done()

    def go_on_from(self, generation: Generation, end: JournalEnd, last: Position) -> None:
        """Append to what was loaded: the newest generation, and its journal up to `end`."""
        self._generation, self._last = generation, last
        if end.is_whole:
            self._journal = self._journals.of(generation.file_id, end)
            self._wants_generation = False

    def keep(self, holdings: Holdings, change: Change) -> None:
        """Keep `change`, which `holdings` has taken over; does not await."""
        self._holdings = holdings
        entries = sum(map(len, (change.put, change.removed, change.secrets)))
        entries += len(change.dropped_secrets)
        is_nothing = not entries and change.position == self._last
        self._last = change.position
        if not is_nothing:
            self._put_off(change, entries)
        if not self._revocations.is_complete:
            self._wants_generation = True
        if self._has_work and not self._closing.is_set():
            self._is_woken.set()
            if self._work is None or self._work.done():
                self._work = asyncio.create_task(self._run(), name="keep-configuration")

    async def aclose(self) -> None:
        """Return when everything is kept, or cannot be; within 10 seconds."""
        self._closing.set()
        self._is_woken.set()
        if self._work is not None:
            await asyncio.wait([self._work], timeout=_CLOSING_SECONDS)
            self._work.cancel()
            await asyncio.wait([self._work])
        self._disk.close(self._close_journal)

    @property
    def _has_work(self) -> bool:
        return self._wants_generation or bool(self._queue)

    def _put_off(self, change: Change, entries: int) -> None:
        is_large = entries > max(_SMALL_CHANGE, len(self._holdings.resources) // 4)
        is_full = (
            len(self._queue) >= MAX_QUEUED_CHANGES
            or self._queued_entries + entries > MAX_QUEUED_ENTRIES
        )
        if self._wants_generation or change.is_everything or is_large or is_full:
            self._want_generation()
        else:
            self._queue.append(_Pending(change, entries))
            self._queued_entries += entries

    def _want_generation(self) -> None:
        self._wants_generation = True
        self._queue.clear()
        self._queued_entries = 0

    async def _run(self) -> None:
        while self._has_work:
            self._is_woken.clear()
            try:
                await (self._write_generation() if self._wants_generation else self._append())
            except Exception as error:
                # The last boundary: the disk, or a mistake here; what is applied goes on being applied.
                self._want_generation()
                self.outage.failed(error)
                if self._closing.is_set():
                    return
                await self._rest()
            else:
                self.outage.over()

    async def _rest(self) -> None:
        shortest, longest = RETRY_SECONDS
        for event, seconds in ((self._closing, shortest), (self._is_woken, longest - shortest)):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await event.wait()

    async def _append(self) -> None:
        journal, slices = self._journal, Slices()
        if journal is None:
            self._want_generation()
            return
        parts: list[bytes] = []
        size_bytes, records = 0, 0
        while self._queue and not self._wants_generation:
            pending = self._queue.popleft()
            self._queued_entries -= pending.entries
            async with contextlib.aclosing(_parts_of(pending.change, slices)) as encoded:
                async for part in encoded:
                    if size_bytes >= FRAME_BYTES:
                        self.bytes_written += await self._disk.run(journal.append, parts, records)
                        parts, size_bytes, records = [], 0, 0
                    parts.append(part)
                    size_bytes += len(part)
            records += 1
        if parts:
            self.bytes_written += await self._disk.run(journal.append, parts, records)
        if self._is_long(journal):
            self._want_generation()

    def _is_long(self, journal: ChangeJournal) -> bool:
        whole_bytes = 0 if self._generation is None else self._generation.size_bytes
        worth_bytes = min(max(whole_bytes // 2, _SMALL_JOURNAL_BYTES), _MAX_JOURNAL_BYTES)
        return journal.records >= MAX_JOURNAL_RECORDS or journal.size_bytes > worth_bytes

    async def _write_generation(self) -> None:
        holdings, self._wants_generation = self._holdings, False
        # References: the configuration may change while it is written, and what it was is written.
        resources, secrets = list(holdings.resources.values()), list(holdings.secrets.values())
        position = holdings.position
        # A generation without a journal of revocations beside it is one whose journal was lost.
        await self._revocations.ensure()
        # Closed before it is left: what is not continued must not stay open.
        await self._disk.run(self._close_journal)
        self._journal = None
        new = await self._disk.run(self._files.begin, position)
        try:
            parts = encoded_parts(Slices(), position, resources, secrets)
            async with contextlib.aclosing(_frames_of(parts)) as frames:
                async for frame, is_last in frames:
                    await self._disk.run(new.add, frame, is_last=is_last)
            await self._disk.run(self._finish, new)
        except BaseException:
            # Also when cancelled: what is half written is of no use.
            self._disk.submit(new.abort)
            raise
        await self._follow_up()

    def _finish(self, new: NewGeneration) -> None:
        # One that nobody could load is not worth keeping in the place of one that was.
        rotates = self._generation is not None and self._revocations.is_complete
        generation = new.finish(rotates=rotates)
        self.bytes_written += generation.size_bytes
        self._generation = generation
        self._journal = self._journals.of(generation.file_id)
        if not self._revocations.is_complete:
            self._files.drop_previous()

    async def _follow_up(self) -> None:
        found = await self._disk.run(lambda: list(self._files.look()))
        if not self._revocations.is_complete:
            await self._revocations.complete()
        if None not in found:
            ids = [each.file_id for each in found if each is not None]
            await self._disk.run(self._journals.remove_all_but, ids)
        positions = [None if each is None else each.position for each in found]
        await self._revocations.forget(positions)

    def _close_journal(self) -> None:
        if self._journal is not None:
            self._journal.close()


def _parts_of(change: Change, slices: Slices) -> AsyncGenerator[bytes, None]:
    return encoded_parts(
        slices,
        change.position,
        change.put.values(),
        change.secrets.values(),
        change.removed,
        change.dropped_secrets,
    )


async def _frames_of(
    parts: AsyncGenerator[bytes, None],
) -> AsyncGenerator[tuple[list[bytes], bool], None]:
    """Yield parts by the frame, and whether it is the last; a frame is a little over 1 MiB at most."""
    frame: list[bytes] = []
    size_bytes = 0
    async with contextlib.aclosing(parts):
        async for part in parts:
            if size_bytes >= FRAME_BYTES:
                yield frame, False
                frame, size_bytes = [], 0
            frame.append(part)
            size_bytes += len(part)
    yield frame, True
