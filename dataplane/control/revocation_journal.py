"""Revocations outlive the process that heard of them: memory, disk, then the acknowledgement.

A revocation is needed for as long as a configuration that does not contain it may be loaded: both
generations on the disk count, without their journals, which may turn out to be unreadable. Keys and
devices stay for 7 days besides: a database that is restored from a backup may know them again.

After a journal was lost, the next one is not complete: nobody can say what the lost one refused. It
is complete again when no configuration of before is left on the disk.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from dataplane.control.disk_outage import DiskOutage
from dataplane.control.disk_thread import DiskThread
from dataplane.control.kept import KeptRevocation
from dataplane.control.revocation_file import RevocationFile
from dataplane.domain.revocations import DEVICE, KEY
from dataplane.domain.snapshot import Position

_WEEK_MS: Final = 7 * 24 * 60 * 60 * 1000
# Longer than a disk that works ever takes; who waits for the receipt is told the truth then.
_PATIENCE_SECONDS: Final = 5.0
_MAX_WAITING: Final = 10_000
# Rewritten when most of it is not needed.
_WORTH_REWRITING: Final = 1_000

_Subject = tuple[str, str, str]


class RevocationJournal:
    """Keeps revocations; use it on one event loop.

    Args:
        directory: Where the file is.
        node_key: What it is sealed under.
        clock_ms: Unix milliseconds.
    """

    def __init__(self, directory: Path, node_key: bytes, clock_ms: Callable[[], int]) -> None:
        self._file = RevocationFile(directory, node_key)
        self._clock_ms = clock_ms
        self._entries: dict[_Subject, KeptRevocation] = {}
        self._waiting: list[tuple[KeptRevocation, asyncio.Future[bool]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._disk = DiskThread("keep-revocations")
        self._is_stale = False
        self.is_complete = True
        self.outage = DiskOutage("revocations")
        self.bytes_written = 0

    @property
    def entries(self) -> tuple[KeptRevocation, ...]:
        """Return what is known to be refused; it is all there was only if `is_complete`."""
        return tuple(self._entries.values())

    @property
    def count(self) -> int:
        """Return how many revocations are remembered."""
        return len(self._entries)

    async def load(self, *, is_expected: bool) -> None:
        """Read what an earlier process kept.

        Args:
            is_expected: There is a configuration on the disk, so there must be a journal.
        """
        async with self._lock:
            read = await self._disk.run(self._file.read)
        if read is None:
            self.is_complete = not is_expected
            return
        found, self.is_complete = read
        for each in found:
            self._remember(each)

    async def keep(self, revocation: KeptRevocation) -> bool:
        """Return whether `revocation` is on the disk; all that wait share one sync.

        It is remembered, and written with the next one, in any case. False comes after 5 seconds at
        the latest.
        """
        self._remember(revocation)
        if len(self._waiting) >= _MAX_WAITING:
            self._is_stale = True
            return False
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((revocation, waiter))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_waiting(), name="keep-revocations")
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await waiter
        except TimeoutError:
            return False

    async def ensure(self) -> None:
        """Return when the file is on the disk, with all that is remembered.

        Raises:
            OSError: The disk does not take it.
        """
        async with self._lock:
            if self._is_stale or not await self._disk.run(self._file.exists):
                await self._rewrite()

    async def forget(self, generations: Collection[Position | None]) -> None:
        """Forget what nobody needs while these are the configurations on the disk.

        None among them is one whose position is not known: it may need anything.
        """
        if None not in generations:
            bases, now_ms = [each for each in generations if each is not None], self._clock_ms()
            unneeded = [
                subject
                for subject, each in self._entries.items()
                if not is_needed(each, bases, now_ms)
            ]
            for subject in unneeded:
                del self._entries[subject]
        async with self._lock:
            if self._file.records > 2 * len(self._entries) + _WORTH_REWRITING:
                await self._rewrite_or_say()

    async def complete(self) -> None:
        """Say that no configuration on the disk is older than what is remembered here."""
        async with self._lock:
            self.is_complete = True
            await self._rewrite_or_say()
            # What is on the disk still says otherwise, and whoever loads it must believe that.
            self.is_complete = not self._is_stale

    async def aclose(self) -> None:
        """Return when all that was asked for is kept, or cannot be."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_PATIENCE_SECONDS)
        self._disk.close(self._file.close)

    def _remember(self, revocation: KeptRevocation) -> None:
        subject = (revocation.kind, revocation.subject_id, revocation.config_epoch)
        known = self._entries.get(subject)
        if known is None or known.revision <= revocation.revision:
            self._entries[subject] = revocation

    async def _write_waiting(self) -> None:
        while self._waiting:
            async with self._lock:
                # What came while another sync went on goes to the disk together.
                batch, self._waiting = self._waiting, []
                is_kept = await self._write([revocation for revocation, _ in batch])
            for _, waiter in batch:
                if not waiter.done():
                    waiter.set_result(is_kept)

    async def _write(self, revocations: list[KeptRevocation]) -> bool:
        if not self._is_stale:
            try:
                self.bytes_written += await self._disk.run(self._file.append, revocations)
            except FileNotFoundError:
                # The first one, after a start or because somebody removed it: nothing is wrong yet.
                self._is_stale = True
            except Exception as error:
                # As below: the first that fails is rewritten at once.
                self._is_stale = True
                self.outage.failed(error)
            else:
                return True
        return await self._rewrite_or_say()

    async def _rewrite_or_say(self) -> bool:
        try:
            await self._rewrite()
        except Exception as error:
            # The last boundary: whoever keeps something is told, and goes on.
            self.outage.failed(error)
            return False
        return True

    async def _rewrite(self) -> None:
        entries: Iterable[KeptRevocation] = tuple(self._entries.values())
        # From here on: what is remembered while these are written must be written after them.
        self._is_stale = False
        try:
            self.bytes_written += await self._disk.run(self._rewritten, entries)
        except BaseException:
            # Also when cancelled: what is on the disk then is not known.
            self._is_stale = True
            raise
        self.outage.over()

    def _rewritten(self, entries: Iterable[KeptRevocation]) -> int:
        return self._file.rewrite(entries, is_complete=self.is_complete)


def is_needed(revocation: KeptRevocation, bases: Collection[Position], now_ms: int) -> bool:
    """Return whether a revocation refuses something that no longer would be refused without it.

    Args:
        revocation: What is refused.
        bases: The configurations that may be loaded.
        now_ms: Unix milliseconds.
    """
    if revocation.kind in (KEY, DEVICE) and now_ms - revocation.at_ms < _WEEK_MS:
        return True
    return any(
        (base.config_epoch, base.revision) < (revocation.config_epoch, revocation.revision)
        for base in bases
    )
