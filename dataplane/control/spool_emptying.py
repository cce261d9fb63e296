"""Moves what is live out of thin segments, so that a few long requests do not fill a spool."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

import structlog

from dataplane.control.spool_disk import replace_records
from dataplane.control.spool_records import Kind, UnreadableEventError
from dataplane.control.spool_segments import Place, Segment, read_first_record

# About 50 KB: what the event loop is held for while it takes them is not felt.
_RECORDS_AT_ONCE: Final = 50

_log: Final = structlog.get_logger(__name__)
# What a thin segment holds for a request.
_Live = tuple[str, Kind, Place]


class Emptier:
    """Empties thin segments, one at a time, in a task beside the requests.

    The records are copied to the active segment and synced there before their segment goes; until
    then both hold them, both are told of acknowledgements, and recovery takes each request once.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        thread: Executor,
        append: Callable[[str, Kind, bytes], Segment],
        flush: Callable[[], None],
        forget: Callable[[Segment], None],
    ) -> None:
        """Work on `segments`, the list that the spool itself changes, oldest first.

        Args:
            segments: All segments of the spool.
            thread: Where the spool waits for the disk, in order.
            append: Adds a record and returns the segment that it stands in.
            flush: Writes what was added.
            forget: Called when a segment's records are elsewhere and its file is gone.
        """
        self._segments = segments
        self._thread = thread
        self._append = append
        self._flush = flush
        self._forget = forget
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin if there is something to do, and a loop to do it on; costs little otherwise."""
        is_busy = self._task is not None and not self._task.done()
        if is_busy or self._is_closed or self._thin() is None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a tool; the next process does it
            return
        self._task = loop.create_task(self._run(), name="empty-spool-segments")

    async def aclose(self) -> None:
        """Stop where it is: what was copied so far is there twice, which says nothing new."""
        self._is_closed = True
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    def _thin(self) -> Segment | None:
        return next((each for each in self._segments if each.is_thin), None)

    async def _run(self) -> None:
        while (segment := self._thin()) is not None:
            try:
                if not await self._empty(segment):
                    return  # what was copied is found when the disk takes more
            except Exception:
                # The boundary of this task: the segment stays until its requests are in the ledger.
                segment.is_kept = True
                _log.exception("usage_segment_not_emptied", segment=segment.path.name)

    async def _empty(self, segment: Segment) -> bool:
        """Return whether it was done; else the disk does not take the copies now."""
        loop = asyncio.get_running_loop()
        holders: set[Segment] = set()
        names = list(segment.pending)
        for start in range(0, len(names), _RECORDS_AT_ONCE):
            few = names[start : start + _RECORDS_AT_ONCE]
            live = [(name, *segment.place_of(name)) for name in few if name in segment.pending]
            records = await loop.run_in_executor(self._thread, _read, live)
            # It may be in the ledger by now.
            moved = [each for each in records if each[0] in segment.pending]
            holders.update(self._hold(segment, *each) for each in moved)
            self._flush()
        if any(each.unwritten for each in holders):
            return False
        paths = [each.path for each in holders]
        await loop.run_in_executor(self._thread, replace_records, segment.path, paths)
        self._forget(segment)
        return True

    def _hold(self, segment: Segment, request_id: str, kind: Kind, record: bytes) -> Segment:
        """Return a later segment that says of a request all that `segment` says."""
        for each in reversed(self._segments):
            if each is segment:
                break
            if request_id in each.pending and (kind is Kind.OPEN or each.has_close(request_id)):
                # Told later, so it counts, and must not be undone by a copy of what was before.
                return each
        return self._append(request_id, kind, record)


def _read(live: Sequence[_Live]) -> list[tuple[str, Kind, bytes]]:
    """Return the records.

    Raises:
        UnreadableEventError: One is not as it was written.
        OSError: The disk cannot be read.
    """
    records = [(name, kind, read_first_record(place)) for name, kind, place in live]
    for name, _, record in records:
        if not record:
            raise UnreadableEventError(f"the record of {name} ends early")
    return records
