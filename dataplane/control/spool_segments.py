"""One file of a spool, and beside it the file that says what of it is in the ledger."""

import contextlib
import os
from pathlib import Path
from typing import Final

import structlog

from dataplane.control.spool_records import (
    MAX_RECORD_BYTES,
    DamagedRecordError,
    Kind,
    UnreadableEventError,
    acknowledged_in,
    encode_acknowledged,
    event_in,
    records_in,
    request_id_of,
)
from dataplane.domain.calls import UsageEvent

_SUFFIX: Final = ".spool"
_ACKNOWLEDGED_SUFFIX: Final = ".acknowledged"
# Most records are shorter.
_USUAL_BYTES: Final = 2_048
# A segment with fewer live records than one in so many is not worth its place.
_THIN_PART: Final = 8

# Where a record begins: a byte of a file, or the first of some bytes that follow it or not.
Place = tuple[Path, int] | bytes

_log: Final = structlog.get_logger(__name__)


class Segment:
    """A run of records, in one file.

    `pending` are the requests with records here that are not in the ledger, with the byte where
    their CLOSE begins, or ~ the byte where their last OPEN begins when no CLOSE is here. Where a
    record stands is decided when it is appended: what a full disk did not take yet follows in
    `unwritten`, and the file never has a gap. `is_kept` says that it could not be emptied.
    """

    __slots__ = (
        "descriptor",
        "is_kept",
        "is_sealed",
        "number",
        "path",
        "pending",
        "record_count",
        "unwritten",
        "written",
    )

    def __init__(self, directory: Path, number: int) -> None:
        self.number = number
        self.path = directory / f"{number:012d}{_SUFFIX}"
        self.pending: dict[str, int] = {}
        self.unwritten = bytearray()
        self.written = 0
        self.descriptor: int | None = None
        self.is_sealed = False
        self.is_kept = False
        self.record_count = 0

    @property
    def size(self) -> int:
        """Return the bytes of all records, written or not."""
        return self.written + len(self.unwritten)

    @property
    def is_done(self) -> bool:
        """Return whether nothing will be added and all that is here is in the ledger."""
        return self.is_sealed and not self.pending

    @property
    def is_thin(self) -> bool:
        """Return whether moving its few live records would free much more than it costs."""
        is_settled = self.is_sealed and not self.unwritten and not self.is_kept
        return is_settled and 0 < len(self.pending) * _THIN_PART <= self.record_count

    @property
    def acknowledged_path(self) -> Path:
        """Return the file that names what of this segment is in the ledger."""
        return self.path.with_suffix(_ACKNOWLEDGED_SUFFIX)

    def append(self, request_id: str, kind: Kind, record: bytes) -> None:
        """Add a record; `write_out` brings it to the file."""
        self.note(request_id, kind, self.size)
        self.unwritten += record

    def note(self, request_id: str, kind: Kind, offset: int) -> None:
        """Remember that a record begins at `offset`; an OPEN after a CLOSE says nothing."""
        self.record_count += 1
        if kind is Kind.CLOSE:
            self.pending[request_id] = offset
        elif self.pending.get(request_id, -1) < 0:
            self.pending[request_id] = ~offset

    def closed_ids(self) -> list[str]:
        """Return the pending requests whose CLOSE is here, in the order of their records."""
        return [name for name, offset in self.pending.items() if offset >= 0]

    def open_places(self) -> dict[str, Place]:
        """Return where the last OPEN begins of each pending request whose CLOSE is not here.

        Raises:
            OSError: One is in part on a disk that cannot be read.
        """
        return {name: self._place(~at) for name, at in self.pending.items() if at < 0}

    def write_out(self) -> None:
        """Bring to the file what is not there, by one write(2) if the disk takes it at once.

        Raises:
            OSError: The disk does not take all; the rest stays.
        """
        if self.descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self.descriptor = os.open(self.path, flags, 0o600)
        while self.unwritten:
            count = os.write(self.descriptor, self.unwritten)
            self.written += count
            del self.unwritten[:count]

    def acknowledge(self, request_ids: list[str]) -> list[str]:
        """Forget the requests that are pending here and return them."""
        mine = [request_id for request_id in request_ids if request_id in self.pending]
        for request_id in mine:
            del self.pending[request_id]
        return mine

    def write_acknowledged(self, request_ids: list[str]) -> None:
        """Write that the requests are in the ledger, so that a restart does not send them again.

        Raises:
            OSError: The disk does not take it; they will be sent again, which changes nothing.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(self.acknowledged_path, flags, 0o600)
        try:
            start, record = os.fstat(descriptor).st_size, encode_acknowledged(request_ids)
            if os.write(descriptor, record) != len(record):
                os.ftruncate(descriptor, start)
        finally:
            os.close(descriptor)

    def has_close(self, request_id: str) -> bool:
        """Return whether the CLOSE of a pending request is here."""
        return self.pending.get(request_id, -1) >= 0

    def close_of(self, request_id: str) -> Place | None:
        """Return where a pending request's CLOSE begins; None when none is here.

        Raises:
            OSError: It is in part on a disk that cannot be read.
        """
        return self._place(self.pending[request_id]) if self.has_close(request_id) else None

    def place_of(self, request_id: str) -> tuple[Kind, Place]:
        """Return what stands here for a pending request, its CLOSE or its last OPEN, and where.

        Raises:
            OSError: See `close_of`.
        """
        offset = self.pending[request_id]
        if offset < 0:
            return Kind.OPEN, self._place(~offset)
        return Kind.CLOSE, self._place(offset)

    def _place(self, offset: int) -> Place:
        if offset >= self.written:
            return bytes(self.unwritten[offset - self.written :][:MAX_RECORD_BYTES])
        if not self.unwritten or offset + MAX_RECORD_BYTES <= self.written:
            return self.path, offset
        # The disk may have taken a part of it.
        written = self.path.read_bytes()[offset : self.written]
        return written + bytes(self.unwritten[:MAX_RECORD_BYTES])


def numbers_in(directory: Path) -> list[int]:
    """Return the numbers of the segments in `directory`, oldest first."""
    stems = [path.stem for path in directory.glob(f"*{_SUFFIX}")]
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def remove_files(segment: Segment) -> None:
    """Remove a segment's files; a death in between leaves one that says nothing."""
    # The records first: without the other file they would be sent again.
    for path in (segment.path, segment.acknowledged_path):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def remove_orphans(directory: Path) -> None:
    """Remove what was said of segments that are gone."""
    for path in directory.glob(f"*{_ACKNOWLEDGED_SUFFIX}"):
        if not path.with_suffix(_SUFFIX).exists():
            path.unlink(missing_ok=True)


def read_segment(segment: Segment) -> bool:
    """Read a segment that an earlier process left, and seal it.

    Returns:
        Whether it is damaged: what follows the damage is not read.
    """
    data = segment.path.read_bytes()
    segment.written, segment.is_sealed = len(data), True
    acknowledged = _read_acknowledged(segment)
    try:
        for record in records_in(data):
            request_id = request_id_of(record)
            if request_id in acknowledged:
                segment.record_count += 1
            else:
                segment.note(request_id, record.kind, record.offset)
    except (DamagedRecordError, UnreadableEventError) as error:
        _log.error("usage_spool_damaged", segment=segment.path.name, error=str(error))
        return True
    return False


def read_event(place: Place) -> UsageEvent:
    """Return the event of the record that begins at `place`.

    Raises:
        UnreadableEventError: It is not as it was written, has another form, or is gone.
        OSError: The file cannot be read now.
    """
    try:
        record = next(records_in(read_first_record(place)), None)
    except (DamagedRecordError, FileNotFoundError) as error:
        raise UnreadableEventError(str(error)) from error
    if record is None:
        raise UnreadableEventError("it ends early")
    return event_in(record)


def read_first_record(place: Place) -> bytes:
    """Return the bytes of the record that begins at `place`; none when it is not all there.

    Raises:
        UnreadableEventError: It is not as it was written.
        OSError: The file cannot be read.
    """
    try:
        data = place if isinstance(place, bytes) else _read_bytes(*place)
        record = next(records_in(data), None)
    except DamagedRecordError as error:
        raise UnreadableEventError(str(error)) from error
    return b"" if record is None else data[: record.end]


def _read_bytes(path: Path, offset: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        near = os.pread(descriptor, _USUAL_BYTES, offset)
        is_whole = next(records_in(near), None) is not None
        return near if is_whole else os.pread(descriptor, MAX_RECORD_BYTES, offset)
    finally:
        os.close(descriptor)


def _read_acknowledged(segment: Segment) -> set[str]:
    request_ids: set[str] = set()
    # What cannot be read is sent again, which changes nothing in the ledger.
    with contextlib.suppress(FileNotFoundError, DamagedRecordError, UnreadableEventError):
        for record in records_in(segment.acknowledged_path.read_bytes()):
            request_ids.update(acknowledged_in(record))
    return request_ids
