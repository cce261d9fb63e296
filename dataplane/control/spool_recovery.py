"""What earlier processes left in a spool."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from dataplane.control.spool_records import UnreadableEventError
from dataplane.control.spool_segments import (
    Place,
    Segment,
    numbers_in,
    read_event,
    read_segment,
    remove_orphans,
)
from dataplane.domain.calls import UsageEvent

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What earlier processes left.

    `opens` are the events of requests that did not come to an end: their process died. `closes`
    are the ids of those that did and are not in the ledger, oldest first; `read_closes` gives
    their events.
    """

    opens: tuple[UsageEvent, ...] = ()
    closes: tuple[str, ...] = ()
    damaged_segments: int = 0


def recover(directory: Path) -> tuple[list[Segment], Recovered]:
    """Return the segments in `directory`, all sealed, and what is to be done about them.

    Raises:
        OSError: It cannot be read.
    """
    segments = [Segment(directory, number) for number in numbers_in(directory)]
    remove_orphans(directory)
    opens: dict[str, Place] = {}
    closes: dict[str, None] = {}
    damaged = 0
    for segment in segments:
        damaged += read_segment(segment)
        opens.update(segment.open_places())
        closes.update(dict.fromkeys(segment.closed_ids()))
    places = [(name, place) for name, place in opens.items() if name not in closes]
    # Of an OPEN that cannot be read nobody knows what to charge; the limiter's lease ends by itself.
    events, unreadable = read_events(places)
    for request_id, error in unreadable.items():
        _log.error("usage_event_unreadable", request_id=request_id, error=error)
    for segment in segments:
        segment.acknowledge(list(unreadable))
    return segments, Recovered(tuple(events), tuple(closes), damaged)


def read_events(
    places: Sequence[tuple[str, Place]],
) -> tuple[list[UsageEvent], dict[str, str]]:
    """Return the events that can be read, and why the others never can, by their requests.

    Raises:
        OSError: The disk cannot be read now.
    """
    events: list[UsageEvent] = []
    unreadable: dict[str, str] = {}
    for request_id, place in places:
        try:
            events.append(read_event(place))
        except UnreadableEventError as error:
            unreadable[request_id] = str(error)
    return events, unreadable
