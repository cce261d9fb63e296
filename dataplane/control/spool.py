"""Usage on disk until the ledger has it: what was flushed outlives the process."""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self

import structlog

from dataplane.control.spool_disk import SpoolInUseError, lock, remove, sync_all
from dataplane.control.spool_emptying import Emptier
from dataplane.control.spool_records import Kind, UnreadableEventError, encode_event
from dataplane.control.spool_recovery import Recovered, read_events, recover
from dataplane.control.spool_segments import (
    Place,
    Segment,
    read_first_record,
)
from dataplane.domain.calls import UsageEvent

__all__ = ["CAPACITY_BYTES", "SEGMENT_BYTES", "Recovered", "Spool", "SpoolInUseError"]

SEGMENT_BYTES: Final = 8 * 1024 * 1024
CAPACITY_BYTES: Final = 256 * 1024 * 1024

_REFUSED_FILE: Final = "refused"
# The death of a host may lose so much; that of a process loses nothing.
_SYNC_SECONDS: Final = 0.05
# A full disk is tried again so often, also when nothing new comes.
_RETRY_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 10.0
# Acknowledgements of one record fit a record of their own.
_ACKNOWLEDGED_AT_ONCE: Final = 500

_log: Final = structlog.get_logger(__name__)


class Spool:
    """An append-only record of admitted requests in one directory, which one process has.

    Belongs to one event loop; what it is told is plain calls that raise nothing. It keeps about
    200 bytes of memory for each request that is not in the ledger.
    """

    def __init__(
        self,
        directory: Path,
        descriptor: int,
        segments: list[Segment],
        capacity_bytes: int,
        segment_bytes: int,
    ) -> None:
        """Use `open` instead."""
        self._directory = directory
        self._lock: int | None = descriptor
        self._capacity_bytes = capacity_bytes
        self._segment_bytes = segment_bytes
        self._active = Segment(directory, segments[-1].number + 1 if segments else 1)
        self._segments = [*segments, self._active]
        refused_bytes = _size_of(directory / _REFUSED_FILE)
        self._sealed_bytes = refused_bytes + sum(segment.size for segment in segments)
        self._unwritten: list[Segment] = []
        self._unsynced: dict[Segment, None] = {}
        self._is_failing = False
        self._timer: asyncio.TimerHandle | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._syncing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._emptier = Emptier(
            self._segments, self._thread, self._append, self.flush, self._forget
        )

    @classmethod
    def open(
        cls,
        directory: Path,
        capacity_bytes: int = CAPACITY_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> tuple[Self, Recovered]:
        """Lock `directory`, which is made if need be, and read what is left in it.

        Reads up to `capacity_bytes`; blocks on the disk. A record that was not written to its end
        counts as not written. After a damaged one, nothing of its segment is read.

        Raises:
            SpoolInUseError: Another process has it.
            OSError: It cannot be read or written.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = lock(directory)
        try:
            segments, recovered = recover(directory)
        except BaseException:
            os.close(descriptor)
            raise
        spool = cls(directory, descriptor, segments, capacity_bytes, segment_bytes)
        spool._drop(segments)
        return spool, recovered

    @property
    def is_full(self) -> bool:
        """Return whether no further request may begin; those that did can always be closed."""
        return self._is_failing or self.size_bytes >= self._capacity_bytes

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all records that are kept."""
        return self._sealed_bytes + self._active.size

    def append_open(self, event: UsageEvent) -> None:
        """Add the event that stands for a request until its end is known."""
        self._append(event.request_id, Kind.OPEN, encode_event(Kind.OPEN, event))

    def append_close(self, event: UsageEvent) -> None:
        """Add a request's final event."""
        self._append(event.request_id, Kind.CLOSE, encode_event(Kind.CLOSE, event))

    def flush(self) -> None:
        """Write what was appended: one write(2), unless a segment begins in it.

        What a disk does not take stays in memory and is tried again; until then `is_full`.
        """
        try:
            while self._unwritten:
                segment = self._unwritten[0]
                segment.write_out()
                self._unsynced[segment] = None
                del self._unwritten[0]
        except OSError as error:
            self._note_failure(error)
            return
        if self._is_failing:
            self._is_failing = False
            _log.warning("usage_spool_writes_again")
        if self._timer is None and self._unsynced:
            self._timer = _later(_SYNC_SECONDS, self._sync)

    def acknowledge(self, request_ids: Iterable[str]) -> None:
        """Forget requests that are in the ledger; segments that hold no others are deleted.

        Of one that holds few others these are moved, beside the requests, and it is deleted, too.
        """
        wanted = list(request_ids) if self._lock is not None else []
        # Oldest first: a CLOSE is never forgotten on disk before the OPEN that it ends. Also of
        # segments that are done: their files go later, in the thread.
        for segment in self._segments:
            mine = segment.acknowledge(wanted)
            try:
                for start in range(0, len(mine), _ACKNOWLEDGED_AT_ONCE):
                    segment.write_acknowledged(mine[start : start + _ACKNOWLEDGED_AT_ONCE])
            except OSError as error:
                _log.warning("usage_acknowledgement_not_kept", error=error.strerror)
        self._drop([segment for segment in self._segments if segment.is_done])
        self._empty_thin()

    async def read_closes(self, request_ids: Sequence[str]) -> list[UsageEvent]:
        """Return the final events of requests, read in a thread; those without one are left out.

        An event that is damaged is put aside as `refuse` does.

        Raises:
            OSError: The disk cannot be read now.
        """
        events: list[UsageEvent] = []
        left = list(request_ids)
        while places := {name: place for name in left if (place := self._place_of(name))}:
            read, unreadable = await asyncio.to_thread(read_events, list(places.items()))
            events += read
            # Moved while it was read: it is whole where it is now.
            left = [name for name in unreadable if self._place_of(name) != places[name]]
            for request_id in unreadable.keys() - set(left):
                error = unreadable[request_id]
                _log.error("usage_event_unreadable", request_id=request_id, error=error)
                self.refuse(request_id)
        return events

    def refuse(self, request_id: str) -> None:
        """Put a CLOSE aside, in the file `refused`, for a person: the ledger never takes it.

        It goes on counting against the capacity.
        """
        try:
            place = self._place_of(request_id)
            self._put_aside(b"" if place is None else read_first_record(place))
        except UnreadableEventError as error:
            _log.error("usage_record_damaged", request_id=request_id, error=str(error))
        except OSError as error:
            # It stays where it is, and the next start sends it again.
            _log.error("usage_record_not_put_aside", request_id=request_id, error=error.strerror)
            return
        _log.error("usage_record_refused", request_id=request_id, file=_REFUSED_FILE)
        self.acknowledge([request_id])

    async def aclose(self) -> None:
        """Write and sync everything, and give the directory back. Closing twice is harmless.

        Raises:
            TimeoutError: The disk did not take it within ten seconds.
        """
        if self._lock is None:
            return
        await self._emptier.aclose()
        self.flush()
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._active.is_sealed = True
        self._drop([segment for segment in self._segments if segment.is_done])
        self._sync()
        async with asyncio.timeout(_CLOSE_SECONDS):
            await asyncio.to_thread(self._thread.shutdown)
        descriptor, self._lock = self._lock, None
        os.close(descriptor)

    def _append(self, request_id: str, kind: Kind, record: bytes) -> Segment:
        segment = self._active
        if segment.size >= self._segment_bytes:
            segment = self._roll()
        if not segment.unwritten:
            self._unwritten.append(segment)
        segment.append(request_id, kind, record)
        return segment

    def _roll(self) -> Segment:
        sealed = self._active
        sealed.is_sealed = True
        self._sealed_bytes += sealed.size
        self._unsynced[sealed] = None  # to be closed, too
        self._active = Segment(self._directory, sealed.number + 1)
        self._segments.append(self._active)
        if sealed.is_done:
            self._drop([sealed])
        return self._active

    def _drop(self, segments: Sequence[Segment]) -> None:
        for segment in [each for each in segments if each.is_done]:
            self._segments.remove(segment)
            if segment is not self._active:
                self._sealed_bytes -= segment.size
            if segment in self._unwritten:
                self._unwritten.remove(segment)
            self._unsynced.pop(segment, None)
            descriptor, segment.descriptor = segment.descriptor, None
            self._thread.submit(remove, segment, descriptor)

    def _forget(self, segment: Segment) -> None:
        segment.pending.clear()
        if segment in self._segments:
            self._drop([segment])

    def _empty_thin(self) -> None:
        if self._lock is not None and not self._is_failing:
            self._emptier.start()

    def _place_of(self, request_id: str) -> Place | None:
        for segment in reversed(self._segments):
            place = segment.close_of(request_id)
            if place is not None:
                return place
        return None

    def _put_aside(self, record: bytes) -> None:
        with (self._directory / _REFUSED_FILE).open("ab") as file:
            file.write(record)
        self._sealed_bytes += len(record)

    def _note_failure(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            _log.error("usage_spool_cannot_write", error=error.strerror)
        if self._retry is None:
            self._retry = _later(_RETRY_SECONDS, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    def _sync(self) -> None:
        """Have what was written synced; files that are complete are closed after it."""
        self._timer = None
        if self._lock is None:
            return
        if self._syncing is not None and not self._syncing.done() and not self._active.is_sealed:
            self._timer = _later(_SYNC_SECONDS, self._sync)  # a slow disk: one at a time
            return
        jobs: list[tuple[int, bool]] = []
        for segment in self._unsynced:
            if segment.descriptor is None:
                continue
            is_complete = segment.is_sealed and not segment.unwritten
            jobs.append((segment.descriptor, is_complete))
            if is_complete:
                segment.descriptor = None
        self._unsynced.clear()
        if jobs:
            self._syncing = self._thread.submit(sync_all, jobs, self._directory)
        self._empty_thin()


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _later(seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle | None:
    """Call back on the running loop; without one (a tool, a start) `aclose` does the rest."""
    try:
        return asyncio.get_running_loop().call_later(seconds, call)
    except RuntimeError:
        return None
